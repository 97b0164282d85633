"""`mesh chat` against a scripted API: what is sent, what is shown, and what Ctrl-C does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from node.cli import console
from node.cli.app import app
from node.cli.console import CommandError


def events(*texts: str, usage: int = 0) -> Iterator[bytes]:
    """An answer as server-sent events."""
    for text in texts:
        yield f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode()
    if usage:
        yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': usage}})}\n\n".encode()
    yield b"data: [DONE]\n\n"


class Stream(httpx.SyncByteStream):
    """A body that notes when it is closed."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        self.closed = True


class Api:
    """Answers with the next of `streams`."""

    def __init__(self) -> None:
        self.streams: list[Stream | httpx.Response] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        self.keys.append(request.headers.get("Authorization"))
        answer = self.streams.pop(0)
        return httpx.Response(200, stream=answer) if isinstance(answer, Stream) else answer


Chat = Callable[..., Result]


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def chat(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Runs `mesh chat ...`; the lines of `typed` are what the person types, `piped` what a pipe brings instead."""
    client = httpx.Client

    def scripted(**options: Any) -> httpx.Client:
        assert options["trust_env"] is False
        return client(**options, transport=httpx.MockTransport(api))

    monkeypatch.setenv("MESH_DATA", str(tmp_path))
    monkeypatch.setattr(console, "running_url", lambda data: "http://node.test")
    monkeypatch.setattr(httpx, "Client", scripted)

    def run(*arguments: str, typed: tuple[str, ...] = (), piped: bytes | None = None) -> Result:
        monkeypatch.setattr("node.cli.chat.interactive", lambda: piped is None)
        given = "".join(f"{line}\n" for line in typed) if piped is None else piped
        return CliRunner().invoke(app, ["chat", *arguments], input=given)

    return run


def test_one_question(api: Api, chat: Chat) -> None:
    api.streams = [Stream(events("It ", "scatters.", usage=9))]
    result = chat("Why is the sky blue?", "--model", "m", "--system", "Be brief.", "--max-tokens", "5")
    assert result.exit_code == 0
    assert result.stdout == "It scatters.\n"
    assert "9 tokens" in result.stderr
    (body,) = api.bodies
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 5, True)
    assert "temperature" not in body


def test_a_conversation_remembers_until_it_is_reset(api: Api, chat: Chat) -> None:
    api.streams = [Stream(events("one")), Stream(events("two")), Stream(events("three")), Stream(events("four"))]
    result = chat(typed=("a", "b", "/system Be kind.", "c", "/help", "/reset", "d", "/quit"))
    assert result.exit_code == 0
    assert [[message["content"] for message in body["messages"]] for body in api.bodies] == [
        ["a"],
        ["a", "one", "b"],
        ["Be kind.", "c"],
        ["d"],
    ]
    assert "/reset forgets" in result.stderr


def test_the_end_of_the_input_ends_it(api: Api, chat: Chat) -> None:
    assert chat(typed=()).exit_code == 0
    assert api.bodies == []


def test_what_is_piped_is_one_question(api: Api, chat: Chat) -> None:
    api.streams = [Stream(events("fine"))]
    result = chat("--system", "Explain this.", piped=b"+ one\n- two \xff\n/quit\n\n")
    assert result.exit_code == 0
    assert result.stdout == "fine\n", "an answer alone, fit for the next pipe"
    assert [message["content"] for message in api.bodies[0]["messages"]] == [
        "Explain this.",
        "+ one\n- two \ufffd\n/quit",
    ]


def test_a_prompt_leaves_the_pipe_alone(api: Api, chat: Chat) -> None:
    """Scripts run commands with a standard input that is somebody else's, and may never end."""
    api.streams = [Stream(events("fine"))]
    assert chat("hi", piped=b"not for us").stdout == "fine\n"
    assert api.bodies[0]["messages"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("piped", [b"", b" \n\n"])
def test_an_empty_pipe_is_an_error(api: Api, chat: Chat, piped: bytes) -> None:
    result = chat(piped=piped)
    assert isinstance(result.exception, CommandError)
    assert "nothing to ask" in str(result.exception)
    assert api.bodies == []


def test_an_error_to_what_was_piped_is_the_commands(api: Api, chat: Chat) -> None:
    api.streams = [httpx.Response(429, json={"error": {"message": "Too many."}})]
    assert isinstance(chat(piped=b"hi").exception, CommandError)


def test_interrupting_stops_the_answer_and_keeps_what_has_come(api: Api, chat: Chat) -> None:
    def interrupted() -> Iterator[bytes]:
        yield next(events("half an"))
        raise KeyboardInterrupt

    stopped = Stream(interrupted())
    api.streams = [stopped, Stream(events("fine"))]
    result = chat(typed=("tell me", "go on", "/quit"))
    assert result.exit_code == 0
    assert stopped.closed, "which is what stops the model"
    assert "half an …" in result.stdout
    assert [message["content"] for message in api.bodies[1]["messages"]] == ["tell me", "half an", "go on"]


def test_an_answer_cannot_steer_the_terminal(api: Api, chat: Chat) -> None:
    api.streams = [Stream(events("a\x1b[2Jb\x9bc\rd\te\n", "👩‍🚀"))]
    assert chat("hi").stdout == "a[2Jbcd\te\n👩‍🚀\n"


def test_an_error_in_a_conversation_does_not_end_it(api: Api, chat: Chat) -> None:
    refused = httpx.Response(429, json={"error": {"message": "Too many [/b] wait."}})
    broken = Stream(iter([b'data: {"error": {"message": "The engine died."}}\n\n']))
    api.streams = [refused, broken, Stream(events("fine"))]
    result = chat(typed=("a", "b", "c", "/quit"))
    assert result.exit_code == 0
    assert "Too many [/b] wait." in result.stderr
    assert "The engine died." in result.stderr
    assert [message["content"] for message in api.bodies[2]["messages"]] == ["c"]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500, text="no envelope"),
        httpx.Response(404, json={"error": {"message": "the node answered 404-ish"}}),
        httpx.Response(500, json=[]),
    ],
)
def test_an_error_to_a_single_question_is_the_commands(api: Api, chat: Chat, answer: httpx.Response) -> None:
    api.streams = [answer]
    result = chat("hi")
    assert isinstance(result.exception, CommandError)
    assert "the node answered" in str(result.exception)


def test_a_connection_that_ends_is_told(api: Api, chat: Chat) -> None:
    def cut() -> Iterator[bytes]:
        yield next(events("ha"))
        raise httpx.ReadError("cut")

    api.streams = [Stream(cut())]
    result = chat("hi")
    assert isinstance(result.exception, CommandError)
    assert "ended the connection: cut" in str(result.exception)


def test_the_operators_key_is_presented(api: Api, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_API_KEYS", "sesame,other")
    api.streams = [Stream(events("in"))]
    assert chat("hi").exit_code == 0
    assert api.keys == ["Bearer sesame"]
