"""Plans as plain JSON: what GET /api/mesh/plans tells, and `mesh plan` and `mesh status` print."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backends.types import MeshError
from node.catalog import ModelSpec
from node.plan import Share, Split
from node.sharding import Sharding


def shown(sharding: Sharding, spec: ModelSpec) -> dict[str, Any]:
    """The plan of one model; as it is, where it is loaded so."""
    try:
        found, needs = sharding.plan(spec)
    except MeshError as error:
        return {"model": spec.name, "error": error.message}
    held = sharding.held.get(spec.name)
    split, why = found.split, list(found.why)
    if held is not None:
        # As it is, with what has been learnt since.
        slowdown = sharding.learnt.slowdown(spec.name)
        split = replace(held.split, token_s=held.split.token_s / held.slowdown * slowdown)
        if (better := sharding.better(held)) is not None:
            nodes = ", ".join(f"{share.place.name} {share.layers}" for share in (better.head, *better.workers))
            why = [*held.plan.why, f"Loaded now it would be split otherwise ({nodes}): `mesh models reload` does it."]
    return {
        "model": spec.name,
        "shard": spec.file.shard,
        "need_bytes": found.need_bytes,
        "fits": list(found.fits),
        "loaded": held is not None and not held.loading,
        "context_tokens": needs.context_tokens,
        "slots": needs.slots,
        "whole_tokens_per_s": round(1 / found.whole_token_s, 1) if found.whole_token_s else None,
        "split": None if split is None else _split(split),
        "why": why,
    }


def _split(split: Split) -> dict[str, Any]:
    return {
        "way": split.way,
        "nodes": [_share(split.head, head=True), *(_share(share, head=False) for share in split.workers)],
        "tokens_per_s": round(split.tokens_per_s, 1),
        "load_s": round(split.load_s, 1),
    }


def _share(share: Share, *, head: bool) -> dict[str, Any]:
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
