"""Both sides of models over several nodes, put together: what this node lends, and what it splits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import trio

from backends.engine import Backend
from backends.mlx import MlxBackend
from backends.mlx.lending import RankLender
from backends.process import Worker
from backends.sharding import ShardingBackend
from mesh import tunnel
from mesh.libp2p.addresses import direct_hosts
from mesh.roster import PeerEvent
from mesh.swarm import Swarm
from mesh.transport import PeerId
from mesh.tunnel import Tunnels
from mesh.tunnel.direct import Carrier
from node.ask import ask
from node.config import Settings
from node.hardware import default_memory_budget, probe
from node.inventory import Inventory
from node.metrics import ShardFacts
from node.planpage import shown
from node.pool import Pool
from node.shardcache import ShardCache
from node.sharding import Sharding
from node.shardserver import Holder
from node.watchdog import HUNG_LOADING_S, HUNG_S, LOOK_S, Watchdog, Watched, processor_s

CACHE_FOLDER = "rpc-cache"
ROLE = "rpc-worker"
RANKS_FILE = "mlx-models.json"
RANK_ROLE = "mlx-rank"
_STRUCTURAL = frozenset({"joined", "left", "suspect", "alive", "dead", "record", "forgotten", "banned"})
_ALONE = 1.5  # sequences in a batch, on average, up to which its rate is that of one


def own_budget(settings: Settings) -> int:
    """Memory for this node's own models: a node that lends its memory has none for itself unless it is told to."""
    if settings.memory_budget_bytes is not None:
        return settings.memory_budget_bytes
    return 0 if settings.rpc_worker or settings.mlx_rank else default_memory_budget(probe().memory_bytes)


