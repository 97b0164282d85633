"""GET /api/mesh/requests…: the last requests, why they went where they went, and what happened to them."""

from __future__ import annotations

from api.views.base import View


class Terms(View):
    """An expected completion time and its parts, in seconds."""

    total_s: float
    queue_s: float
    load_s: float
    prefill_s: float
    decode_s: float
    round_trip_s: float
    penalty_s: float


class Why(Terms):
    """The last choice of a node for a request, with the terms of its expected time in seconds."""

    policy: str
    reason: str
    node: str
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


class Candidate(Terms):
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
