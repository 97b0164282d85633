"""What this node tells the swarm of its own models: offers (what they are) and loads (how they are doing)."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from backends.types import EngineStats
from mesh.faults import Faults
from mesh.records import Load, LoadState, Offer
from node.inventory import Entry, Inventory
from node.pool import Pool
from node.slots import Model, State

_STATES: dict[State, LoadState] = {
    State.ABSENT: "absent",
    State.LOADING: "loading",
    State.READY: "ready",
    State.UNLOADING: "absent",
}
_NO_STATS = EngineStats()


class Offers:
    """Reads the inventory and the pool; remembers what outlives a worker: its last rates and its faults."""

    def __init__(self, inventory: Inventory, pool: Pool) -> None:
        self._inventory = inventory
        self._pool = pool
        self._faults: defaultdict[str, Faults] = defaultdict(Faults)
        self._rates: dict[str, EngineStats] = {}

    def all(self) -> tuple[Offer, ...]:
        """Every model that can be opened here."""
        return tuple(offer for entry in self._inventory.entries if (offer := self.of(entry)) is not None)

    def of(self, entry: Entry) -> Offer | None:
        """One model; None when its file cannot be used."""
        if entry.needs is None:
            return None
        return Offer(
            model=entry.spec.name,
            digest=entry.digest,
            backend=entry.spec.backend,
            capabilities=tuple(capability.value for capability in entry.capabilities),
            context_tokens=entry.needs.context_tokens,
            slots=entry.needs.slots,
            aliases=entry.spec.file.aliases,
            memory_bytes=entry.needs.memory_bytes,
            sharded=entry.sharded,
        )

    def loads(self, now: float) -> tuple[Load, ...]:
        """How every model is doing."""
        state = {model.name: (model, stats) for model, stats in self._pool.models()}
        names = (entry.spec.name for entry in self._inventory.entries if entry.needs is not None)
        return tuple(self._load(name, *(state.get(name) or (None, None)), now=now) for name in names)

    def load(self, name: str, now: float) -> Load:
        """How one model is doing."""
        for model, stats in self._pool.models():
            if model.name == name:
                return self._load(name, model, stats, now=now)
        return self._load(name, None, None, now=now)

    def record(self, name: str, *, failed: bool, now: float) -> None:
        """A call on this node's own worker has ended; `failed` if that was this node's fault."""
        self._faults[name].record(failed=failed, now=now)

    def _load(self, name: str, model: Model | None, stats: EngineStats | None, *, now: float) -> Load:
        if stats is not None and stats.decode_tokens_per_s:
            self._rates[name] = stats
        rates = self._rates.get(name, _NO_STATS)
        prefill = stats.prefill_tokens_per_s if stats is not None else 0.0
        load = Load(
            name,
            "absent",
            prefill_tokens_per_s=prefill or rates.prefill_tokens_per_s,
            decode_tokens_per_s=rates.decode_tokens_per_s,
            decode_batch=rates.decode_batch,
            decode_gain=min(1.0, rates.decode_gain),
            load_s=self._pool.load_s(name),
            error_rate=min(1.0, self._faults[name].rate(now)) if name in self._faults else 0.0,
        )
        if model is None:
            return load
        failed = model.state is State.ABSENT and model.error is not None and now < model.retry_at
        return msgspec.structs.replace(
            load,
            state="failed" if failed else _STATES[model.state],
            slots_used=model.leased,
            slots=model.slots,
            queued=model.queue,
            queued_tokens=stats.queued_tokens if stats is not None else 0,
        )
