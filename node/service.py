"""What the API tells of this node: api.ports.Node."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import psutil

from api.ports import ModelCard
from backends.engine import Backend
from backends.types import Capability
from node import __version__
from node.hardware import probe
from node.inventory import Inventory
from node.metrics import Metrics
from node.pool import Pool
from node.view import View
from node.weights import size_of

_CAPABILITIES = frozenset(Capability)


class NodeService:
    """The node's own facts, put together from the rooms that know them."""

    def __init__(
        self,
        inventory: Inventory,
        pool: Pool,
        metrics: Metrics,
        backends: Mapping[str, Backend],
        view: View,
    ) -> None:
        self._inventory = inventory
        self._pool = pool
        self._metrics = metrics
        self._backends = backends
        self._view = view
        self.accepting = False
        self.on_reload: list[Callable[[], None]] = []

    def models(self) -> Sequence[ModelCard]:
        """Those of the whole swarm: any node answers for all."""
        cards = {card.name: card for card in self._own_models()}
        for name, found in self._view.models().items():
            for member, offer in found:
                load = member.loads.get(name)
                card = cards.get(name)
                if card is None or not card.capabilities:  # nobody has it here, or it cannot be opened here
                    card = ModelCard(
                        name=name, backend=offer.backend, capabilities=(), created=0, aliases=offer.aliases
                    )
                loaded = card.loaded or (load is not None and load.state == "ready")
                offered = (Capability(word) for word in offer.capabilities if word in _CAPABILITIES)
                can = tuple(dict.fromkeys((*card.capabilities, *offered)))  # one of them may have eyes, another none
                cards[name] = replace(card, capabilities=can, loaded=loaded, nodes=(*card.nodes, member.name))
        return [card for _, card in sorted(cards.items())]

    def _own_models(self) -> Sequence[ModelCard]:
        cards = []
        for entry in self._inventory.entries:
            worker = self._pool.loaded(entry.spec.name)
            cards.append(
                ModelCard(
                    nodes=(self._view.own_name,),
                    digest=entry.digest.partition(":")[2],
                    name=entry.spec.name,
                    backend=entry.spec.backend,
                    capabilities=entry.capabilities,
                    created=entry.spec.created,
                    aliases=entry.spec.file.aliases,
                    loaded=worker is not None,
                    size_bytes=size_of(entry.spec.path),
                    memory_bytes=entry.needs.memory_bytes if entry.needs else 0,
                    context_tokens=entry.needs.context_tokens if entry.needs else 0,
                    expires_at=time.time() + self._pool.expires_in_s(entry.spec.name),
                    details=dict(worker.info.details) if worker else {},
                )
            )
        return cards

    def default_model(self, capability: Capability) -> str | None:
        own = (entry.spec.name for entry in self._inventory.entries if capability in entry.capabilities)
        return next(own, None) or next((card.name for card in self.models() if capability in card.capabilities), None)

    def starting(self) -> bool:
        return not self.accepting

    def system(self) -> Mapping[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "memory_bytes": psutil.Process().memory_info().rss,
            "memory_budget_bytes": self._pool.budget_bytes,
            "hardware": asdict(probe()),
            "backends": [
                {"name": backend.name, "licence": backend.licence, "unavailable": backend.unavailable()}
                for backend in self._backends.values()
            ],
            "models": [self._model(name) for name in (entry.spec.name for entry in self._inventory.entries)],
            "broken_model_files": dict(self._inventory.broken),
            "swarm": self._view.has_swarm,
            # LocalAI's own key
            "loaded_models": [{"id": card.name, "backend": card.backend} for card in self._own_models() if card.loaded],
        }

    def _model(self, name: str) -> dict[str, Any]:
        entry = self._inventory.resolve(name)
        state = {model.name: (model, stats) for model, stats in self._pool.models()}.get(name)
        shown: dict[str, Any] = {
            "name": name,
            "backend": entry.spec.backend,
            "capabilities": list(entry.capabilities),
            "pinned": entry.spec.file.pinned,
            "state": "absent",
            "error": entry.error.message if entry.error else None,
            "memory_bytes": entry.needs.memory_bytes if entry.needs else 0,
            "context_tokens": entry.needs.context_tokens if entry.needs else 0,
            "slots": entry.needs.slots if entry.needs else 0,
            "slots_leased": 0,
            "queue": 0,
        }
        if state is not None:
            model, stats = state
            shown |= {
                "state": model.state.name.lower(),
                "slots": model.slots,
                "slots_leased": model.leased,
                "queue": model.queue,
                "load_progress": self._pool.progress(name),
                "error": shown["error"] or (model.error.message if model.error else None),
            }
            if stats is not None:
                shown |= {
                    "engine_memory_bytes": stats.memory_bytes,
                    "prefill_tokens_per_s": round(stats.prefill_tokens_per_s, 1),
                    "decode_tokens_per_s": round(stats.decode_tokens_per_s, 1),
                }
        return shown

    def metrics(self) -> tuple[bytes, str]:
        return self._metrics.exposition()

    def reload(self, keep: str = "") -> None:
        """`keep`: a model that stays as it is although its file has changed."""
        for name in self._inventory.reload():
            if name != keep:
                self._pool.unload(name)  # a busy one keeps what it has until it is next idle
        for tell in self.on_reload:
            tell()
