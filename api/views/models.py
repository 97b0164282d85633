"""GET /api/mesh/plans, GET and POST /api/mesh/models: who has what, and who could hold it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.views.base import NodeState, View


class PlannedShare(View):
    """What one machine would hold of a model."""

    node: str
    head: bool
    layers: int
    weight_bytes: int
    memory_bytes: int
    free_bytes: int
    cached: bool
    round_trip_s: float
    link_bytes_per_s: float
    bytes_per_s: float


class PlannedSplit(View):
    """A model over several machines."""

    way: str  # layers, one machine after the other; ranks, all of them at every layer
    nodes: list[PlannedShare]
    tokens_per_s: float
    load_s: float


class Plan(View):
    """Who can hold a model. With `error` all else is missing."""

    model: str
    error: str = ""
    shard: str = ""
    need_bytes: int = 0
    fits: list[str] = Field(default_factory=list)
    loaded: bool = False
    context_tokens: int = 0
    slots: int = 0
    whole_tokens_per_s: float | None = None
    split: PlannedSplit | None = None
    why: list[str] = Field(default_factory=list)


class Plans(View):
    """Of every model of the answering node."""

    plans: list[Plan]


class ModelRow(View):
    """A model of one node. Of a node that is silent, only what its record says, in the state `unknown`."""

    name: str
    digest: str
    backend: str
    aliases: list[str]
    capabilities: list[str]
    state: Literal["absent", "loading", "ready", "unloading", "failed", "unusable", "unknown"]
    error: str
    pinned: bool
    pinnable: bool  # whether there is a file in which that can be noted
    sharded: bool
    size_bytes: int  # of its weights on disk
    memory_bytes: int  # that it needs when loaded
    quantisation: str
    context_tokens: int
    slots: int
    slots_used: int
    queued: int
    load_progress: float  # the share of a running load that is done
    load_s: float  # what the last load took
    engine_memory_bytes: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    expires_in_s: float | None  # until it is unloaded if nobody uses it; null: never


class NodeModels(View):
    """What one node has."""

    id: str
    name: str
    self: bool
    state: NodeState
    answered: bool
    models: list[ModelRow]


class Models(View):
    """What all nodes have, the answering one first."""

    nodes: list[NodeModels]


class ModelActed(View):
    """An action on a model has been carried out."""

    model: str
    action: Literal["load", "unload", "pin", "unpin"]