class Shards:
    """Of one node. Everything from the trio thread."""

    def __init__(self, settings: Settings, backends: Mapping[str, Backend], budget_bytes: int) -> None:
        self._settings = settings
        self._budget_bytes = budget_bytes
        self._swarm: Swarm | None = None
        self._inventory: Inventory | None = None
        self._pool: Pool | None = None
        self.carrier = None
        if settings.direct_tunnels:
            self.carrier = Carrier(settings.mesh_host, settings.tunnel_port, hosts=self._hosts)
        self.sharding = Sharding(backends, budget_bytes)
        self.sharding.carrier = self.carrier
        self.tunnels = Tunnels(named=self._named, carrier=self.carrier)
        self.holder = self._holder(backends) if settings.rpc_worker else None
        self.lender = self._lender() if settings.mlx_rank else None

    def join(self, swarm: Swarm, inventory: Inventory, pool: Pool) -> None:
        """Take part: before the swarm runs."""
        self._swarm, self._inventory, self._pool = swarm, inventory, pool
        self.sharding.join(swarm)
        inventory.sharding = self.sharding
        inventory.refresh()
        swarm.handle(tunnel.PROTOCOL, self.tunnels.handle)
        self.models_changed()
        roles = swarm.record.roles
        roles += ((ROLE,) if self.holder is not None else ()) + ((RANK_ROLE,) if self.lender is not None else ())
        swarm.publish(roles=roles, memory_budget_bytes=self._budget_bytes)
        pool.on_change.append(self._learn)

    async def run(self) -> None:
        """Lend memory, where this node is to, and carry tunnels, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self.carrier is not None:
                nursery.start_soon(self.carrier.run)
            for holder in self._holders:
                nursery.start_soon(holder.run)
            nursery.start_soon(self._watch)

    def models_changed(self) -> None:
        """The model files were read again: of which models this node can be a rank, and what is to be split anew."""
        if self._pool is not None and self._inventory is not None:
            for spec in self.sharding.outdated():
                needs = self._inventory.resolve(spec.name).checked_needs
                self._pool.renew(spec, memory_bytes=needs.memory_bytes, slots=needs.slots)
        if self.lender is not None and self._inventory is not None:
            folders = [entry.spec.path for entry in self._inventory.entries if entry.spec.backend == MlxBackend.name]
            (self._settings.data / RANKS_FILE).write_bytes(msgspec.json.encode(folders))

    def on_event(self, event: PeerEvent) -> None:
        """Something changed in the roster."""
        if event.kind in _STRUCTURAL and self._inventory is not None and self._inventory.refresh():
            assert self._pool is not None
            for tell in self._pool.on_change:  # what this node offers has changed
                tell()

    def plans(self, model: str | None) -> Sequence[Mapping[str, Any]]:
        """The plan of one model, or of all. Raises ModelMissing or ModelDisabled."""
        assert self._inventory is not None
        specs = [self._inventory.spec(model)] if model else [entry.spec for entry in self._inventory.entries]
        return [shown(self.sharding, spec) for spec in specs]

    def computed(self, target: str) -> float | None:
        """For a peer that has leased a target: processor seconds of what serves it, so far."""
        return next((holder.processor_s() for holder in self._holders if holder.name == target), None)

    def facts(self) -> ShardFacts:
        """What Prometheus is told."""
        counters, traffic = self.sharding.counters, self.sharding.traffic()
        restarts = sum(holder.restarts for holder in self._holders)
        return ShardFacts(
            counters.loads,
            counters.replans,
            traffic.sent_bytes,
            traffic.received_bytes,
            traffic.round_trips,
            restarts,
        )

    @property
    def _holders(self) -> list[Holder]:
        return [holder for holder in (self.holder, self.lender) if holder is not None]

    def _lender(self) -> Holder:
        memory = max(1 << 20, default_memory_budget(probe().memory_bytes) - self._budget_bytes)
        lender = RankLender(self._settings.data / RANKS_FILE)
        return Holder(
            lender,
            self.tunnels,
            memory_bytes=memory,
            cache=None,
            threads=None,
            device="",
            changed=self._tell,
        )

    def _holder(self, backends: Mapping[str, Backend]) -> Holder | None:
        backend = next((backend for backend in backends.values() if isinstance(backend, ShardingBackend)), None)
        if backend is None:
            return None
        settings = self._settings
        memory = settings.rpc_memory_bytes
        if memory is None:
            memory = max(1 << 20, default_memory_budget(probe().memory_bytes) - self._budget_bytes)
        return Holder(
            backend,
            self.tunnels,
            memory_bytes=memory,
            cache=ShardCache(settings.data / CACHE_FOLDER, settings.rpc_cache_bytes)
            if settings.rpc_cache_bytes
            else None,
            threads=settings.rpc_threads,
            device=settings.rpc_device,
            changed=self._tell,
        )

    def _tell(self) -> None:
        if self._swarm is not None and self._holders:
            targets = tuple(target for holder in self._holders for target in holder.targets())
            self._swarm.publish(exposes=self.tunnels.exposed, targets=targets)

    async def _watch(self) -> None:
        """End what stands still. The calls go on by the next plan."""
        dog = Watchdog(self._ask_computed)
        while True:
            await trio.sleep(LOOK_S)
            self._learn()
            for model, why in (await dog.hung(list(self._watched()))).items():
                if (held := self.sharding.held.get(model)) is not None:
                    self.sharding.give_up(held, why)

    def _watched(self) -> Iterator[Watched]:
        assert self._pool is not None
        for model, held in self.sharding.held.items():
            worker = self._pool.loaded(model)
            if held.loading or (worker is not None and worker.awaited):
                through, ranks = held.traffic, held.split.way != "layers"
                yield Watched(
                    model,
                    held.target,
                    through.sent_bytes + through.received_bytes,
                    tuple(held.ends),
                    engine_s=None if ranks else self._engine_s(worker),
                    any_idle=ranks,
                    patience_s=HUNG_LOADING_S if held.loading else HUNG_S,
                )

    @staticmethod
    def _engine_s(worker: Worker | None) -> float | None:
        # While it loads it has no name yet: it is one of this node's children.
        return processor_s(os.getpid(), itself=False) if worker is None else processor_s(worker.pid)

    async def _ask_computed(self, peer: PeerId, target: str) -> float | None:
        assert self._swarm is not None
        told = await ask(self._swarm, peer, "computed", target)
        return float(told) if isinstance(told, (int, float)) else None

    def _learn(self) -> None:
        assert self._pool is not None
        for model, stats in self._pool.models():
            held = self.sharding.held.get(model.name)
            if held is not None and stats is not None and 0 < stats.decode_batch <= _ALONE:
                self.sharding.learnt.measured(held, stats.decode_tokens_per_s / stats.decode_batch)

    def _named(self, peer: PeerId) -> str:
        member = self._swarm.roster.get(peer) if self._swarm is not None else None
        return member.name if member is not None else peer

    def _hosts(self, peer: PeerId) -> list[str]:
        """Where a peer's machine may be reached: where it says that it listens, relays left out."""
        member = self._swarm.roster.get(peer) if self._swarm is not None else None
        return direct_hosts(member.record.addresses) if member is not None else []
