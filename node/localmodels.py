"""This node's models for an operator: what is on disk and in memory, and loading, unloading, pinning them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from api.ports import ModelAction
from backends.types import Busy, CallerError, MeshError
from mesh.records import Offer, check_printable
from node.catalog import CatalogError
from node.inventory import Entry, Inventory
from node.pinning import pin
from node.pool import Pool
from node.slots import State
from node.weights import size_of

_Text: TypeAlias = Annotated[str, Meta(max_length=200)]
_Words: TypeAlias = Annotated[tuple[_Text, ...], Meta(max_length=64)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Number: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model of one node, as nodes tell each other; bounded, since it comes from other machines."""

    name: _Text
    digest: _Text = ""
    backend: _Text = ""
    aliases: _Words = ()
    capabilities: _Words = ()
    state: Literal["absent", "loading", "ready", "unloading", "failed", "unusable", "unknown"] = "absent"
    """`failed`: its last load has failed; `unusable`: its file cannot be opened here; `unknown`: the node is silent."""
    error: Annotated[str, Meta(max_length=2000)] = ""
    pinned: bool = False
    pinnable: bool = False
    """Whether there is a file in which that can be noted."""
    sharded: bool = False
    size_bytes: _Count = 0
    """Of its weights on disk."""
    memory_bytes: _Count = 0
    """That it needs when loaded."""
    quantisation: _Text = ""
    context_tokens: _Count = 0
    slots: _Count = 0
    slots_used: _Count = 0
    queued: _Count = 0
    load_progress: _Number = 0.0
    """The share of a running load that is done."""
    load_s: _Number = 0.0
    """What the last load took."""
    engine_memory_bytes: _Count = 0
    prefill_tokens_per_s: _Number = 0.0
    decode_tokens_per_s: _Number = 0.0
    expires_in_s: Annotated[float, Meta(ge=0)] | None = None
    """Until it is unloaded if nobody uses it; None: never."""


class LocalModels:
    """Everything from the trio thread."""

    def __init__(self, inventory: Inventory, pool: Pool, reload: Callable[[str], None]) -> None:
        """`reload` reads the model files again and lets the named model stay loaded although its file has changed."""
        self._inventory = inventory
        self._pool = pool
        self._reload = reload

    def rows(self) -> list[ModelRow]:
        """Every model of this node, those that cannot be opened among them."""
        state = {model.name: (model, stats) for model, stats in self._pool.models()}
        return [self._row(entry, *(state.get(entry.spec.name) or (None, None))) for entry in self._inventory.entries]

    async def act(self, name: str, action: ModelAction) -> str:
        """Do it; the model's own name.

        Raises ModelMissing, ModelDisabled, CallerError, Busy, and what loading raises.
        """
        entry = self._inventory.resolve(name)
        match action:
            case "load":
                await self._load(entry)
            case "unload":
                self._unload(entry.spec.name)
            case "pin" | "unpin":
                self._pin(entry, pinned=action == "pin")
        return entry.spec.name

    async def _load(self, entry: Entry) -> None:
        needs = entry.checked_needs
        if self._pool.loaded(entry.spec.name) is not None:
            return  # waiting for a slot of it is not what was asked
        async with self._pool.lease(
            entry.spec, memory_bytes=needs.memory_bytes, slots=needs.slots, client="operator", weight=1
        ):
            pass

    def _unload(self, name: str) -> None:
        model = next((model for model, _ in self._pool.models() if model.name == name), None)
        if model is None or model.state in (State.ABSENT, State.UNLOADING):
            return
        if model.state is State.LOADING:
            raise Busy(f"Model {name} is being loaded; it can be unloaded when that has ended.", retry_after_s=5)
        if not model.idle:
            calls = len(model.leases) + model.queue
            what = "one call is" if calls == 1 else f"{calls} calls are"
            raise Busy(f"Model {name} is not unloaded while it is needed: {what} running or waiting.", retry_after_s=5)
        self._pool.unload(name)

    def _pin(self, entry: Entry, *, pinned: bool) -> None:
        spec = entry.spec
        if spec.source is None:
            raise CallerError(
                f"Model {spec.name} comes with the node and has no file in which that could be noted.", param="model"
            )
        try:
            pin(spec.source, pinned)
        except CatalogError as error:
            raise CallerError(f"Model {spec.name} stays as it is. {error}", param="model") from error
        self._reload(spec.name)
        self._pool.pin(spec.name, pinned=pinned)

    def _row(self, entry: Entry, model: Any, stats: Any) -> ModelRow:
        spec, needs = entry.spec, entry.needs
        expires_s = self._pool.expires_in_s(spec.name)
        row = ModelRow(
            name=spec.name,
            digest=entry.digest,
            backend=spec.backend,
            aliases=spec.file.aliases[:64],
            capabilities=tuple(capability.value for capability in entry.capabilities),
            state="absent" if needs is not None else "unusable",
            error=_brief(entry.error),
            pinned=spec.file.pinned,
            pinnable=spec.source is not None,
            sharded=entry.sharded,
            size_bytes=size_of(spec.path),
            memory_bytes=needs.memory_bytes if needs is not None else 0,
            quantisation=needs.quantisation if needs is not None else "",
            context_tokens=needs.context_tokens if needs is not None else 0,
            slots=needs.slots if needs is not None else 0,
            load_s=self._pool.load_s(spec.name),
        )
        if model is None:
            return row
        failed = model.state is State.ABSENT and model.error is not None
        loaded = model.state is State.READY
        return msgspec.structs.replace(
            row,
            state="failed" if failed else model.state.name.lower(),
            error=row.error or _brief(model.error),
            slots=model.slots,
            slots_used=model.leased,
            queued=model.queue,
            load_progress=self._pool.progress(spec.name) or 0.0,
            engine_memory_bytes=stats.memory_bytes if stats is not None else 0,
            prefill_tokens_per_s=round(stats.prefill_tokens_per_s, 1) if stats is not None else 0.0,
            decode_tokens_per_s=round(stats.decode_tokens_per_s, 1) if stats is not None else 0.0,
            expires_in_s=round(max(0.0, expires_s), 1) if loaded and expires_s < math.inf else None,
        )


def told_rows(told: Any) -> list[ModelRow] | None:
    """A peer's rows, from the plain values of its answer; None for what are none."""
    try:
        rows: list[ModelRow] = msgspec.convert(told, Annotated[list[ModelRow], Meta(max_length=1000)])
        for row in rows:
            check_printable(msgspec.structs.replace(row, error=" ".join(row.error.split())))
    except (msgspec.ValidationError, ValueError):
        return None
    return rows


def offered_row(offer: Offer) -> ModelRow:
    """What a node's record says of a model, while the node itself does not answer."""
    return ModelRow(
        name=offer.model,
        digest=offer.digest,
        backend=offer.backend,
        aliases=offer.aliases,
        capabilities=offer.capabilities,
        state="unknown",
        sharded=offer.sharded,
        memory_bytes=offer.memory_bytes,
        context_tokens=offer.context_tokens,
        slots=offer.slots,
    )


def _brief(error: MeshError | None) -> str:
    return "" if error is None else " ".join(error.message.split())[:2000]
