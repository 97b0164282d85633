"""What a swarm does when it is full, what it tells of itself, and how nodes go in peace."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh.token import JoinToken
from tests.support.ends import until
from tests.support.nodes import MET_S, RunningNode, Swarm, mesh_command, states, swarm
from tests.swarm.chats import Told, chats
from tests.swarm.conftest import FAKE
from tests.swarm.test_calls import ask


@contextmanager
def streaming(node: RunningNode, model: str, **headers: str) -> Iterator[httpx.Response]:
    """A chat that has begun to answer and goes on until the end of the context."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    with node.http as client, client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield answer


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """An entry node without `one`, and a node with a single slot of it. Two clients: keys x and y."""
    folder = tmp_path_factory.mktemp("narrow")
    one = FAKE | {"slots": 1, "pinned": True, "engine": {"decode_tokens_per_s": 40, "answer_tokens": 5000}}
    with swarm(folder, {"in": {"other": FAKE}, "out": {"one": one}}, api_keys="x,y", queue_limit="4") as made:
        yield made


def test_held_requests_are_served_in_turn_and_one_too_many_is_refused(narrow: Swarm) -> None:
    entry = narrow["in"]
    order: list[str] = []

    def client(name: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {name[0]}", "X-Correlation-ID": name}
        body = {"model": "one", "messages": [{"role": "user", "content": name}], "max_tokens": 8}
        answer = httpx.post(f"{entry.url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)
        order.append(name)
        return answer

    with ThreadPoolExecutor(8) as threads:
        answers = {}
        with streaming(entry, "one"):
            for count, name in enumerate(("x1", "x2", "x3", "y1"), 1):
                answers[name] = threads.submit(client, name)
                until(partial(holds, entry, count))
            answers["y2"] = threads.submit(client, "y2")
            refused = answers.pop("x3").result()  # the newest of whoever has most
            assert [order.pop(), order] == ["x3", []]
        assert {answer.result().status_code for answer in answers.values()} == {200}
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["Retry-After"]) >= 1
    assert order == ["x1", "y1", "x2", "y2"]


def holds(node: RunningNode, count: int) -> bool:
    """Whether so many requests wait at that entry node."""
    requests = node.get("/api/mesh/requests")["requests"]
    held = [one for one in requests if one["outcome"] == "running" and not one["node"]]
    return len(held) == count


def test_a_call_is_bounced_once_and_then_served(three: Swarm) -> None:
    """Both nodes are taken by calls of their own, of which the entry node has not heard yet."""
    for _ in range(10):  # it does hear, when a heartbeat comes just then
        with ExitStack() as busy:
            for name in "bc":
                busy.enter_context(streaming(three[name], "pair", **{"X-Mesh-Node": name}))
            with ThreadPoolExecutor() as threads:
                answer = threads.submit(ask, three["a"], "pair", max_tokens=60)
                until(lambda: {"hold", "lease"} & {event["what"] for event in events(three["a"])})
                busy.close()
                assert answer.result().status_code == 200
        last = three["a"].get("/api/mesh/requests?limit=1")["requests"][0]
        assert last["bounced"] <= 1
        if last["bounced"]:
            break
    assert last["bounced"] == 1
    first, second = sends(three["a"])
    assert {first, second} == {"b", "c"}
    assert answer.result().headers["X-Mesh-Node"] == second == last["node"]


def events(node: RunningNode) -> list[dict[str, Any]]:
    """What has happened to the last request that entered there; nothing while there is none."""
    recent = node.get("/api/mesh/requests?limit=1")["requests"]
    if not recent:
        return []
    timeline: list[dict[str, Any]] = node.get(f"/api/mesh/requests/{recent[0]['id']}/trace")["timeline"]
    return timeline


def sends(node: RunningNode) -> list[str]:
    """Where the last request has been sent."""
    return [event["node"] for event in events(node) if event["what"] == "send"]


async def test_a_request_is_explained_and_traced_over_both_nodes(three: Swarm) -> None:
    answer = ask(three["a"], "slow")
    request, node = answer.headers["X-Correlation-ID"], answer.headers["X-Mesh-Node"]
    explained = json.loads(mesh_command("explain", request, "--json", data=three["a"].data).stdout)
    assert (explained["id"], explained["node"], explained["outcome"]) == (request, node, "ok")
    [decision] = explained["decisions"]
    rows = {row["node"]: row for row in decision["candidates"]}
    assert set(rows) == {"b", "c"}
    assert rows[node]["chosen"]
    for row in rows.values():
        assert row["total_s"] == pytest.approx(sum(row[f"{term}_s"] for term in TERMS), abs=1e-3)
    traced = json.loads(mesh_command("trace", "--json", data=three["a"].data).stdout)
    assert traced["id"] == request
    assert {event["where"] for event in traced["timeline"]} == {"a", node}
    steps = [(event["where"], event["what"]) for event in traced["timeline"]]
    path = [("a", "arrived"), ("a", "route"), ("a", "send"), (node, "arrived"), (node, "lease"), (node, "first_chunk")]
    path += [(node, "served"), ("a", "ended")]
    assert [step for step in steps if step in path] == path
    times = [event["at_s"] for event in traced["timeline"]]
    assert times == sorted(times)
    assert node in mesh_command("explain", data=three["a"].data).stdout
    assert "first_chunk" in mesh_command("trace", request, data=three["a"].data).stdout
    assert mesh_command("trace", "no-such-request", data=three["a"].data).exit_code == 1


TERMS = ("queue", "load", "prefill", "decode", "round_trip", "penalty")


def test_the_status_of_the_swarm(three: Swarm) -> None:
    status = json.loads(mesh_command("status", "--json", data=three["a"].data).stdout)
    assert states(status["swarm"]) == {"a": "alive", "b": "alive", "c": "alive"}
    nodes = {node["name"]: node for node in status["swarm"]["nodes"]}
    assert {model["model"] for model in nodes["c"]["models"]} >= {"fake", "rare", "twin"}
    assert nodes["b"]["round_trip_s"] > 0
    assert all(model["load"]["state"] for model in nodes["b"]["models"])
    shown = mesh_command("status", data=three["a"].data).stdout
    assert "twin is not the same model on all nodes" in shown


def test_local_ai_clients_see_the_swarm(three: Swarm) -> None:
    whole = three["b"].get("/api/p2p")
    assert (whole["llama_cpp_nodes"], whole["mlx_nodes"]) == ([], [])
    for node in whole["federated_nodes"]:
        for name in ("Name", "ID", "TunnelAddress", "ServiceID", "LastSeen"):
            camel = "id" if name == "ID" else name[0].lower() + name[1:]
            assert node[name] == node[camel]
        assert node["isOnline"] is True
        assert node["TunnelAddress"].startswith("/ip4/127.0.0.1/tcp/")
    assert {node["Name"] for node in whole["federated_nodes"]} == {"a", "b", "c"}
    assert three["b"].get("/api/p2p/federation")["nodes"]
    assert three["b"].get("/api/p2p/workers")["llama_cpp"] == {"nodes": []}
    assert three["b"].get("/api/p2p/stats")["federated"] == {"online": 3, "total": 3}
    assert JoinToken.parse(three.token).addresses


def test_the_doctor_finds_what_is_wrong(three: Swarm, tmp_path: Path) -> None:
    def findings(data: Path, **settings: str) -> dict[str, dict[str, Any]]:
        said = mesh_command("doctor", "--json", data=data, **({"solo": "false", "lan_discovery": "false"} | settings))
        checks = {check["name"]: check for check in json.loads(said.stdout)}
        assert said.exit_code == (0 if all(check["ok"] for check in checks.values()) else 1)
        assert all(check["advice"] for check in checks.values() if not check["ok"])
        return checks

    own = JoinToken.parse(three.token)
    taken = three["a"].url.rsplit(":", 1)[1]
    dead = JoinToken(own.secret, (own.addresses[0], "/ip4/127.0.0.1/tcp/9")).encode()
    other = JoinToken(JoinToken.generate().secret, own.addresses[:1]).encode()
    three.kill("c")
    three["a"].until_sees(c="dead")
    member = findings(three["a"].data)
    assert (member["peer b"]["ok"], member["peer c"]["ok"]) == (True, False)
    outside = findings(tmp_path / "one", token=dead, port=taken)
    assert "taken" in outside["API port"]["finding"]
    assert outside[f"address {own.addresses[0]}"]["ok"]
    assert "Nobody answers" in outside["address /ip4/127.0.0.1/tcp/9"]["finding"]
    stranger = findings(tmp_path / "two", token=other)[f"address {own.addresses[0]}"]
    assert not stranger["ok"]
    assert "Compare `mesh token`" in stranger["advice"]
    assert not findings(tmp_path / "three", token=dead[:-1])["token"]["ok"]


def test_the_events_of_a_swarm(three: Swarm) -> None:
    def until_kind(kind: str, node: str) -> None:
        deadline = time.monotonic() + MET_S  # others come for ever
        for line in lines:
            assert time.monotonic() < deadline, f"nobody tells that {node} {kind}\n{three['a'].log}"
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if (event["kind"], event["node"]) == (kind, node):
                    return
        raise AssertionError(f"the events ended before {node} {kind}")

    with three["a"].http as client, client.stream("GET", "/api/mesh/events", timeout=30.0) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert three["c"].stop() == 0
        until_kind("left", "c")
        three.start("c")
        until_kind("joined", "c")
        assert ask(three["a"], "far").status_code == 200
        until_kind("route", "b")
        three.kill("b")
        until_kind("dead", "b")


async def test_an_entry_node_that_is_stopped_lets_its_answers_finish(three: Swarm) -> None:
    def stop(told: Sequence[Told]) -> bool:
        if not all(one.text for one in told):
            return False
        three["c"].process.send_signal(signal.SIGTERM)
        return True

    # Longer than the connections themselves get to close.
    [expected] = await chats(three["a"], "endless", ["Hello"], max_tokens=200)
    [told] = await chats(three["c"], "single", ["Hello"], stop, max_tokens=200)
    assert (told.node, told.outcome) == ("b", expected.outcome)
    assert three["c"].process.wait(30) == 0
    three["a"].until_sees(c="left")


async def test_a_serving_node_that_is_stopped_costs_nobody_an_answer(three: Swarm) -> None:
    def stop(told: Sequence[Told]) -> bool:
        if not sum(bool(one.text) for one in told if one.node == "b") >= 3:
            return False
        three["b"].process.send_signal(signal.SIGTERM)
        return True

    questions = [f"Hello {number}" for number in range(24)]  # more than there are slots: some come after the signal
    expected = await chats(three["a"], "quick", questions)
    told = await chats(three["a"], "slow", questions, stop)
    assert [one.outcome for one in told] == [one.outcome for one in expected]
    assert three["b"].process.wait(30) == 0
    three["a"].until_sees(b="left")


def test_a_model_stays_where_it_answers_as_long_as_its_caller_says(three: Swarm) -> None:
    def told(seconds: Any) -> float:
        """Seconds that `far`, which only `b` has, stays there after a chat through `a`."""
        body = {"model": "far", "stream": False, "messages": [{"role": "user", "content": "Hi"}]}
        with three["a"].http as client:
            client.post("/api/chat", json=body | {"keep_alive": seconds}).raise_for_status()
        return left("far")

    def left(model: str) -> float:
        [running] = [one for one in three["b"].get("/api/ps")["models"] if one["name"] == model]
        expires = datetime.fromisoformat(running["expires_at"])
        return (expires - datetime.now(UTC)).total_seconds()

    assert 3000 < told("1h") < 3601
    assert told(-1) > 1e9
    with three["a"].http as client:
        unloaded = client.post("/api/generate", json={"model": "far", "keep_alive": 0}).json()
    assert unloaded["done_reason"] == "unload"
    until(lambda: "far" not in {one["name"] for one in three["b"].get("/api/ps")["models"]})
