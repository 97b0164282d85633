"""Opens models that do not fit this node, over the nodes that lend their memory.

`prepare` is what node/pool.py opens a model with: it leases the workers of a plan (node/planner.py), asks each through
its tunnel whether it is there, speaks our version and has the room, and tells the engine where to find them. A worker
that fails in this is left out, and a new plan made.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from backends.engine import Backend
from backends.sharding import RankingBackend, ShardingBackend
from backends.types import EngineCrashed, LoadFailed, LoadSpec, MeshError, ModelNeeds, OutOfMemory, Shard
from mesh.errors import PeerError
from mesh.swarm import Swarm
from mesh.transport import PeerId
from mesh.tunnel import LocalEnd, Traffic, lease
from mesh.tunnel.direct import Carrier
from node.catalog import ModelSpec
from node.fingerprint import fingerprint
from node.held import Held
from node.learnt import Learnt
from node.lenders import Lenders
from node.plan import Plan, Share, Split
from node.planner import Planner

PROBE_S = 5.0

_log = logging.getLogger("mesh.shards")


@dataclass(slots=True)
class Counters:
    """For Prometheus."""

    loads: int = 0
    replans: int = 0
    traffic: Traffic = field(default_factory=Traffic)  # of ends that are gone


class Sharding:
    """Everything from the trio thread."""

    def __init__(self, backends: Mapping[str, Backend], budget_bytes: int) -> None:
        """Until it has a swarm (`join`), nothing can be split."""
        self._backends = backends
        self._budget_bytes = budget_bytes
        self._lenders = Lenders()
        self.learnt = Learnt()
        self._planner = Planner(backends, budget_bytes, self._lenders, self.learnt)
        self.held: dict[str, Held] = {}
        self.counters = Counters()
        self.carrier: Carrier | None = None

    def join(self, swarm: Swarm) -> None:
        """Plan with the members of `swarm`."""
        self._lenders.swarm = swarm

    # -- whether, and how --

    def wanted(self, spec: ModelSpec, trouble: MeshError | None) -> bool:
        """Whether a split is to be tried: the model does not fit, or its file forces it."""
        if self._lenders.swarm is None or spec.file.shard == "never":
            return False
        if not isinstance(self._backends.get(spec.backend), (ShardingBackend, RankingBackend)):
            return False
        return spec.file.shard == "always" or isinstance(trouble, OutOfMemory)

    def plan(self, spec: ModelSpec, without: frozenset[PeerId] = frozenset()) -> tuple[Plan, ModelNeeds]:
        """What is to be done about a model, and the numbers it would be opened with. Raises LoadFailed."""
        return self._planner.plan(spec, without)

    def needs(self, spec: ModelSpec) -> ModelNeeds:
        """What a split model takes of this node. Raises LoadFailed (OutOfMemory) where it cannot be split."""
        found, needs = self.plan(spec)
        split = _split_of(found)
        return msgspec.structs.replace(needs, memory_bytes=min(split.head.memory_bytes, self._budget_bytes))

    def outdated(self) -> list[ModelSpec]:
        """Models that would be split otherwise if they were loaded now: who lends has changed."""
        return [held.spec for held in self.held.values() if not held.loading and self.better(held) is not None]

    def better(self, held: Held) -> Split | None:
        """How a model would be split now, if that is not how it is."""
        try:
            split = self.plan(held.spec)[0].split
        except MeshError:
            return None
        return split if split is not None and _who(split) != _who(held.split) else None

    # -- loading --

    @asynccontextmanager
    async def prepare(self, spec: ModelSpec) -> AsyncIterator[LoadSpec]:
        """How to open a model, for as long as it stays open. Raises LoadFailed, OutOfMemory."""
        load = spec.load_spec(self._budget_bytes)
        trouble: MeshError | None = None
        if self._lenders.swarm is not None:
            try:
                self._backends[spec.backend].needs(load)
            except OutOfMemory as error:
                trouble = error
        if not self.wanted(spec, trouble):
            yield load
            return
        async with AsyncExitStack() as stack:
            held, needs = await self._connect(spec, stack)
            self.held[spec.name] = held
            self.counters.loads += 1
            started = trio.current_time()
            layers = held.split.way == "layers"
            try:
                yield msgspec.structs.replace(
                    spec.load_spec(None),
                    context_tokens=needs.context_tokens,
                    slots=needs.slots,
                    local_layers=held.split.head.layers if layers else 0,
                    shards=tuple(
                        Shard(
                            endpoint=f"127.0.0.1:{held.ends[share.place.id].port}", layers=share.layers if layers else 0
                        )
                        for share in held.split.workers
                    ),
                )
            finally:
                del self.held[spec.name]
                self.counters.traffic.add(held.traffic)
                _log.info("%s is no longer split, after %.0f s", spec.name, trio.current_time() - started)

    async def _connect(self, spec: ModelSpec, outer: AsyncExitStack) -> tuple[Held, ModelNeeds]:
        """Lease and probe the workers of a plan; without those that fail, of another one."""
        trouble: list[str] = []
        digest = fingerprint(spec.backend, spec.load_spec(None))
        tried: frozenset[PeerId] = frozenset()
        for _ in range(1 + len(self._lenders.members)):
            found, needs = self.plan(spec, tried)
            split = _split_of(found, trouble)
            async with AsyncExitStack() as stack:
                target = self._target(spec)
                held = Held(spec, found, split, {}, target, self.learnt.slowdown(spec.name), digest)
                for share in split.workers:
                    try:
                        held.ends[share.place.id] = await self._take(spec, share, target, stack)
                    except (PeerError, LoadFailed) as error:
                        why = error.message if isinstance(error, LoadFailed) else str(error)
                        trouble.append(f"{share.place.name} is left out: {why}")
                        _log.warning("%s: %s", spec.name, trouble[-1])
                        self._lenders.leave_out(share.place.id)
                        tried |= {share.place.id}
                        break
                else:
                    _log.info("%s: %s", spec.name, describe(split))
                    await outer.enter_async_context(stack.pop_all())
                    return held, needs
            self.counters.replans += 1
        raise LoadFailed(f"Model {spec.name} cannot be split. {' '.join(trouble)}")

    async def _take(self, spec: ModelSpec, share: Share, target: str, stack: AsyncExitStack) -> LocalEnd:
        assert self._lenders.swarm is not None
        backend = self._backends[spec.backend]
        end = await stack.enter_async_context(lease(self._lenders.swarm.open, share.place.id, target, self.carrier))
        if isinstance(backend, RankingBackend):
            load = spec.load_spec(None)
            await backend.check_rank(load, end.port, memory_bytes=share.memory_bytes, timeout_s=PROBE_S)
            return end
        assert isinstance(backend, ShardingBackend)
        facts = await backend.probe(end.port, timeout_s=PROBE_S)
        free = sum(device.free_bytes for device in facts.devices)
        if free < share.memory_bytes:
            raise LoadFailed(f"it has {free >> 20} MiB free, and {share.memory_bytes >> 20} MiB are to be put there.")
        return end

    def _target(self, spec: ModelSpec) -> str:
        backend = self._backends[spec.backend]
        if isinstance(backend, RankingBackend):
            return backend.rank_target
        assert isinstance(backend, ShardingBackend)
        return backend.target

    # -- what the pool tells --

    def loaded(self, name: str, seconds: float) -> None:
        """A load has succeeded."""
        held = self.held.get(name)
        if held is not None:
            held.loading = False
            self.learnt.loaded(held, seconds)

    def failed(self, spec: ModelSpec, load: LoadSpec, error: MeshError) -> bool:
        """A load has failed. Whether another plan is worth a try: the fault is a worker's, and that one is left out."""
        held = self.held.get(spec.name)
        if held is None or not load.shards:
            return False
        blamed = [
            peer
            for peer, end in held.ends.items()
            if (end.lost.is_set() and not held.given_up)
            or (isinstance(error, LoadFailed) and f"127.0.0.1:{end.port}]" in error.message)
        ]
        for peer in blamed:
            self._lenders.leave_out(peer)
        again = bool(blamed) or isinstance(error, EngineCrashed)
        self.counters.replans += again
        return again

    def lost(self, name: str) -> None:
        """The engine of a split model died: whose lease is over is not asked again for a while."""
        held = self.held.get(name)
        if held is not None:
            self.counters.replans += 1
            for peer, end in held.ends.items():
                if end.lost.is_set() and not held.given_up:
                    self._lenders.leave_out(peer)

    def give_up(self, held: Held, why: str) -> None:
        """End a split that stands still, and so its engine. The next plan's probes find who it was."""
        _log.warning("%s: %s", held.spec.name, why)
        held.given_up = True
        for end in held.ends.values():
            end.lost.set()

    def traffic(self) -> Traffic:
        """Through all tunnels to workers so far."""
        total = Traffic()
        total.add(self.counters.traffic)
        for held in self.held.values():
            total.add(held.traffic)
        return total


def describe(split: Split) -> str:
    """One line for the log."""
    parts = [f"{share.place.name} {share.layers}" for share in (split.head, *split.workers)]
    return (
        f"{split.way}: {', '.join(parts)}; {split.tokens_per_s:.1f} tokens/s expected, loaded in {split.load_s:.1f} s"
    )


def _split_of(found: Plan, trouble: list[str] | None = None) -> Split:
    if found.split is None:
        raise OutOfMemory(f"Model {found.model} does not fit this node. {' '.join((*found.why, *(trouble or [])))}")
    return found.split


def _who(split: Split) -> list[tuple[PeerId, int]]:
    return [(share.place.id, share.layers) for share in (split.head, *split.workers)]
