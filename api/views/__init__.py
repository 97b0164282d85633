"""What /api/mesh… answers, as pydantic classes: the shape that pages rely on.

`node/` makes plain JSON for speed and lets it pass as it is; a test holds what a living node answers to these classes,
field by field. `scripts/typescript.py` makes the dashboard's TypeScript of them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from api.views.base import LoadState, NodeState, View
from api.views.charts import Charts, ChartSamples, NodeChart
from api.views.events import Ended, LoadChanged, Missed, PeerChanged, Routed
from api.views.models import ModelActed, ModelRow, Models, NodeModels, Plan, PlannedShare, PlannedSplit, Plans
from api.views.requests import Candidate, Decision, Explanation, Requests, RequestSummary, TimelineRow, Trace, Why
from api.views.swarm import Hardware, Load, Node, OfferedModel, Swarm, Target, Variant, VariantDigest

__all__ = [
    "ANSWERS",
    "EVENTS",
    "AnyEvent",
    "Candidate",
    "ChartSamples",
    "Charts",
    "Decision",
    "Ended",
    "Explanation",
    "Hardware",
    "Load",
    "LoadChanged",
    "LoadState",
    "Missed",
    "ModelActed",
    "ModelRow",
    "Models",
    "Node",
    "NodeChart",
    "NodeModels",
    "NodeState",
    "OfferedModel",
    "PeerChanged",
    "Plan",
    "PlannedShare",
    "PlannedSplit",
    "Plans",
    "RequestSummary",
    "Requests",
    "Routed",
    "Swarm",
    "Target",
    "TimelineRow",
    "Trace",
    "Variant",
    "VariantDigest",
    "View",
    "Why",
]

ANSWERS: tuple[type[View], ...] = (Swarm, Requests, Explanation, Trace, Plans, Models, ModelActed, Charts)
"""What the paths answer."""

EVENTS: tuple[type[View], ...] = (PeerChanged, LoadChanged, Missed, Routed, Ended)
"""What the stream of events holds; `kind` tells them apart."""

AnyEvent: TypeAlias = Annotated[PeerChanged | LoadChanged | Missed | Routed | Ended, Field(discriminator="kind")]
"""One event, whichever it is."""
