"""GET /api/mesh/events: what changes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.views.base import View
from api.views.swarm import Load


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
