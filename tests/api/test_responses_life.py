"""What becomes of a response: background, streams to resume, cancelling, deleting, WebSockets, a restart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import trio
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from api.ports import ApiOptions
from backends.types import Accepted, Busy, ChatRequest, Chunk, Finished, Request, Text
from tests.api.dialects import CRASH, events, says
from tests.api.double import MODEL
from tests.api.serving import VERSION, Served, serving_in_thread
from tests.support.ends import until
from tests.support.nodes import running_node, write_model

BODY = {"model": MODEL, "input": "hi"}
BACKGROUND = BODY | {"background": True}


def get(http: httpx.Client, identity: str) -> dict[str, Any]:
    answer = http.get(f"/v1/responses/{identity}")
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def ended(http: httpx.Client, identity: str) -> dict[str, Any]:
    """The response once it has ended."""

    def look() -> dict[str, Any] | None:
        found = get(http, identity)
        return None if found["status"] in ("queued", "in_progress") else found

    found: dict[str, Any] = until(look)
    return found


class Paused:
    """A script that says something and goes on when it is told to."""

    def __init__(self) -> None:
        self._token: trio.lowlevel.TrioToken | None = None
        self._go = trio.Event()

    async def __call__(self, request: Request) -> AsyncIterator[Sequence[Chunk]]:
        self._token = trio.lowlevel.current_trio_token()
        yield [Accepted(3), Text(0, "Hel")]
        await self._go.wait()
        yield [Text(0, "lo"), Finished(0, "stop")]

    def go(self) -> None:
        """From the test's thread."""
        assert self._token is not None
        trio.from_thread.run_sync(self._go.set, trio_token=self._token)


@pytest.fixture
def paused(double: Served) -> Paused:
    script = Paused()
    double.dispatcher.script = script.__call__
    return script


def test_background(http: httpx.Client, paused: Paused) -> None:
    begun = http.post("/v1/responses", json=BACKGROUND).json()
    assert (begun["status"], begun["background"], begun["output"]) == ("queued", True, [])
    until(lambda: get(http, begun["id"])["output"])
    assert get(http, begun["id"])["status"] == "in_progress"
    busy = http.post("/v1/responses", json=BODY | {"previous_response_id": begun["id"]})
    assert (busy.status_code, busy.json()["error"]["code"]) == (400, "response_in_progress")
    refused = http.get(f"/v1/responses/{begun['id']}", params={"stream": "true"})
    assert refused.status_code == 400
    paused.go()
    done = ended(http, begun["id"])
    assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", "Hello")


