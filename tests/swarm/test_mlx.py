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
from tests.support.nodes import RunningNode, Swarm, write_model
from tests.swarm.chats import chats

missing = backend.unavailable()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"NOTHING OF MLX IS TESTED: {missing}")

QUESTION = "Tell me a story about a lighthouse."


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A head with a model that it has as a whole, and once more to be shared; and two nodes that lend a rank. Its heads
    divide by three alone."""
    folder = tmp_path_factory.mktemp("ranks")
    weights = write_tiny_llama(folder / "weights", heads=3)
    tiny = {"backend": "mlx", "parameters": {"model": os.fspath(weights)}, "context_size": 256, "slots": 2}
    write_model(folder / "head", "whole", **tiny)
    write_model(folder / "head", "shared", **tiny, shard="always")
    for name in ("w1", "w2"):
        write_model(folder / name, "mine", **tiny)
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


async def test_a_rank_that_is_killed_costs_time_and_not_the_answer(ranks: Swarm) -> None:
    head = ranks["head"]
    [expected] = await chats(head, "whole", [QUESTION], max_tokens=16)

    def kill_one(told: Any) -> bool:
        if len(told[0].text) < 3:
            return False
        rank_of(ranks["w2"]).send_signal(signal.SIGKILL)
        return True

    [told] = await chats(head, "shared", [QUESTION], kill_one, max_tokens=16)
    assert told.error is None
    assert told.outcome == expected.outcome
