"""Calls on other nodes, from whichever node the client asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import httpx

from tests.support.nodes import RunningNode, Swarm
from tests.swarm.chats import Told, chats


def ask(node: RunningNode, model: str, *, pin: str | None = None, **body: Any) -> httpx.Response:
    """A short chat in one piece."""
    headers = {"X-Mesh-Node": pin} if pin else {}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 3,
        "temperature": 0,
    } | body
    with node.http as client:
        return client.post("/v1/chat/completions", json={"model": model} | body, headers=headers)


def load(view: dict[str, Any], node: str, model: str) -> dict[str, Any]:
    """The load of a node's model in an answer of /api/mesh."""
    [found] = [one for one in view["nodes"] if one["name"] == node]
    return next(one["load"] for one in found["models"] if one["model"] == model)


def kill_after(nodes: Swarm, chars: int) -> Callable[[Sequence[Told]], bool]:
    """Kills the node that answers the one chat, after so many characters."""

    def kill(told: Sequence[Told]) -> bool:
        if len(told[0].text) < chars:
            return False
        nodes.kill(told[0].node)
        return True

    return kill


async def test_any_node_streams_what_only_another_has(three: Swarm) -> None:
    answers = []
    for name in "abc":
        [told] = await chats(three[name], "far", ["Hello"])
        assert (told.node, told.done, told.tokens) == ("b", True, 64)
        answers.append(told.text)
        listed = {model["id"] for model in three[name].get("/v1/models")["data"]}
        assert {"near", "far", "rare", "slow"} <= listed
    assert len(set(answers)) == 1
    assert answers[0]
    [by_alias] = await chats(three["a"], "afar", ["Hello"])
    assert by_alias.text == answers[0]


def test_embeddings_completions_and_tokens_of_another_node(three: Swarm) -> None:
    with three["a"].http as client, three["b"].http as there:
        for path, body in (
            ("/v1/embeddings", {"input": ["one", "two"]}),
            ("/v1/completions", {"prompt": "Once", "max_tokens": 9, "temperature": 0, "echo": True}),
            ("/v1/tokenize", {"content": "Once"}),
        ):
            answers = [one.post(path, json={"model": "far", **body}) for one in (client, there)]
            assert [answer.headers["X-Mesh-Node"] for answer in answers] == ["b", "b"]
            contents = [answer.raise_for_status().json() for answer in answers]
            for content in contents:
                for name in ("id", "created", "usage"):  # what is cached there depends on what came before
                    content.pop(name, None)
            assert contents[0] == contents[1]


def test_a_request_is_pinned(three: Swarm) -> None:
    for pin in "bc":
        answer = ask(three["a"], "slow", pin=pin)
        assert (answer.status_code, answer.headers["X-Mesh-Node"]) == (200, pin)
    by_id = next(node["id"] for node in three["a"].get("/api/mesh")["nodes"] if node["name"] == "c")
    assert ask(three["a"], "slow", pin=by_id).headers["X-Mesh-Node"] == "c"
    assert ask(three["a"], "near", pin="a").headers["X-Mesh-Node"] == "a"
    for pin, model in (("nobody", "slow"), ("a", "slow"), ("c", "far")):
        answer = ask(three["a"], model, pin=pin)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Mesh-Node"), answer.text


def test_a_load_that_fails_there_is_tried_elsewhere_and_the_client_does_not_notice(three: Swarm) -> None:
    answer = ask(three["a"], "unlucky")
    assert (answer.status_code, answer.headers["X-Mesh-Node"]) == (200, "c")
    explained = three["a"].get(f"/api/mesh/requests/{answer.headers['X-Correlation-ID']}/explain")
    assert [decision["chosen"] for decision in explained["decisions"]] == ["b", "c"]
    assert explained["node"] == "c"


async def test_choices_go_on_one_by_one_when_their_node_dies(three: Swarm) -> None:
    whole = ask(three["a"], "quick", n=2, max_tokens=40).raise_for_status().json()
    expected = {choice["index"]: choice["message"]["content"] for choice in whole["choices"]}
    [told] = await chats(three["a"], "slow", ["Hello"], kill_after(three, 60), n=2)
    assert told.done
    assert told.texts == expected
    assert told.tokens == 80
    assert three["a"].get("/api/mesh/requests?limit=1")["requests"][0]["resumed"] == 1


async def test_the_far_slot_is_free_when_the_client_has_gone(three: Swarm) -> None:
    body = {"model": "single", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    with three["a"].http as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.headers["X-Mesh-Node"] == "b"
            lines = answer.iter_lines()
            next(lines)
            assert load(three["b"].get("/api/mesh"), "b", "single")["slots_used"] == 1
        three["a"].until(lambda view: load(view, "b", "single")["slots_used"] == 0)
        # And what is asked next gets it: the answer is far shorter than what the slot was busy with.
        client.post("/v1/chat/completions", json=body | {"stream": False, "max_tokens": 3}).raise_for_status()


async def test_an_engine_that_dies_in_the_middle_is_rescued_on_another_node(three: Swarm) -> None:
    questions = [f"Hello {number}" for number in range(12)]  # more than the sound node has slots
    expected = await chats(three["a"], "quick", questions)
    told = await chats(three["a"], "frail", questions)
    assert [one.outcome for one in told] == [one.outcome for one in expected]
    assert "b" in {one.node for one in told}


async def test_an_engine_that_nobody_can_replace_is_reported_once(three: Swarm) -> None:
    [told] = await chats(three["a"], "doomed", ["Hello"])
    assert (told.status, told.finish) == (200, None)
    assert told.error["code"] == "engine_crashed"
    assert told.text
    answer = ask(three["a"], "doomed", max_tokens=40)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_crashed")
    last = three["a"].get("/api/mesh/requests?limit=1")["requests"][0]
    assert (last["outcome"], last["node"]) == ("engine_crashed", "b")


def test_what_fails_there_is_told_here(three: Swarm) -> None:
    answer = ask(three["a"], "broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_load_failed")
    assert "no such luck" in answer.json()["error"]["message"]


async def test_two_files_of_one_name_are_told_apart_and_never_mixed(three: Swarm) -> None:
    [variant] = [one for one in three["a"].get("/api/mesh")["variants"] if one["model"] == "twin"]
    assert sorted(name for one in variant["digests"] for name in one["nodes"]) == ["b", "c"]
    assert len({one["digest"] for one in variant["digests"]}) == 2

    [told] = await chats(three["a"], "twin", ["Hello"], kill_after(three, 10))
    assert (told.finish, told.error["code"]) == (None, "node_gone")
    assert set(told.text) == {told.node}
    # Nobody has got anything of this one yet: it may be answered by either.
    survivor = "c" if told.node == "b" else "b"
    assert ask(three["a"], "twin").headers["X-Mesh-Node"] == survivor


def test_a_model_whose_holders_are_down_and_one_that_nobody_has(three: Swarm) -> None:
    three.kill("c")
    three["a"].until_sees(c="dead")
    answer = ask(three["a"], "rare")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "holders_down")
    assert int(answer.headers["Retry-After"]) >= 1
    answer = ask(three["a"], "unheard-of")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    with three["a"].http as client:
        messages = [{"role": "user", "content": "Hello"}]
        answer = client.post("/v1/messages", json={"model": "rare", "max_tokens": 5, "messages": messages})
        assert (answer.status_code, answer.json()["type"]) == (503, "error")
        answer = client.post("/api/chat", json={"model": "rare", "messages": messages})
        assert answer.status_code == 503
        assert isinstance(answer.json()["error"], str)