def test_a_stream_in_the_background_goes_on_without_its_reader(http: httpx.Client, paused: Paused) -> None:
    with http.stream("POST", "/v1/responses", json=BACKGROUND | {"stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and '"delta":"Hel"' in line:
                break
    identity = json.loads(line.removeprefix("data: "))["item_id"].replace("msg_", "resp_").removesuffix("_o0")
    with http.stream("GET", f"/v1/responses/{identity}", params={"stream": "true", "starting_after": 3}) as answer:
        paused.go()
        live = answer.read().decode()
    assert ended(http, identity)["status"] == "completed"
    stored = http.get(f"/v1/responses/{identity}", params={"stream": "true", "starting_after": 3})
    assert stored.text == live, "the same while it runs and afterwards"
    assert events(stored)[0]["sequence_number"] == 4
    whole = events(http.get(f"/v1/responses/{identity}", params={"stream": "true"}))
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    kinds = [event["type"] for event in whole]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event["response"]["status"] for event in whole[:3]] == ["queued", "queued", "in_progress"]
    assert events(http.get(f"/v1/responses/{identity}?stream=true&starting_after=999")) == []
    for number in ("x", "-2"):
        assert http.get(f"/v1/responses/{identity}?stream=true&starting_after={number}").status_code == 400


def test_cancel(http: httpx.Client, double: Served, paused: Paused) -> None:
    begun = http.post("/v1/responses", json=BACKGROUND).json()
    until(lambda: get(http, begun["id"])["output"])
    for _ in range(2):  # the second time changes nothing
        cancelled = http.post(f"/v1/responses/{begun['id']}/cancel").json()
        assert cancelled["status"] == "cancelled"
        assert cancelled["output"][0]["content"][0]["text"] == "Hel"
        assert cancelled["output"][0]["status"] == "incomplete"
    assert get(http, begun["id"]) == cancelled
    assert double.dispatcher.running == 0
    double.dispatcher.reset()
    plain = http.post("/v1/responses", json=BODY).json()
    assert http.post(f"/v1/responses/{plain['id']}/cancel").status_code == 400
    assert http.post("/v1/responses/resp_x/cancel").status_code == 404


def test_failures_in_the_background(http: httpx.Client, double: Served) -> None:
    async def full() -> None:
        raise Busy("The queue is full.")

    double.dispatcher.script = says("Hel", error=CRASH)
    failed = ended(http, http.post("/v1/responses", json=BACKGROUND).json()["id"])
    assert failed["error"] == {"code": "server_error", "message": "The engine died."}
    assert failed["output"][0]["status"] == "incomplete"
    double.dispatcher.opening = full
    failed = ended(http, http.post("/v1/responses", json=BACKGROUND).json()["id"])
    assert failed["error"] == {"code": "rate_limit_exceeded", "message": "The queue is full."}


def test_delete(http: httpx.Client, double: Served, paused: Paused) -> None:
    running = http.post("/v1/responses", json=BACKGROUND).json()["id"]
    until(lambda: get(http, running)["output"])
    assert http.delete(f"/v1/responses/{running}").json() == {"id": running, "object": "response", "deleted": True}
    assert double.dispatcher.running == 0
    double.dispatcher.reset()
    first = http.post("/v1/responses", json=BODY).json()["id"]
    second = http.post("/v1/responses", json=BODY | {"previous_response_id": first}).json()["id"]
    http.delete(f"/v1/responses/{first}")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        assert http.request(method, f"/v1/responses/{first}{path}").status_code == 404
    broken = http.post("/v1/responses", json=BODY | {"previous_response_id": second})
    assert broken.status_code == 404
    assert "deleted" in broken.json()["error"]["message"]


def test_what_is_not_to_be_stored_is_not(http: httpx.Client) -> None:
    response = http.post("/v1/responses", json=BODY | {"store": False}).json()
    assert http.get(f"/v1/responses/{response['id']}").status_code == 404


def test_input_items(http: httpx.Client) -> None:
    given = [{"role": "user", "content": f"item {number}"} for number in range(25)]
    identity = http.post("/v1/responses", json=BODY | {"input": given}).json()["id"]

    def page(**params: Any) -> dict[str, Any]:
        answer = http.get(f"/v1/responses/{identity}/input_items", params=params)
        assert answer.status_code == 200, answer.text
        value: dict[str, Any] = answer.json()
        return value

    def texts(found: dict[str, Any]) -> list[str]:
        return [item["content"][0]["text"] for item in found["data"]]

    newest = page()
    assert (newest["object"], newest["has_more"], len(newest["data"])) == ("list", True, 20)
    assert texts(newest)[0] == "item 24"
    rest = page(after=newest["last_id"])
    assert (texts(rest)[-1], rest["has_more"]) == ("item 0", False)
    assert texts(page(order="asc", limit=2)) == ["item 0", "item 1"]
    assert set(newest["data"][0]) == {"type", "id", "role", "content", "status"}
    for bad in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "up"}, {"after": "x"}):
        assert http.get(f"/v1/responses/{identity}/input_items", params=bad).status_code == 400


def test_paths_without_v1(http: httpx.Client) -> None:
    identity = http.post("/responses", json=BODY).json()["id"]
    assert http.get(f"/responses/{identity}").json()["id"] == identity
    assert identity.split("_")[1] == "memory", "an id says which node it is of"


@contextmanager
def socket(double: Served, **headers: str) -> Iterator[Connection]:
    with connect(double.url.replace("http", "ws") + "/v1/responses", additional_headers=headers, proxy=None) as found:
        yield found


def say(connection: Connection, **body: Any) -> list[dict[str, Any]]:
    """The events of one response; the last is its end or a refusal."""
    connection.send(json.dumps({"type": "response.create", "model": MODEL, "input": "hi"} | body))
    found: list[dict[str, Any]] = []
    ends = {f"response.{end}" for end in ("completed", "incomplete", "failed")}
    while not found or not (found[-1]["type"] in ends or "status" in found[-1]):
        found.append(json.loads(connection.recv(timeout=20)))
    return found


