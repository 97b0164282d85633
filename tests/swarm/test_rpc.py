"""A model that fits no node, over real nodes that lend their memory: same text, whatever happens to them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.models import smollm2
from tests.support.nodes import RunningNode, Swarm, mesh_command, running_node, write_model
from tests.swarm.chats import Told, chats

MIB = 1 << 20
SMOL = {"parameters": {"model": os.fspath(smollm2())}, "context_size": 512, "slots": 2, "threads": 1}
TOO_LITTLE = str(180 * MIB)
"""For SmolLM2 in one piece; enough for a head, which keeps the embeddings and its own process."""
QUESTION = "Tell me a story about a lighthouse."
LONG, SHORT = 160, 24


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that holds the model alone: what it says is what all others have to say."""
    folder = tmp_path_factory.mktemp("whole")
    write_model(folder, "smol", **SMOL)
    with running_node(folder) as node:
        yield node


def start(folder: Path, *, each: int, **model: Any) -> Swarm:
    """A head and two workers that lend `each` MiB, all met, and what they lend known to all."""
    write_model(folder / "head", "smol", **SMOL, **model)
    made = Swarm(folder, {})
    try:
        made.start("head", memory_budget_bytes=TOO_LITTLE)
        made.start("w1", "w2", rpc_worker="true", rpc_memory_bytes=str(each * MIB), rpc_threads="1")
        made.until_met()
        made["head"].until(lambda view: len(lent(view)) == 2)
        made["w1"].until(load)
    except BaseException:
        made.close()
        raise
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Workers neither of which could hold all layers."""
    made = start(tmp_path_factory.mktemp("small"), each=105)
    yield made
    made.close()


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Swarm]:
    """Workers that the model's file names, each of which could hold all layers."""
    made = start(tmp_path, each=300, workers=["w1", "w2"])
    yield made
    made.close()


def lent(view: dict[str, Any]) -> dict[str, str]:
    """Who has leased what of whom, by the lender's name."""
    return {node["name"]: target["leased_by"] for node in view["nodes"] for target in node["targets"]}


def load(view: dict[str, Any], node: str = "head") -> dict[str, Any] | None:
    """The load of the model at a node, where it can serve it."""
    [found] = [one for one in view["nodes"] if one["name"] == node]
    return next((model["load"] for model in found["models"] if model["model"] == "smol"), None)


def server_of(node: RunningNode) -> psutil.Process:
    """Its RPC server, or what stands in front of it."""
    named = {"backends.llama_cpp.rpc", "tests.support.rpcproxy"}
    [process] = [child for child in psutil.Process(node.process.pid).children() if named & set(child.cmdline())]
    return process


def after(chars: int, action: Callable[[], object]) -> Callable[[Sequence[Told]], bool]:
    """Does something once the first chat has told so much."""

    def look(told: Sequence[Told]) -> bool:
        if len(told[0].text) < chars:
            return False
        action()
        return True

    return look


def plan(node: RunningNode) -> dict[str, Any]:
    [found] = node.get("/api/mesh/plans?model=smol")["plans"]
    assert isinstance(found, dict)
    return found


# -- as the README has it --


async def test_the_chat_streams_and_says_what_one_node_would(small: Swarm, whole: RunningNode) -> None:
    [expected] = await chats(whole, "smol", [QUESTION], max_tokens=SHORT)
    [told] = await chats(small["head"], "smol", [QUESTION], max_tokens=SHORT)
    assert told.error is None
    assert told.outcome == expected.outcome
    assert told.node == "head"
    [elsewhere] = await chats(small["w1"], "smol", [QUESTION], max_tokens=SHORT)
    assert (elsewhere.outcome, elsewhere.node) == (expected.outcome, "head")


