"""Models of one node, seen and acted on through another."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.nodes import RunningNode, Swarm


def act(node: RunningNode, model: str, action: str, *, on: str = "") -> httpx.Response:
    with node.http as client:
        return client.post("/api/mesh/models", json={"node": on, "model": model, "action": action})


def row(seen_from: RunningNode, node: str, model: str) -> dict[str, Any]:
    """What the first says of a model of the second."""
    nodes = {one["name"]: one for one in seen_from.get("/api/mesh/models")["nodes"]}
    found: dict[str, Any] = {one["name"]: one for one in nodes[node]["models"]}[model]
    return found


def test_a_model_is_loaded_pinned_and_unloaded_from_elsewhere(three: Swarm) -> None:
    a, b = three["a"], three["b"]
    assert act(a, "afar", "load", on="b").json() == {"model": "far", "action": "load"}, "by an alias, too"
    assert (row(a, "b", "far")["state"], row(b, "b", "far")["state"]) == ("ready", "ready")
    file = b.data / "models" / "far.yaml"
    before = file.read_text()
    assert act(a, "far", "pin", on="b").status_code == 200
    assert sorted(file.read_text().splitlines()) == sorted([*before.splitlines(), "pinned: true"])
    assert (row(a, "b", "far")["pinned"], row(a, "b", "far")["state"]) == (True, "ready")
    assert act(a, "far", "unpin", on="b").status_code == 200
    assert not row(a, "b", "far")["pinned"]
    assert act(a, "far", "unload", on="b").status_code == 200
    assert row(a, "b", "far")["state"] in ("unloading", "absent")


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [("broken", 500, "no such luck"), ("nowhere", 404, "not found")],
)
def test_what_goes_wrong_there_is_told_in_its_words(three: Swarm, model: str, status: int, says: str) -> None:
    answer = act(three["a"], model, "load", on="b")
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_a_load_that_failed_is_seen_from_elsewhere(three: Swarm) -> None:
    act(three["a"], "broken", "load", on="b")
    seen = row(three["c"], "b", "broken")
    assert seen["state"] == "failed"
    assert "no such luck" in seen["error"]


def test_a_node_that_is_gone_is_the_reason(three: Swarm) -> None:
    three.kill("c")
    three["a"].until_sees(c="dead")
    answer = act(three["a"], "rare", "load", on="c")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "node_gone")
    gone = next(one for one in three["a"].get("/api/mesh/models")["nodes"] if one["name"] == "c")
    assert (gone["answered"], gone["state"]) == (False, "dead")
    assert {model["state"] for model in gone["models"]} == {"unknown"}