def test_a_websocket_speaks_as_a_stream_does(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hel", "lo")
    streamed = events(http.post("/v1/responses", json=BODY | {"stream": True}))
    with socket(double) as connection:
        told = say(connection)
    assert [(event["type"], event["sequence_number"]) for event in told] == [
        (event["type"], event["sequence_number"]) for event in streamed
    ]
    assert get(http, told[-1]["response"]["id"]) == told[-1]["response"]


def test_a_connection_remembers_what_is_not_stored(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("one")
    with socket(double) as connection:
        identity = say(connection, store=False)[-1]["response"]["id"]
        identity = say(connection, store=False, previous_response_id=identity, input="more")[-1]["response"]["id"]
        say(connection, previous_response_id=identity, input="and more", store=False)
        request = double.dispatcher.asked[-1]
        assert isinstance(request, ChatRequest)
        assert [message.content for message in request.messages] == ["hi", "one", "more", "one", "and more"]
        [refusal] = say(connection, previous_response_id=identity)  # not the last one any more
    assert refusal["error"]["code"] == "previous_response_not_found"
    assert http.get(f"/v1/responses/{identity}").status_code == 404


def test_a_prompt_that_is_only_made_ready(http: httpx.Client, double: Served) -> None:
    with socket(double) as connection:
        *_, last = told = say(connection, generate=False, input="a long story", max_output_tokens=99)
        assert [event["type"] for event in told] == ["response.created", "response.in_progress", "response.completed"]
        ready = last["response"]
        assert (ready["status"], ready["output"], ready["usage"]["output_tokens"]) == ("completed", [], 0)
        assert ready["usage"]["input_tokens"] > 0
        asked = double.dispatcher.asked[-1]
        assert isinstance(asked, ChatRequest)
        assert asked.max_tokens == 1
        assert get(http, ready["id"]) == ready
        double.dispatcher.script = says("so it ends")
        whole = say(connection, previous_response_id=ready["id"], input="Go on.")[-1]["response"]
        assert whole["output"][0]["content"][0]["text"] == "so it ends"
    request = double.dispatcher.asked[-1]
    assert isinstance(request, ChatRequest)
    assert [message.content for message in request.messages] == ["a long story", "Go on."]


def test_mistakes_do_not_end_a_connection(double: Served) -> None:
    with socket(double) as connection:
        for bad, param in (
            ({"type": "response.steer"}, "type"),
            ({"input": 7}, "input"),
            ({"background": True}, "background"),
            ({"generate": "no"}, "generate"),
            ({"model": "none"}, "model"),
        ):
            [refusal] = say(connection, **bad)
            assert (refusal["type"], refusal["error"]["param"]) == ("error", param)
            assert refusal["status"] == (404 if param == "model" else 400)
        for text in ("", "x", "[]"):
            connection.send(text)
            assert json.loads(connection.recv(timeout=20))["status"] == 400
        double.dispatcher.script = says("Hel", error=CRASH)
        assert [event["type"] for event in say(connection)][-2:] == ["error", "response.failed"]
        double.dispatcher.reset()
        assert say(connection)[-1]["type"] == "response.completed"


def test_a_connection_that_ends_ends_its_call(http: httpx.Client, double: Served, paused: Paused) -> None:
    with socket(double) as connection:
        connection.send(json.dumps({"type": "response.create"} | BODY))
        connection.recv(timeout=20)
        assert double.dispatcher.running == 1
    until(lambda: http.get("/healthz") and double.dispatcher.running == 0)


def test_who_may_open_a_websocket() -> None:
    options = ApiOptions(version=VERSION, cors_origins=("https://good.example",))
    with serving_in_thread(Served(options=options)) as served:
        for origin in ("https://good.example", served.url):
            with socket(served, Origin=origin) as connection:
                assert say(connection)[-1]["type"] == "response.completed"
        with pytest.raises(InvalidStatus) as refused, socket(served, Origin="https://evil.example"):
            pass
        assert refused.value.response.status_code == 403
    with serving_in_thread(Served(options=ApiOptions(version=VERSION, api_keys=("secret",)))) as served:
        with pytest.raises(InvalidStatus) as refused, socket(served):
            pass
        assert refused.value.response.status_code == 401
        with socket(served, Authorization="Bearer secret") as connection:
            assert say(connection)[-1]["type"] == "response.completed"


def test_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("restart")
    write_model(data, "fake", backend="fake", slots=8)
    write_model(data, "slow", backend="fake", engine={"decode_tokens_per_s": 1, "answer_tokens": 5000})
    with running_node(data) as node, node.http as http:
        first = http.post("/v1/responses", json={"model": "fake", "input": "one"}).json()
        begun = http.post("/v1/responses", json={"model": "slow", "input": "two", "background": True}).json()
        streamed = {"model": "fake", "input": "three", "background": True, "stream": True}
        told = http.post("/v1/responses", json=streamed).text
        node.process.kill()
        node.process.wait()
    with running_node(data) as node, node.http as http:
        assert get(http, first["id"]) == first
        cut = get(http, begun["id"])
        assert (cut["status"], cut["error"]["code"]) == ("failed", "server_error")
        follows = {"model": "fake", "input": "more", "previous_response_id": first["id"]}
        second = http.post("/v1/responses", json=follows).json()
        assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        identity = json.loads(told.split("data: ")[1].split("\n")[0])["response"]["id"]
        assert http.get(f"/v1/responses/{identity}", params={"stream": "true"}).text == told
        assert second["id"].split("_")[1] == first["id"].split("_")[1]
