"""Workers that lie, die and hang: the answer is what it would have been, and they are back when they can be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.nodes import RunningNode, Swarm, mesh_command, running_node, write_model
from tests.support.rpcproxy import GRAPH_COMPUTE, SET_TENSOR, Fault, write_fault
from tests.swarm.chats import Told, chats
from tests.swarm.test_rpc import QUESTION, SMOL, TOO_LITTLE, lent, plan, server_of

MIB = 1 << 20
TOKENS = 24
LENDS = {"rpc_worker": "true", "rpc_memory_bytes": str(300 * MIB), "rpc_threads": "1"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that holds the model alone."""
    folder = tmp_path_factory.mktemp("whole")
    write_model(folder, "smol", **SMOL)
    with running_node(folder) as node:
        yield node


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    made = Swarm(tmp_path_factory.mktemp("bad"), {})
    write_model(made.folder / "head", "smol", **SMOL)
    try:
        made.start("head", memory_budget_bytes=TOO_LITTLE)
        made.start("good", **LENDS)
        made.start("bad", module="tests.support.liar", **LENDS)
        yield made
    finally:
        made.close()


@pytest.fixture
def nodes(kept: Swarm) -> Swarm:
    """A head that has just begun, `good`, and `bad`, which plans prefer since it claims to be faster. Each of the two
    could hold all layers."""
    if plan_of_now(kept) is not None:
        kept.kill("head")
        kept.start("head", memory_budget_bytes=TOO_LITTLE)
    kept["head"].until(lambda view: lent(view) == {"good": "", "bad": ""})
    return kept


def plan_of_now(nodes: Swarm) -> list[str] | None:
    """Who holds the model, the head first; None: it is not loaded."""
    found = plan(nodes["head"])
    return [share["node"] for share in found["split"]["nodes"]] if found.get("loaded") else None


async def ask(node: RunningNode) -> Told:
    [told] = await chats(node, "smol", [QUESTION], max_tokens=TOKENS)
    return told


@pytest.mark.parametrize(
    ("fault", "heard"),
    [
        (Fault(version=6), "bad is left out: its RPC server speaks version 6.0.0"),
        (Fault(claims_bytes=10 * MIB), "bad is left out: it has 10 MiB free"),
        (Fault(dies=(SET_TENSOR, 50)), "Another plan is made"),
        (Fault(dies=(GRAPH_COMPUTE, 1)), "ended by itself"),
        (Fault(dies=(GRAPH_COMPUTE, 12)), "ended by itself"),
        (Fault(hangs=(GRAPH_COMPUTE, 12)), "nothing has moved for"),
    ],
    ids=["version", "memory", "dies while loading", "dies in the prompt", "dies in decoding", "hangs"],
)
async def test_a_bad_worker_costs_time_and_not_the_answer(
    nodes: Swarm, expected: RunningNode, fault: Fault, heard: str
) -> None:
    write_fault(nodes["bad"].data, fault)
    before = server_of(nodes["bad"])
    told = await ask(nodes["head"])
    assert (told.error, told.outcome) == (None, (await ask(expected)).outcome)
    assert heard in nodes["head"].log
    assert plan_of_now(nodes) == ["head", "good"]
    write_fault(nodes["bad"].data, Fault())
    if fault.dies or fault.hangs:
        before.wait(timeout=30)
    nodes["head"].until(lambda view: lent(view) == {"good": "head", "bad": ""})


async def test_one_that_lies_of_its_memory_is_found_out_when_it_loads(nodes: Swarm, expected: RunningNode) -> None:
    write_fault(nodes["bad"].data, Fault(claims_bytes=300 * MIB, claims_from_start=True, has_bytes=8 * MIB))
    server_of(nodes["bad"]).kill()  # a new one reads it
    nodes["head"].until(lambda view: "bad" not in lent(view))
    nodes["head"].until(lambda view: lent(view) == {"good": "", "bad": ""})
    told = await ask(nodes["head"])
    assert (told.error, told.outcome) == (None, (await ask(expected)).outcome)
    assert "Another plan is made" in nodes["head"].log
    assert plan_of_now(nodes) == ["head", "good"]
    write_fault(nodes["bad"].data, Fault())
    server_of(nodes["bad"]).kill()


# -- who comes later --


async def test_a_worker_that_joins_later_is_used_after_a_reload(nodes: Swarm, expected: RunningNode) -> None:
    nodes.kill("bad")
    nodes["head"].until_sees(bad="dead")
    text = (await ask(nodes["head"])).text
    assert plan_of_now(nodes) == ["head", "good"]
    nodes.start("bad", module="tests.support.liar", **LENDS)
    nodes["head"].until_sees(bad="alive")
    nodes["head"].until(lambda view: lent(view) == {"good": "head", "bad": ""})
    assert "`mesh models reload` does it" in plan(nodes["head"])["why"][-1]
    assert mesh_command("models", "reload", data=nodes["head"].data).exit_code == 0
    nodes["head"].until(lambda view: lent(view) == {"good": "", "bad": "head"})
    assert (await ask(nodes["head"])).text == text == (await ask(expected)).text
    assert plan_of_now(nodes) == ["head", "bad"]
    mesh_command("models", "reload", data=nodes["head"].data)  # nothing is better now
    assert plan_of_now(nodes) == ["head", "bad"]
