"""Finds a place for a request: the view, mesh/routing's decision, this node's reservation, and the waiting room."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import trio

from backends.types import Busy, CallerError, HoldersDown, MeshError, ModelMissing, Unsupported
from mesh.estimate import Candidate, Need, estimate
from mesh.reservations import Handle
from mesh.routing import Decision, explain, pick
from mesh.transport import PeerId
from node.hold import WaitingRoom
from node.need import OutputLengths
from node.trace import Trace
from node.view import View, missing

_RETRY_HOLDERS_S = 5.0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes, its slots there already noted in this node's book. Give it back with `Router.done`."""

    candidate: Candidate
    bounce_above_s: float
    handle: Handle | None  # None at this node itself, whose pool counts for itself

    @property
    def peer(self) -> PeerId:
        return self.candidate.replica.peer

    @property
    def name(self) -> str:
        return self.candidate.replica.name

    @property
    def model(self) -> str:
        """The model's own name there."""
        return self.candidate.replica.offer.model

    @property
    def digest(self) -> str:
        return self.candidate.replica.offer.digest

    @property
    def context_tokens(self) -> int:
        return self.candidate.replica.offer.context_tokens

    @property
    def local(self) -> bool:
        return self.candidate.replica.local


class Router:
    """Everything from the trio thread."""

    def __init__(self, view: View, room: WaitingRoom, *, policy: str = "ect", rng: random.Random | None = None) -> None:
        self._view = view
        self._room = room
        self._policy = policy
        self._rng = rng or random.Random()  # noqa: S311  # spreads work, guards nothing
        self._turn = 0
        self.lengths = OutputLengths()
        self.observers: list[Callable[[Trace, Decision], None]] = []

    async def place(self, need: Need, client: str, trace: Trace) -> Placement:
        """A replica for `need`, waiting for a slot where all are taken.

        Raises ModelMissing, ModelDisabled, Unsupported, LoadFailed, HoldersDown, Busy.
        """
        # Those who wait in one lane can take the same slots: the first in turn keeps the others waiting.
        lane = "\0".join((need.model, need.pinned or "", need.digest or "", *sorted(need.exclude)))
        if not self._room.occupied(lane):
            placement = self._try(need, trace)
            if placement is not None:
                return placement
        trace.note("hold", "all slots are busy")
        outcome: list[Placement | MeshError] = []

        def attempt() -> bool:
            try:
                placed = self._try(need, trace)
            except MeshError as error:
                outcome.append(error)
                return True
            if placed is not None:
                outcome.append(placed)
            return placed is not None

        try:
            await self._room.wait(lane, client, attempt)
        except BaseException:
            for placed in outcome:  # placed in the very moment in which the client went away
                if isinstance(placed, Placement):
                    self.done(placed)
            raise
        [decided] = outcome
        if isinstance(decided, MeshError):
            raise decided
        return decided

    def done(self, placement: Placement, *, failed: bool | None = None) -> None:
        """The attempt has ended; `failed` if that was the node's fault, None where it says nothing of the node."""
        now = trio.current_time()
        if placement.handle is not None:
            self._view.book.release(placement.handle, now)
        if failed is not None and not placement.local:
            self._view.failed(placement.peer, failed=failed, now=now)
        self._room.poke()

    def answered(self, placement: Placement, need: Need, *, cached_tokens: int, output_tokens: int) -> None:
        """The attempt has ended well: learn from it."""
        now = trio.current_time()
        self._view.prefixes.observed(placement.peer, placement.candidate.cached_tokens, cached_tokens)
        self._view.prefixes.note(placement.peer, need.prefix, now)
        if output_tokens:
            self.lengths.observe(need.model, output_tokens)

    def judge(self, need: Need, *, cached_tokens: int) -> Candidate | None:
        """How this node itself would do now with a call that a peer has sent here; None if it has no such model."""
        replicas, _ = self._view.replicas(need, trio.current_time())
        own = next((replica for replica in replicas if replica.local), None)
        return None if own is None else estimate(replace(own, cached_tokens=cached_tokens), need, replicas)

    def _try(self, need: Need, trace: Trace) -> Placement | None:
        now = trio.current_time()
        replicas, trouble = self._view.replicas(need, now)
        decision = pick(replicas, need, self._policy, rng=self._rng, turn=self._turn)
        self._turn += 1
        chosen = decision.chosen
        able = [candidate for candidate in decision.candidates if not candidate.reason]
        if chosen is None and decision.hold and all(candidate.replica.local for candidate in able):
            chosen = able[0]  # nobody else has it: this node's own queue is the fairest place to wait
        if chosen is None and not decision.hold:
            self._note(trace, decision, None)
            raise self._nobody(need, decision, trouble)
        if chosen is None:
            return None
        self._note(trace, decision, chosen)
        handle = None
        if not chosen.replica.local:
            handle = self._view.book.reserve(
                chosen.replica.peer,
                chosen.replica.offer.model,
                now,
                prompt_tokens=max(0, need.prompt_tokens - chosen.cached_tokens),
                output_tokens=need.output_tokens,
                weight=need.weight,
            )
        return Placement(chosen, decision.bounce_above_s, handle)

    def _note(self, trace: Trace, decision: Decision, chosen: Candidate | None) -> None:
        name = chosen.replica.name if chosen is not None else ""
        trace.note("route", decision.reason, node=name)
        shown: dict[str, Any] = {"policy": decision.policy, "reason": decision.reason, "chosen": name}
        trace.decided(shown | {"candidates": explain(decision)})
        for observer in self.observers:
            observer(trace, decision)

    def _nobody(self, need: Need, decision: Decision, trouble: MeshError | None) -> MeshError:
        """Why nobody can take it, as whose fault it is."""
        reasons = [candidate.reason for candidate in decision.candidates]
        if need.pinned is not None:
            if self._view.down(need.pinned):
                return HoldersDown(
                    "The node that X-Mesh-Node names cannot be reached now.", retry_after_s=_RETRY_HOLDERS_S
                )
            return CallerError(
                f"The node that X-Mesh-Node names cannot take this: {decision.reason}.", param="X-Mesh-Node"
            )
        if any("cannot do" in reason for reason in reasons):
            return Unsupported(f"Model {need.model} cannot do {need.capability}.", param="model")
        if any("failed" in reason for reason in reasons):
            return Busy(f"No other node can take over: {decision.reason}.")
        if trouble is not None and not isinstance(trouble, ModelMissing):
            return trouble
        if down := self._view.holders_down(need.model):
            return HoldersDown(
                f"Model {need.model} is on {', '.join(down[:3])}, which cannot be reached now.",
                retry_after_s=_RETRY_HOLDERS_S,
            )
        return trouble or missing(need.model, self._view.models())
