"""Which nodes lend what, and to whom: the roster as plans see it, less those that failed a moment ago."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from mesh.records import Target
from mesh.roster import Member
from mesh.swarm import Swarm
from mesh.transport import PeerId

LEFT_OUT_S = 10.0
"""How long a node that failed is asked only where there is no plan without it."""

Refuses = Callable[[str], str]
"""Why a server of that version cannot be used; empty: it can."""


class Lenders:
    """Everything from the trio thread. Without a swarm there is nobody."""

    def __init__(self) -> None:
        self.swarm: Swarm | None = None
        self._left_out: dict[PeerId, float] = {}

    @property
    def own_name(self) -> str:
        """Of this node."""
        return self.swarm.roster.own_name if self.swarm is not None else "this node"

    @property
    def members(self) -> list[Member]:
        """Those that can be asked for something now."""
        return [member for member in self.swarm.roster.members if member.usable] if self.swarm is not None else []

    def free(self, target: str, refuses: Refuses) -> Iterator[tuple[Member, Target]]:
        """Who lends a target that this node can have, or has."""
        for member, found in self._lending(target):
            if self._holder(found) is None and not refuses(found.version):
                yield member, found

    def others(self, target: str, refuses: Refuses) -> Iterator[str]:
        """Why the rest of those that lend it are of no use now."""
        for member, found in self._lending(target):
            if why := refuses(found.version):
                yield f"{member.name} is left out: {why}"
            elif holder := self._holder(found):
                yield f"{member.name} is leased to {holder}"

    def holding(self, digest: str) -> Iterator[str]:
        """Nodes that have a model, and hold it alone."""
        for member in self.members:
            if any(offer.digest == digest and not offer.sharded for offer in member.record.offers):
                yield member.name

    def leave_out(self, peer: PeerId) -> None:
        """Do not plan with it for a while."""
        self._left_out[peer] = trio.current_time() + LEFT_OUT_S

    @property
    def doubtful(self) -> frozenset[PeerId]:
        """Who is left out now."""
        now = trio.current_time()
        self._left_out = {peer: until for peer, until in self._left_out.items() if until > now}
        return frozenset(self._left_out)

    def _lending(self, target: str) -> Iterator[tuple[Member, Target]]:
        for member in self.members:
            for found in member.record.targets:
                if found.name == target:
                    yield member, found

    def _holder(self, target: Target) -> str | None:
        """The name of whoever else has leased it."""
        assert self.swarm is not None
        if target.leased_by in ("", self.swarm.peer):
            return None
        holder = self.swarm.roster.get(target.leased_by)
        return holder.name if holder is not None else target.leased_by[-6:]
