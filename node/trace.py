"""What happened to the last requests: a timeline each, and why each went where it went. In memory, bounded.

Times are seconds since the request arrived at THIS node, by its own monotonic clock; `merged` lays a peer's timeline
under the moment at which the call was sent to it, so that no two machines' clocks are compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec
import trio

MAX_TRACES = 1000
MAX_EVENTS = 64
"""In one trace; a call that is rescued again and again must not grow without end."""


class TraceEvent(msgspec.Struct, frozen=True, array_like=True):
    """Something happened `at_s` after the request arrived."""

    at_s: float
    what: str
    """arrived, route, hold, send, lease, open, prepared, loaded, accepted, first_chunk, bounced, lost, resumed, ended,
    served."""
    detail: str = ""
    node: str = ""
    """The name of a peer that it is about."""


_TERMS = ("total_s", "queue_s", "load_s", "prefill_s", "decode_s", "round_trip_s", "penalty_s")
_SHORTEST_S = 0.001
"""An answer that took less is no measure of a rate."""


class Trace:
    """One request at this node."""

    def __init__(self, request_id: str, *, model: str = "", entry: str = "") -> None:
        self.request_id = request_id
        self.model = model
        self.entry = entry  # the peer that sent the call here; empty at the entry node itself
        self.events: list[TraceEvent] = []
        self.decisions: list[dict[str, Any]] = []  # policy, reason, chosen, rows of mesh.routing.explain
        self.outcome = ""
        self.prompt_tokens = 0
        self.tokens = 0  # of the answer, as far as the client has got it
        self._started = trio.current_time()
        self.note("arrived")

    def note(self, what: str, detail: str = "", *, node: str = "", at: float | None = None) -> None:
        """Append an event of now, or of `at` by trio's clock."""
        if len(self.events) < MAX_EVENTS:
            at_s = self._age_s if at is None else max(0.0, at - self._started)
            self.events.append(TraceEvent(at_s, what, detail[:200], node))

    def decided(self, decision: dict[str, Any]) -> None:
        """Append what the router has decided."""
        if len(self.decisions) < MAX_EVENTS:
            self.decisions.append({"at_s": round(self._age_s, 4)} | decision)

    @property
    def node(self) -> str:
        """Where it went last; empty while it is nowhere."""
        return next((event.node for event in reversed(self.events) if event.what in ("send", "lease")), "")

    @property
    def _age_s(self) -> float:
        return trio.current_time() - self._started

    def summary(self) -> dict[str, Any]:
        """A line of the list of requests."""
        times = {event.what: event.at_s for event in reversed(self.events)}
        age_s = self._age_s
        total_s = self.events[-1].at_s if self.outcome else age_s
        first_s = times.get("first_chunk")
        answering_s = total_s - first_s if first_s is not None else 0.0
        return {
            "id": self.request_id,
            "model": self.model,
            "outcome": self.outcome or "running",
            "node": self.node,
            "route": [event.node for event in self.events if event.what == "send"],
            "why": self._why(),
            "ago_s": round(age_s, 3),
            # Until an engine took it: held here, in a node's queue, while the model was loaded.
            "queue_s": times.get("accepted", first_s),
            "first_chunk_s": first_s,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            # Of those after the first one, as they came in here.
            "tokens_per_s": round((self.tokens - 1) / answering_s, 2)
            if self.tokens > 1 and answering_s > _SHORTEST_S
            else None,
            "total_s": total_s,
            "resumed": sum(event.what == "resumed" for event in self.events),
            "bounced": sum(event.what == "bounced" for event in self.events),
        }

    def _why(self) -> dict[str, Any] | None:
        """The last choice of a node, with the terms of the one that was chosen."""
        for decision in reversed(self.decisions):
            for row in decision.get("candidates", ()):
                if row["node"] == decision["chosen"]:
                    terms = {term: round(row[term], 4) for term in _TERMS}
                    told = {"policy": decision["policy"], "reason": decision["reason"], "node": row["node"]}
                    return told | terms | {"candidates": len(decision["candidates"])}
        return None

    def timeline(self) -> list[dict[str, Any]]:
        """The events as plain objects."""
        return [
            {"at_s": round(event.at_s, 4), "what": event.what, "detail": event.detail, "node": event.node}
            for event in self.events
        ]


class Traces:
    """The last requests, by id; the same id again replaces the older one."""

    def __init__(self, limit: int = MAX_TRACES) -> None:
        self._limit = limit
        self._entered: OrderedDict[str, Trace] = OrderedDict()  # at this node by a client
        self._served: OrderedDict[str, Trace] = OrderedDict()  # sent here by a peer

    def begin(self, request_id: str, *, model: str = "", entry: str = "") -> Trace:
        """A request has arrived, from a client or (`entry`) from a peer."""
        kept = self._served if entry else self._entered
        trace = kept[request_id] = Trace(request_id, model=model, entry=entry)
        kept.move_to_end(request_id)
        if len(kept) > self._limit:
            kept.popitem(last=False)
        return trace

    def get(self, request_id: str) -> Trace | None:
        """A request that entered here."""
        return self._entered.get(request_id)

    def served(self, request_id: str) -> Trace | None:
        """A request that a peer sent here."""
        return self._served.get(request_id)

    def recent(self, count: int) -> list[Trace]:
        """The last requests that entered here, newest first."""
        return list(reversed(self._entered.values()))[:count]


class _Row(msgspec.Struct):
    """An event as `timeline` gives it, told by a peer."""

    at_s: float
    what: str
    detail: str = ""
    node: str = ""


def merged(own: Trace, own_name: str, others: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One timeline over all nodes; `others` are the timelines of peers, by name: what is none is left out.

    A peer's events begin when the call reached it, which is at the earliest when it was sent.
    """
    rows = [event | {"where": own_name} for event in own.timeline()]
    for name, told in others.items():
        try:
            timeline = [msgspec.to_builtins(row) for row in msgspec.convert(told, list[_Row])[:MAX_EVENTS]]
        except msgspec.ValidationError:
            continue
        sent = max((event.at_s for event in own.events if event.what == "send" and event.node == name), default=0.0)
        rows += [event | {"at_s": round(sent + event["at_s"], 4), "where": name} for event in timeline]
    return sorted(rows, key=lambda row: row["at_s"])
