"""A model that three nodes hold together as MLX's ranks, over the mesh: what it says is what one node says."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from backends.mlx import backend
from tests.support.mlxmodels import write_tiny_llama
from tests.support.nodes import RunningNode, Swarm, mesh_command, write_model
from tests.swarm.chats import chats

missing = backend.unavailable()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"NOTHING OF MLX IS TESTED: {missing}")

QUESTION = "Tell me a story about a lighthouse."


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A head with a model that it has as a whole, and once more to be shared; and two nodes that lend a rank. Its heads
    divide by three alone; those of another one, `pair`, by two as well."""
    folder = tmp_path_factory.mktemp("ranks")
    weights = write_tiny_llama(folder / "weights", heads=3)
    tiny = {"backend": "mlx", "parameters": {"model": os.fspath(weights)}, "context_size": 256, "slots": 2}
    write_model(folder / "head", "whole", **tiny)
    write_model(folder / "head", "shared", **tiny, shard="always")
    divides = tiny | {"parameters": {"model": os.fspath(write_tiny_llama(folder / "divides"))}}
    write_model(folder / "head", "pair", **divides, shard="always")
    for name in ("w1", "w2"):
        write_model(folder / name, "mine", **tiny)
        write_model(folder / name, "also", **divides)
    made = Swarm(folder, {})
    try:
        made.start("head")
        made.start("w1", "w2", mlx_rank="true")
        made.until_met()
        made["head"].until(lambda view: len(lent(view)) == 2)
        made["w1"].until(lambda view: "shared" in offered(view))
        yield made
    finally:
        made.close()


def lent(view: dict[str, Any]) -> dict[str, str]:
    """Who has leased a rank of whom, by the lender's name."""
    return {
        node["name"]: target["leased_by"]
        for node in view["nodes"]
        for target in node["targets"]
        if target["name"] == "mlx-rank"
    }


def offered(view: dict[str, Any]) -> set[str]:
    [head] = [node for node in view["nodes"] if node["name"] == "head"]
    return {model["model"] for model in head["models"] if model["load"] is not None}


def rank_of(node: RunningNode) -> psutil.Process:
    """The rank that runs there."""
    [process] = [child for child in node.workers() if "backends.mlx.rank" in child.cmdline()]
    return process


async def test_a_rank_that_is_missing_at_the_start_is_left_out_and_another_taken(ranks: Swarm) -> None:
    head = ranks["head"]
    [first] = [child for child in ranks["w1"].workers() if "backends.mlx.rankserver" in child.cmdline()]
    first.suspend()  # whom the plan names
    [told] = await chats(head, "pair", [QUESTION], max_tokens=2)
    assert (told.error, told.tokens) == (None, 2)
    assert "w1 is left out" in head.log
    head.until(lambda view: lent(view) == {"w1": "", "w2": "head"})
    # What other tests need is free again once the model is gone.
    (head.data / "models" / "pair.yaml").unlink()
    assert mesh_command("models", "reload", data=head.data).exit_code == 0
    head.until(lambda view: lent(view) == {"w1": "", "w2": ""})


async def test_three_nodes_say_what_one_says(ranks: Swarm) -> None:
    head = ranks["head"]
    [expected] = await chats(head, "whole", [QUESTION], max_tokens=10)
    [told] = await chats(head, "shared", [QUESTION], max_tokens=10)
    assert told.error is None
    assert told.outcome == expected.outcome
    head.until(lambda view: lent(view) == {"w1": "head", "w2": "head"})
    [elsewhere] = await chats(ranks["w1"], "shared", [QUESTION], max_tokens=10)
    assert (elsewhere.outcome, elsewhere.node) == (expected.outcome, "head")


async def test_ranks_are_told_of_as_localai_does(ranks: Swarm) -> None:
    nodes = {node["Name"]: node for node in ranks["head"].get("/api/p2p")["mlx_nodes"]}
    assert set(nodes) == {"w1", "w2"}
    assert nodes["w1"]["ServiceID"] == "mlx-rank"
    assert nodes["w1"]["target"]["version"] == "1"
    assert ranks["w2"].get("/api/p2p/stats")["mlx_workers"] == {"online": 2, "total": 2}


async def test_who_has_which_part_is_told(ranks: Swarm) -> None:
    head = ranks["head"]
    await chats(head, "shared", [QUESTION], max_tokens=2)
    [found] = head.get("/api/mesh/plans?model=shared")["plans"]
    assert (found["loaded"], found["split"]["way"], found["fits"]) == (True, "tensor", ["head"])
    assert {node["node"]: node["layers"] for node in found["split"]["nodes"]} == {"head": 2, "w1": 2, "w2": 2}
    assert found["split"]["tokens_per_s"] > 0
    assert "2 × 1/3" in mesh_command("status", data=head.data).output
    assert "Over 3 nodes, and is loaded so" in " ".join(mesh_command("plan", "shared", data=head.data).output.split())
    with head.http as client:
        figures = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    for name in (
        'mesh_tunnel_bytes_total{direction="sent"}',
        "mesh_tunnel_round_trips_total",
        "mesh_shard_loads_total",
    ):
        assert float(figures[name]) > 0


def test_what_mlx_cannot_do_is_the_callers_to_know(ranks: Swarm) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    with ranks["head"].http as client:
        for more, param in (
            ({"response_format": schema}, "response_format"),
            ({"tools": [tool], "tool_choice": "required"}, "tools"),
            ({"grammar": 'root ::= "a"'}, "grammar"),
        ):
            body = {"model": "whole", "messages": [{"role": "user", "content": "Hi"}], **more}
            answer = client.post("/v1/chat/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_rank_that_ends_or_stands_still_costs_time_and_not_the_answer(
    ranks: Swarm, blow: signal.Signals
) -> None:
    head = ranks["head"]
    [expected] = await chats(head, "whole", [QUESTION], max_tokens=16)

    def kill_one(told: Any) -> bool:
        if len(told[0].text) < 3:
            return False
        rank_of(ranks["w2"]).send_signal(blow)
        return True

    [told] = await chats(head, "shared", [QUESTION], kill_one, max_tokens=16)
    assert told.error is None
    assert told.outcome == expected.outcome
