"""Models that do not fit this node, over the nodes that lend their memory: asks node/plan.py, connects, loads.

What a plan is made from is gathered here: the model's header (its backend), the roster (who lends what), and what this
node has measured of links and rates. `prepare` is what node/pool.py opens a model with: it leases the workers of a
plan, asks each through its tunnel whether it is there and speaks our version, and tells the engine where to find them.
A worker that fails in this is left out, and a new plan made.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import trio

from backends.engine import Backend
from backends.sharding import RankingBackend, ShardingBackend
from backends.types import EngineCrashed, LoadFailed, LoadSpec, MeshError, ModelNeeds, OutOfMemory, Shard
from mesh.errors import PeerError
from mesh.records import Target
from mesh.roster import Member
from mesh.swarm import Swarm
from mesh.transport import PeerId
from mesh.tunnel import LocalEnd, Traffic, lease
from node.catalog import ModelSpec
from node.fingerprint import fingerprint
from node.plan import Place, Plan, Question, Share, Split, plan
from node.ranks import Ranks

PROBE_S = 5.0
LEFT_OUT_S = 10.0
"""How long a worker that failed is asked only where there is no plan without it."""
_CACHE_SHARES = (0.95, 0.8, 0.6, 0.4, 0.2)
"""Of the memory that the weights leave, how much to plan for running sequences; the rest is lost to whole layers."""
_AVERAGE = 0.3
_MIN_MEASURED_BYTES = 4 << 20
_KEPT_BYTES = 64 << 20
"""A layer of so much has tensors that a server keeps (llama.cpp: those over 10 MiB)."""

_log = logging.getLogger("mesh.shards")


@dataclass(slots=True)
class Held:
    """A model that is split right now."""

    plan: Plan
    split: Split
    ends: dict[PeerId, LocalEnd]
    slowdown: float
    digest: str
    loading: bool = True


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
        self._swarm: Swarm | None = None
        self._budget_bytes = budget_bytes
        self._left_out: dict[PeerId, float] = {}
        self._links: dict[PeerId, float] = {}  # bytes a second
        self._slowdown: dict[str, float] = {}
        self._cached: set[tuple[PeerId, str]] = set()
        self.ranks = Ranks(budget_bytes)
        self.held: dict[str, Held] = {}
        self.counters = Counters()

    def join(self, swarm: Swarm) -> None:
        """Plan with the members of `swarm`."""
        self._swarm = swarm
        self.ranks.join(swarm)

    # -- planning --

    def plan(self, spec: ModelSpec, without: frozenset[PeerId] = frozenset()) -> tuple[Plan, ModelNeeds]:
        """What is to be done about a model, and the numbers it would be opened with. Raises LoadFailed."""
        backend = self._backends.get(spec.backend)
        if not isinstance(backend, ShardingBackend):
            raise LoadFailed(f"The backend {spec.backend} cannot split a model over several nodes.")
        now = trio.current_time()
        doubtful = frozenset(peer for peer, until in self._left_out.items() if until > now)
        found, needs = self._plan(spec, backend, self._backends[spec.backend], without | doubtful)
        if found.split is None and not found.fits and doubtful - without:
            # Better one that failed a moment ago, and may be back, than none.
            found, needs = self._plan(spec, backend, self._backends[spec.backend], without)
        return found, needs

    def needs(self, spec: ModelSpec) -> ModelNeeds:
        """What a split model takes of this node. Raises LoadFailed (OutOfMemory) where it cannot be split."""
        backend = self._backends.get(spec.backend)
        if isinstance(backend, RankingBackend):
            return self.ranks.needs(spec, backend)
        found, needs = self.plan(spec)
        if found.split is None:
            raise OutOfMemory(f"Model {spec.name} does not fit this node. {' '.join(found.why)}")
        return msgspec.structs.replace(needs, memory_bytes=min(found.split.head.memory_bytes, self._budget_bytes))

    def wanted(self, spec: ModelSpec, trouble: MeshError | None) -> bool:
        """Whether a split is to be tried: the model does not fit, or its file forces it."""
        if self._swarm is None or spec.file.shard == "never":
            return False
        if not isinstance(self._backends.get(spec.backend), (ShardingBackend, RankingBackend)):
            return False
        return spec.file.shard == "always" or isinstance(trouble, OutOfMemory)

    def _plan(
        self, spec: ModelSpec, sharding: ShardingBackend, backend: Backend, without: frozenset[PeerId]
    ) -> tuple[Plan, ModelNeeds]:
        loose = spec.load_spec(None)
        whole = backend.needs(loose)
        fits = True
        try:
            whole = backend.needs(spec.load_spec(self._budget_bytes))
        except OutOfMemory:
            fits = False
        shape = sharding.shape(loose, whole)
        digest = fingerprint(spec.backend, loose)
        workers = tuple(place for place in self._places(sharding.target, digest) if place.id not in without)
        head = Place("", self._swarm.roster.own_name if self._swarm else "this node", self._budget_bytes)
        rates = [place.bytes_per_s for place in workers if place.bytes_per_s]
        if rates:  # nobody has measured this machine: take it for one like the others
            head = Place("", head.name, self._budget_bytes, sum(rates) / len(rates))
        # What it takes without any cache, and what all have room for besides.
        bare = whole.memory_bytes - sum(shape.layer_cache_bytes)
        rooms = sum(max(0, place.memory_bytes - shape.scratch_bytes) for place in workers)
        rooms += max(0, head.memory_bytes - shape.head_bytes - shape.scratch_bytes)
        spare = rooms - sum(shape.layer_bytes) - shape.output_bytes
        found: Plan | None = None
        needs = whole
        for share in _CACHE_SHARES:
            try:
                needs = backend.needs(spec.load_spec(bare + max(0, int(spare * share))))
            except OutOfMemory:
                needs = whole
            found = plan(
                Question(
                    model=spec.name,
                    shape=sharding.shape(loose, needs),
                    need_bytes=whole.memory_bytes if fits else max(whole.memory_bytes, self._budget_bytes + 1),
                    head=head,
                    workers=workers,
                    elsewhere=tuple(self._elsewhere(spec, loose)),
                    never=spec.file.shard == "never",
                    force=spec.file.shard == "always",
                    named=spec.file.workers,
                    slowdown=self._slowdown.get(spec.name, 1.0),
                )
            )
            if found.split is not None or not workers:
                break
        assert found is not None
        if found.split is None and not found.fits:
            taken = [f"{name} is leased to {holder}" for name, holder in self._taken(sharding.target)]
            if taken:
                found = _with_reason(found, f"Of those that lend memory, {'; '.join(taken)}.")
        return found, needs

    def _members(self, target: str) -> Iterator[tuple[Member, Target]]:
        for member in self._swarm.roster.members if self._swarm is not None else ():
            for found in member.record.targets:
                if found.name == target and member.usable:
                    yield member, found

    def _places(self, target: str, digest: str) -> Iterator[Place]:
        for member, found in self._members(target):
            own = self._swarm.peer if self._swarm is not None else ""
            if found.leased_by in ("", own):
                yield Place(
                    member.peer,
                    member.name,
                    found.memory_bytes,
                    found.bytes_per_s,
                    member.rtt_s,
                    self._links.get(member.peer, 0.0),
                    (member.peer, digest) in self._cached,
                )

    def _taken(self, target: str) -> Iterator[tuple[str, str]]:
        for member, found in self._members(target):
            assert self._swarm is not None
            if found.leased_by not in ("", self._swarm.peer):
                holder = self._swarm.roster.get(found.leased_by)
                yield member.name, holder.name if holder is not None else found.leased_by[-6:]

    def _elsewhere(self, spec: ModelSpec, load: LoadSpec) -> Iterator[str]:
        """Nodes that have the same model and hold it alone."""
        digest = fingerprint(spec.backend, load)
        for member in self._swarm.roster.members if self._swarm is not None else ():
            if member.usable and any(offer.digest == digest and not offer.sharded for offer in member.record.offers):
                yield member.name

    # -- loading --

    @asynccontextmanager
    async def prepare(self, spec: ModelSpec) -> AsyncIterator[LoadSpec]:
        """How to open a model, for as long as it stays open. Raises LoadFailed, OutOfMemory."""
        load = spec.load_spec(self._budget_bytes)
        trouble: MeshError | None = None
        backend = self._backends[spec.backend]
        if self._swarm is not None and isinstance(backend, (ShardingBackend, RankingBackend)):
            try:
                backend.needs(load)
            except OutOfMemory as error:
                trouble = error
        if not self.wanted(spec, trouble):
            yield load
            return
        if isinstance(backend, RankingBackend):
            async with self.ranks.prepare(spec, backend) as shared:
                self.counters.loads += 1
                yield shared
            return
        async with AsyncExitStack() as stack:
            held, needs = await self._connect(spec, stack)
            self.held[spec.name] = held
            self.counters.loads += 1
            started = trio.current_time()
            try:
                yield msgspec.structs.replace(
                    spec.load_spec(None),
                    context_tokens=needs.context_tokens,
                    slots=needs.slots,
                    local_layers=held.split.head.layers,
                    shards=tuple(
                        Shard(endpoint=f"127.0.0.1:{held.ends[share.place.id].port}", layers=share.layers)
                        for share in held.split.workers
                    ),
                )
            finally:
                del self.held[spec.name]
                for end in held.ends.values():
                    self.counters.traffic.add(end.traffic)
                _log.info("%s is no longer split, after %.0f s", spec.name, trio.current_time() - started)

    async def _connect(self, spec: ModelSpec, outer: AsyncExitStack) -> tuple[Held, ModelNeeds]:
        """Lease and probe the workers of a plan; without those that fail, of another one."""
        trouble: list[str] = []
        digest = fingerprint(spec.backend, spec.load_spec(None))
        tried: frozenset[PeerId] = frozenset()
        for _ in range(1 + len(self._swarm.roster.members) if self._swarm is not None else 1):
            found, needs = self.plan(spec, tried)
            if found.split is None:
                raise OutOfMemory(f"Model {spec.name} does not fit this node. {' '.join((*found.why, *trouble))}")
            async with AsyncExitStack() as stack:
                held = Held(found, found.split, {}, self._slowdown.get(spec.name, 1.0), digest)
                for share in found.split.workers:
                    try:
                        held.ends[share.place.id] = await self._take(spec, share, stack)
                    except (PeerError, LoadFailed) as error:
                        why = error.message if isinstance(error, LoadFailed) else str(error)
                        trouble.append(f"{share.place.name} is left out: {why}")
                        _log.warning("%s: %s", spec.name, trouble[-1])
                        self.leave_out(share.place.id)
                        tried |= {share.place.id}
                        break
                else:
                    _log.info("%s: %s", spec.name, describe(found.split))
                    await outer.enter_async_context(stack.pop_all())
                    return held, needs
            self.counters.replans += 1
        raise LoadFailed(f"Model {spec.name} cannot be split. {' '.join(trouble)}")

    async def _take(self, spec: ModelSpec, share: Share, stack: AsyncExitStack) -> LocalEnd:
        backend = self._backends[spec.backend]
        assert isinstance(backend, ShardingBackend)
        assert self._swarm is not None
        end = await stack.enter_async_context(lease(self._swarm.open, share.place.id, backend.target))
        facts = await backend.probe(end.port, timeout_s=PROBE_S)
        free = sum(device.free_bytes for device in facts.devices)
        if free < share.memory_bytes:
            raise LoadFailed(f"it has {free >> 20} MiB free, and {share.memory_bytes >> 20} MiB are to be put there.")
        return end

    # -- what the pool tells --

    def loaded(self, name: str, seconds: float) -> None:
        """A load has succeeded: learn what the links carry, and who keeps weights for the next time."""
        held = self.held.get(name)
        if held is None:
            return
        held.loading = False
        for share in held.split.workers:
            if share.weight_bytes > share.layers * _KEPT_BYTES:
                self._cached.add((share.place.id, held.digest))
            sent = held.ends[share.place.id].traffic.sent_bytes
            if sent > _MIN_MEASURED_BYTES and seconds > 0:
                # Workers are loaded one after the other: each by its part of the time.
                part_s = seconds * share.weight_bytes / max(1, sum(s.weight_bytes for s in held.split.workers))
                if part_s > 0:
                    old = self._links.get(share.place.id, 0.0)
                    rate = sent / part_s
                    self._links[share.place.id] = old + _AVERAGE * (rate - old) if old else rate

    def measured(self, name: str, tokens_per_s: float) -> None:
        """What a split model makes for one sequence: learn how far the prediction was off."""
        held = self.held.get(name)
        if held is not None and tokens_per_s > 0:
            predicted_s = held.split.token_s / held.slowdown
            self._slowdown[name] = min(100.0, max(0.01, 1 / tokens_per_s / predicted_s))

    def failed(self, spec: ModelSpec, load: LoadSpec, error: MeshError) -> bool:
        """A load has failed. Whether another plan is worth a try: the fault is a worker's, and that one is left out."""
        held = self.held.get(spec.name)
        if held is None or not load.shards:
            return False
        blamed = [
            peer
            for peer, end in held.ends.items()
            if end.lost.is_set() or (isinstance(error, LoadFailed) and f"127.0.0.1:{end.port}]" in error.message)
        ]
        for peer in blamed:
            self.leave_out(peer)
        again = bool(blamed) or isinstance(error, EngineCrashed)
        self.counters.replans += again
        return again

    def lost(self, name: str) -> None:
        """The engine of a split model died: whose lease is over is not asked again for a while."""
        held = self.held.get(name)
        if held is not None:
            self.counters.replans += 1
            for peer, end in held.ends.items():
                if end.lost.is_set():
                    self.leave_out(peer)

    def leave_out(self, peer: PeerId) -> None:
        """Do not plan with it for a while."""
        self._left_out[peer] = trio.current_time() + LEFT_OUT_S

    # -- for people --

    def traffic(self) -> Traffic:
        """Through all tunnels to workers so far."""
        total = Traffic()
        total.add(self.counters.traffic)
        for held in self.held.values():
            for end in held.ends.values():
                total.add(end.traffic)
        return total

    def shown(self, spec: ModelSpec) -> dict[str, Any]:
        """A plan as plain JSON."""
        if isinstance(self._backends.get(spec.backend), RankingBackend) and spec.name in self.ranks.held:
            names = ", ".join(self.ranks.held[spec.name])
            return {"model": spec.name, "error": f"Model {spec.name} is shared as ranks with {names}."}
        try:
            found, needs = self.plan(spec)
        except MeshError as error:
            return {"model": spec.name, "error": error.message}
        held = self.held.get(spec.name)
        split = found.split
        if held is not None:  # as it is, with what has been learnt since
            slowdown = self._slowdown.get(spec.name, held.slowdown)
            split = replace(held.split, token_s=held.split.token_s / held.slowdown * slowdown)
        return {
            "model": spec.name,
            "shard": spec.file.shard,
            "need_bytes": found.need_bytes,
            "fits": list(found.fits),
            "loaded": held is not None and not held.loading,
            "context_tokens": needs.context_tokens,
            "slots": needs.slots,
            "whole_tokens_per_s": round(1 / found.whole_token_s, 1) if found.whole_token_s else None,
            "split": None if split is None else _shown_split(split),
            "why": list(found.why),
        }


