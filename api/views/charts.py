"""GET /api/mesh/charts: the last quarter of an hour."""

from __future__ import annotations

from api.views.base import NodeState, View


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
