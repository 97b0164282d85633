"""What living nodes answer at /api/mesh… is what api/views says, field by field: pages are built on it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pydantic import TypeAdapter

from api import views
from tests.support.nodes import RunningNode, Swarm
from tests.swarm.chats import chats

REQUEST = "seen-by-views"
EVENT: TypeAdapter[object] = TypeAdapter(views.AnyEvent)


@pytest.fixture
async def entry(three: Swarm) -> RunningNode:
    """A node that has sent a chat to another one."""
    [told] = await chats(three["a"], "far", ["Hello"], headers={"X-Correlation-ID": REQUEST}, max_tokens=3)
    assert told.done
    return three["a"]


@pytest.mark.parametrize(
    ("path", "view"),
    [
        ("/api/mesh", views.Swarm),
        ("/api/mesh/requests", views.Requests),
        (f"/api/mesh/requests/{REQUEST}/explain", views.Explanation),
        (f"/api/mesh/requests/{REQUEST}/trace", views.Trace),
        ("/api/mesh/plans", views.Plans),
        ("/api/mesh/models", views.Models),
        ("/api/mesh/charts", views.Charts),
    ],
)
async def test_an_answer_is_as_it_is_described(entry: RunningNode, path: str, view: type[views.View]) -> None:
    with entry.http as client:
        view.model_validate_json(client.get(path).raise_for_status().content)


def test_the_view_holds_what_pages_show(three: Swarm) -> None:
    seen = views.Swarm.model_validate(three["a"].get("/api/mesh"))
    assert {node.name for node in seen.nodes} >= {"a", "b", "c"}
    own, *others = seen.nodes
    assert own.self
    assert not any(node.self for node in others)
    assert all(node.hardware.cores > 0 and node.memory_budget_bytes > 0 for node in seen.nodes if node.state == "alive")
    assert all(model.load is not None for model in own.models)


async def test_events_are_as_they_are_described(three: Swarm) -> None:
    """A chat that runs here: its way, its end, and what it does to this node's own load in between."""
    node = three["a"]
    kinds = set()
    with node.http as client, client.stream("GET", "/api/mesh/events", timeout=30.0) as answer:
        lines = answer.iter_lines()
        next(lines)
        with client.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": "near", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 3},
            headers={"X-Correlation-ID": REQUEST},
        ) as chat:
            chat.read()
        for event in _events(lines):
            EVENT.validate_json(event)
            told = json.loads(event)
            if told["kind"] == "load" and told["node"] == "a":
                kinds.add("load")
            if told.get("request") == REQUEST:
                kinds.add(told["kind"])
            if kinds == {"route", "ended", "load"}:
                break
    assert kinds == {"route", "ended", "load"}


def _events(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
