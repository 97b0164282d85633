"""Models that several nodes hold together as ranks: who takes part, and for how long.

A model is shared by as few ranks as it takes. The nodes that lend a rank say so in their records; whether one has the
weights it is asked through its tunnel. One that fails in this is left out.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import trio

from backends.sharding import RankingBackend
from backends.types import LoadFailed, LoadSpec, ModelNeeds, OutOfMemory, Shard
from mesh.errors import PeerError
from mesh.records import Target
from mesh.roster import Member
from mesh.swarm import Swarm
from mesh.transport import PeerId
from mesh.tunnel import LocalEnd, lease
from node.catalog import ModelSpec

CHECK_S = 10.0
LEFT_OUT_S = 10.0
"""How long a node that failed is not asked again."""

_log = logging.getLogger("mesh.shards")


class Ranks:
    """Everything from the trio thread."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._swarm: Swarm | None = None
        self._left_out: dict[PeerId, float] = {}
        self.held: dict[str, list[str]] = {}
        """The other nodes of each model that is shared right now, by name."""

    def join(self, swarm: Swarm) -> None:
        """Share with the members of `swarm`."""
        self._swarm = swarm

    def needs(self, spec: ModelSpec, backend: RankingBackend) -> ModelNeeds:
        """What a shared model takes of this node. Raises LoadFailed where nobody can share it."""
        return self._choose(spec, backend, frozenset(), [])[1]

    def _choose(
        self, spec: ModelSpec, backend: RankingBackend, without: frozenset[PeerId], trouble: list[str]
    ) -> tuple[list[Member], ModelNeeds]:
        free = [
            (member, target) for member, target in self._lent(spec, backend.rank_target) if member.peer not in without
        ]
        why = [*trouble, *([] if free else ["No node lends a rank (--mlx-rank) that is free."])]
        for size in range(2, len(free) + 2):
            chosen = free[: size - 1]
            room = min(self._budget_bytes, *(target.memory_bytes for _, target in chosen))
            try:
                needs = backend.rank_needs(spec.load_spec(room), size)
            except LoadFailed as error:
                why.append(error.message)
                continue
            return [member for member, _ in chosen], needs
        raise OutOfMemory(f"Model {spec.name} does not fit this node alone, and is not shared: {' '.join(why)}")

    def _lent(self, spec: ModelSpec, name: str) -> Iterator[tuple[Member, Target]]:
        swarm = self._swarm
        if swarm is None:
            return
        now = trio.current_time()
        found = [
            (member, target)
            for member in swarm.roster.members
            for target in member.record.targets
            if target.name == name
            and member.usable
            and target.leased_by in ("", swarm.peer)
            and self._left_out.get(member.peer, now) <= now
            and (not spec.file.workers or member.name in spec.file.workers)
        ]
        # The most memory first; by name where it is the same, so that the choice does not change by itself.
        yield from sorted(found, key=lambda item: (-item[1].memory_bytes, item[0].name))

    @asynccontextmanager
    async def prepare(self, spec: ModelSpec, backend: RankingBackend) -> AsyncIterator[LoadSpec]:
        """How to open a model together with others, for as long as it stays open. Raises LoadFailed."""
        async with AsyncExitStack() as stack:
            members, needs, ends = await self._connect(spec, backend, stack)
            self.held[spec.name] = [member.name for member in members]
            _log.info("%s: shared with %s", spec.name, ", ".join(self.held[spec.name]))
            try:
                yield msgspec.structs.replace(
                    spec.load_spec(None),
                    context_tokens=needs.context_tokens,
                    slots=needs.slots,
                    shards=tuple(Shard(endpoint=f"127.0.0.1:{end.port}", layers=0) for end in ends),
                )
            finally:
                del self.held[spec.name]
                for end in ends:
                    if end.lost.is_set():
                        self._leave_out(end.peer)

    async def _connect(
        self, spec: ModelSpec, backend: RankingBackend, outer: AsyncExitStack
    ) -> tuple[list[Member], ModelNeeds, list[LocalEnd]]:
        assert self._swarm is not None
        trouble: list[str] = []
        tried: frozenset[PeerId] = frozenset()
        load = spec.load_spec(None)
        while True:
            members, needs = self._choose(spec, backend, tried, trouble)
            async with AsyncExitStack() as stack:
                ends: list[LocalEnd] = []
                for member in members:
                    try:
                        end = await stack.enter_async_context(lease(self._swarm.open, member.peer, backend.rank_target))
                        await backend.check_rank(load, end.port, memory_bytes=needs.memory_bytes, timeout_s=CHECK_S)
                    except (PeerError, LoadFailed) as error:
                        why = error.message if isinstance(error, LoadFailed) else str(error)
                        trouble.append(f"{member.name} is left out: {why}")
                        _log.warning("%s: %s", spec.name, trouble[-1])
                        tried |= {member.peer}
                        break
                    ends.append(end)
                else:
                    await outer.enter_async_context(stack.pop_all())
                    return members, needs, ends

    def _leave_out(self, peer: PeerId) -> None:
        self._left_out[peer] = trio.current_time() + LEFT_OUT_S
