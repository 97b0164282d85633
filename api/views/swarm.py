"""GET /api/mesh: all nodes."""

from __future__ import annotations

from api.views.base import LoadState, NodeState, View


class Hardware(View):
    """What a node runs on."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    accelerators: list[str]
    accelerator_memory_bytes: int  # of all of them together; 0: not known


class Load(View):
    """How busy a model is on a node. Rates are moving averages; 0: not measured yet."""

    model: str
    state: LoadState
    slots_used: int
    slots: int
    queued: int
    queued_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_batch: float
    decode_gain: float
    load_s: float
    error_rate: float


class OfferedModel(View):
    """A model that a node can serve. `load` is missing until the node has told."""

    model: str
    digest: str
    backend: str
    capabilities: list[str]
    context_tokens: int
    slots: int
    aliases: list[str]
    load_s: float
    memory_bytes: int
    sharded: bool
    load: Load | None = None


class Target(View):
    """Memory that a node lends to one other, for layers of a model."""

    name: str
    version: str
    devices: list[str]
    memory_bytes: int
    bytes_per_s: float
    leased_by: str  # a name; empty: it can be had


class Node(View):
    """One node of the swarm, as the node that answers sees it. Durations are by its own clock."""

    self: bool
    state: NodeState
    round_trip_s: float
    last_heard_s: float  # ago
    last_seen: str  # the same as a time of day of the answering node
    relayed: bool
    in_flight: int
    id: str
    name: str
    version: str
    protocol: int
    addresses: list[str]
    roles: list[str]
    exposes: list[str]
    targets: list[Target]
    memory_budget_bytes: int
    api_url: str
    hardware: Hardware
    models: list[OfferedModel]


class VariantDigest(View):
    """One of the files that share a name, and who has it."""

    digest: str
    nodes: list[str]


class Variant(View):
    """A name under which the swarm holds more than one model."""

    model: str
    digests: list[VariantDigest]


class Swarm(View):
    """The whole view."""

    name: str
    id: str
    left: bool
    nodes: list[Node]
    banned: list[str]
    variants: list[Variant]