def describe(split: Split) -> str:
    """One line for the log."""
    parts = [f"{share.place.name} {share.layers}" for share in (split.head, *split.workers)]
    return f"layers: {', '.join(parts)}; {split.tokens_per_s:.1f} tokens/s expected, loaded in {split.load_s:.1f} s"


def _with_reason(found: Plan, why: str) -> Plan:
    return Plan(found.model, found.need_bytes, found.fits, found.split, found.whole_token_s, (*found.why, why))


def _shown_split(split: Split) -> dict[str, Any]:
    def shown(share: Share, *, head: bool) -> dict[str, Any]:
        return {
            "node": share.place.name,
            "head": head,
            "layers": share.layers,
            "weight_bytes": share.weight_bytes,
            "memory_bytes": share.memory_bytes,
            "free_bytes": share.place.memory_bytes,
            "cached": share.place.cached,
            "round_trip_s": round(share.place.rtt_s, 6),
            "link_bytes_per_s": round(share.place.link_bytes_per_s),
            "bytes_per_s": round(share.place.bytes_per_s),
        }

    return {
        "nodes": [shown(split.head, head=True), *(shown(share, head=False) for share in split.workers)],
        "tokens_per_s": round(split.tokens_per_s, 1),
        "load_s": round(split.load_s, 1),
    }