async def test_who_holds_what_is_told_everywhere(small: Swarm) -> None:
    await chats(small["head"], "smol", [QUESTION], max_tokens=2)
    head = small["head"]
    assert head.until(lambda view: lent(view) == {"w1": "head", "w2": "head"})
    found = plan(head)
    assert found["loaded"]
    assert found["fits"] == []
    shares = {share["node"]: share for share in found["split"]["nodes"]}
    assert set(shares) == {"head", "w1", "w2"}
    assert sum(share["layers"] for share in shares.values()) == 30
    assert all(share["memory_bytes"] <= share["free_bytes"] for share in shares.values())
    nodes = {node["Name"]: node for node in head.get("/api/p2p")["llama_cpp_nodes"]}
    assert set(nodes) == {"w1", "w2"}
    assert nodes["w1"]["target"] | {"bytes_per_s": 0} == {
        "name": "rpc",
        "version": "7.0.0",
        "devices": ["CPU"],
        "memory_bytes": 105 * MIB,
        "bytes_per_s": 0,
        "leased_by": "head",
    }
    assert head.get("/api/p2p/stats")["llama_cpp_workers"] == {"online": 2, "total": 2}
    shown = mesh_command("status", data=head.data).output
    assert "leased by" in shown
    assert "head (head)" in shown
    assert "fits no node alone" in mesh_command("plan", "smol", data=head.data).output


async def test_a_second_head_hears_who_has_the_workers_and_gets_them_when_the_first_is_killed(
    small: Swarm, whole: RunningNode
) -> None:
    await chats(small["head"], "smol", [QUESTION], max_tokens=2)
    servers = [server_of(small[name]).pid for name in ("w1", "w2")]
    # Other defaults make it another model, which the first head cannot answer for.
    other = SMOL | {"parameters": SMOL["parameters"] | {"max_tokens": LONG}}  # type: ignore[operator]
    write_model(small.folder / "rival", "mine", **other)
    small.start("rival", memory_budget_bytes=TOO_LITTLE)
    rival = small["rival"]
    rival.until(lambda view: lent(view) == {"w1": "head", "w2": "head"})
    [refused] = await chats(rival, "mine", [QUESTION], max_tokens=SHORT)
    assert refused.status >= 500
    assert "leased to head" in refused.error["message"]
    small.kill("head")
    rival.until(lambda view: lent(view) == {"w1": "", "w2": ""})
    assert [server_of(small[name]).pid for name in ("w1", "w2")] == servers
    [told] = await chats(rival, "mine", [QUESTION], max_tokens=SHORT)
    [expected] = await chats(whole, "smol", [QUESTION], max_tokens=SHORT)
    assert told.outcome == expected.outcome


# -- when workers die --


async def test_one_of_two_workers_killed_in_the_middle_of_an_answer(large: Swarm, whole: RunningNode) -> None:
    [expected] = await chats(whole, "smol", [QUESTION], max_tokens=LONG)
    [told] = await chats(large["head"], "smol", [QUESTION], after(60, lambda: large.kill("w1")), max_tokens=LONG)
    assert told.error is None
    assert told.outcome == expected.outcome
    assert [share["node"] for share in plan(large["head"])["split"]["nodes"]] == ["head", "w2"]
    # Nobody left: one clear error, in the stream.
    [lost] = await chats(large["head"], "smol", [QUESTION], after(60, lambda: large.kill("w2")), max_tokens=LONG)
    assert not lost.done or lost.error is not None
    assert "w1, w2" in lost.error["message"]


async def test_servers_that_crash_or_are_stopped_are_back(large: Swarm, whole: RunningNode) -> None:
    [expected] = await chats(whole, "smol", [QUESTION], max_tokens=LONG)
    first = server_of(large["w1"]).pid

    def crash() -> None:
        server_of(large["w1"]).send_signal(signal.SIGSEGV)

    [told] = await chats(large["head"], "smol", [QUESTION], after(60, crash), max_tokens=LONG)
    assert (told.error, told.outcome) == (None, expected.outcome)
    large["head"].until(lambda view: "w1" in lent(view))
    assert server_of(large["w1"]).pid != first

    def stop() -> None:
        server_of(large["w2"]).send_signal(signal.SIGSTOP)

    [again] = await chats(large["head"], "smol", [QUESTION], after(60, stop), max_tokens=LONG)
    assert (again.error, again.outcome) == (None, expected.outcome)


def test_a_worker_has_the_models_that_its_heads_serve(small: Swarm) -> None:
    """Its own copy of the default model does not fit it; that must hide nobody's who can serve one."""
    [head] = [node for node in small.running if node.name not in ("w1", "w2")]
    head.until(lambda view: any(model.get("load") for node in view["nodes"] for model in node["models"]))
    with small["w1"].http as client:
        cards = {card["id"] for card in client.get("/v1/models").json()["data"]}
        answer = client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        )
    assert {"smol", "mine"} & cards
    assert (answer.status_code, answer.headers["X-Mesh-Node"]) == (200, head.name)
