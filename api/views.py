"""What /api/mesh… answers, as pydantic classes: the shape that pages rely on.

`node/` makes plain JSON for speed and lets it pass as it is; a test holds what a living node answers to these classes,
field by field. `scripts/typescript.py` makes the dashboard's TypeScript of them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

NodeState = Literal["alive", "suspect", "dead", "left", "incompatible"]
LoadState = Literal["absent", "loading", "ready", "failed"]


class View(BaseModel):
    """Base of all: every field is there, and no other."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


# -- GET /api/mesh --


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


# -- GET /api/mesh/events --


class PeerChanged(View):
    """Something about a node has changed; what it is now, GET /api/mesh tells."""

    kind: Literal["joined", "left", "suspect", "alive", "dead", "forgotten", "record", "incompatible", "banned"]
    id: str
    node: str
    detail: str = ""


class LoadChanged(View):
    """How a node's models are doing now."""

    kind: Literal["load"]
    id: str
    node: str
    loads: list[Load] = Field(default_factory=list)


class Missed(View):
    """The reader was too slow: so many events are lost. Read GET /api/mesh afresh."""

    kind: Literal["missed"]
    id: str = ""
    node: str = ""
    count: int = 0


class Routed(View):
    """A request that entered at the answering node has been given to a node; an empty name: to none."""

    kind: Literal["route"]
    request: str
    model: str
    node: str


class Ended(View):
    """A request that entered at the answering node has ended."""

    kind: Literal["ended"]
    request: str
    model: str
    node: str
    outcome: str


# -- GET /api/mesh/requests… --


class Why(View):
    """The last choice of a node for a request, with the terms of its expected time in seconds."""

    policy: str
    reason: str
    node: str
    total_s: float
    queue_s: float
    load_s: float
    prefill_s: float
    decode_s: float
    round_trip_s: float
    penalty_s: float
    candidates: int  # how many there were


class RequestSummary(View):
    """One request that entered at the answering node. All times but `ago_s` are since it arrived."""

    id: str
    model: str
    outcome: str  # running, ok, cancelled, or the kind of an error
    node: str
    route: list[str]  # nodes that it was sent to, in order
    why: Why | None
    ago_s: float  # since it arrived
    queue_s: float | None  # until an engine took it: held here, in a node's queue, while the model was loaded
    first_chunk_s: float | None
    prompt_tokens: int
    tokens: int  # of the answer so far
    tokens_per_s: float | None
    total_s: float
    resumed: int
    bounced: int


class Requests(View):
    """The last of them, newest first."""

    requests: list[RequestSummary]


class Candidate(View):
    """A place that a request could have gone to, with the terms of its expected time in seconds."""

    chosen: bool
    node: str
    peer: str
    model: str
    digest: str
    usable: bool
    reason: str
    slots_free: int
    slots: int
    total_s: float
    queue_s: float
    load_s: float
    prefill_s: float
    decode_s: float
    round_trip_s: float
    penalty_s: float
    words: str


class Decision(View):
    """One choice of the router."""

    at_s: float
    policy: str
    reason: str
    chosen: str
    candidates: list[Candidate]


class Explanation(RequestSummary):
    """Why a request went where it went."""

    decisions: list[Decision]


class TimelineRow(View):
    """Something that happened to a request, `at_s` after it arrived."""

    at_s: float
    what: str
    detail: str
    node: str
    where: str


class Trace(RequestSummary):
    """A request's way over all nodes."""

    timeline: list[TimelineRow]


# -- GET /api/mesh/plans --


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


# -- GET and POST /api/mesh/models --


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


# -- GET /api/mesh/charts --


class ChartSamples(View):
    """A node's samples, oldest first, one a step: see node/history.py for what each of them counts."""

    age_s: float  # ago that the last one ended
    up_s: float  # how long the node has run
    prefill_tokens_per_s: list[float]
    decode_tokens_per_s: list[float]
    slots_used: list[int]
    running: list[int]
    queued: list[int]
    finished: list[int]
    failed: list[int]
    first_token_s: list[list[float]]


class NodeChart(View):
    """One node; without samples while it has told none."""

    id: str
    name: str
    self: bool
    state: NodeState
    samples: ChartSamples | None


class Charts(View):
    """The last `span_s` seconds of all nodes."""

    step_s: float
    span_s: float
    nodes: list[NodeChart]


ANSWERS: tuple[type[View], ...] = (Swarm, Requests, Explanation, Trace, Plans, Models, ModelActed, Charts)
"""What the paths answer."""

EVENTS: tuple[type[View], ...] = (PeerChanged, LoadChanged, Missed, Routed, Ended)
"""What the stream of events holds; `kind` tells them apart."""

AnyEvent: TypeAlias = Annotated[PeerChanged | LoadChanged | Missed | Routed | Ended, Field(discriminator="kind")]
"""One event, whichever it is."""
