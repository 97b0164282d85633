"""What this node has measured of models over several nodes, for the next plan: links, caches, and how wrong it was."""

from __future__ import annotations

from mesh.transport import PeerId
from node.held import Held

_AVERAGE = 0.3  # of a new measurement
_MIN_MEASURED_BYTES = 4 << 20
_KEPT_BYTES = 64 << 20
"""A layer of so much has tensors that a server keeps (llama.cpp: those over 10 MiB)."""


class Learnt:
    """Forgotten when the node ends."""

    def __init__(self) -> None:
        self._links: dict[PeerId, float] = {}
        self._slowdown: dict[str, float] = {}
        self._cached: set[tuple[PeerId, str]] = set()

    def link_bytes_per_s(self, peer: PeerId) -> float:
        """To a node; 0: nothing has been loaded there yet."""
        return self._links.get(peer, 0.0)

    def slowdown(self, model: str) -> float:
        """How much slower than predicted a model has turned out to be."""
        return self._slowdown.get(model, 1.0)

    def keeps(self, peer: PeerId, digest: str) -> bool:
        """Whether a node has had these weights before, and kept them."""
        return (peer, digest) in self._cached

    def loaded(self, held: Held, seconds: float) -> None:
        """A load has succeeded: what its links carried, and who keeps weights for the next time."""
        if held.split.way != "layers":
            return  # weights are not sent
        for share in held.split.workers:
            peer = share.place.id
            if share.weight_bytes > share.layers * _KEPT_BYTES:
                self._cached.add((peer, held.digest))
            sent = held.ends[peer].traffic.sent_bytes
            # Workers are loaded one after the other: each by its part of the time.
            part_s = seconds * share.weight_bytes / max(1, sum(s.weight_bytes for s in held.split.workers))
            if sent > _MIN_MEASURED_BYTES and part_s > 0:
                old, rate = self._links.get(peer, 0.0), sent / part_s
                self._links[peer] = old + _AVERAGE * (rate - old) if old else rate

    def measured(self, held: Held, tokens_per_s: float) -> None:
        """What a model makes for one sequence: how far the prediction was off."""
        if tokens_per_s > 0:
            predicted_s = held.split.token_s / held.slowdown
            self._slowdown[held.plan.model] = min(100.0, max(0.01, 1 / tokens_per_s / predicted_s))
