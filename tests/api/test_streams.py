"""Streams to the letter, and where an error goes before and after the first chunk."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest

from backends.types import (
    Accepted,
    Busy,
    CallerError,
    Chunk,
    EngineCrashed,
    EngineFault,
    Finished,
    LoadFailed,
    MeshError,
    ModelDisabled,
    OutOfMemory,
    Request,
    Text,
    TokenLogprob,
    TopLogprob,
)
from tests.api.double import MODEL, Script
from tests.api.serving import Served

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}
COMPLETION = {"model": MODEL, "prompt": "x", "stream": True}
HELLO: list[list[Chunk]] = [[Accepted(3)], [Text(0, "Hel"), Text(0, ""), Text(0, "lo\n\u2028")], [Finished(0, "stop")]]


def saying(batches: Sequence[Sequence[Chunk]], error: Exception | None = None) -> Script:
    """A script of fixed batches, and how it ends."""

    async def script(request: Request) -> AsyncIterator[Sequence[Chunk]]:
        for batch in batches:
            yield batch
        if error is not None:
            raise error

    return script


def events(http: httpx.Client, path: str, body: dict[str, Any]) -> list[Any]:
    """The decoded events of a stream; [DONE] as it is."""
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "Content-Length" not in answer.headers
    assert answer.text.endswith("\n\n")
    lines = answer.text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and len(line.splitlines()) == 1 for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def test_chat_byte_for_byte(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = saying(HELLO)
    text = http.post("/v1/chat/completions", json=CHAT).text
    identity = re.match(r'data: {"id":"(chatcmpl-\w{32})","object":"chat.completion.chunk","created":(\d{10}),', text)
    assert identity is not None
    head = (
        f'data: {{"id":"{identity[1]}","object":"chat.completion.chunk","created":{identity[2]},"model":"smol",'
        f'"system_fingerprint":"{json.loads(text.split("data: ")[1])["system_fingerprint"]}",'
        '"choices":[{"index":0,"delta":'
    )
    tail = ',"logprobs":null,"finish_reason":null}]}\n\n'
    assert text == (
        f'{head}{{"role":"assistant","content":""}}{tail}'
        f'{head}{{"content":"Hel"}}{tail}'
        f'{head}{{"content":"lo\\n\\u2028"}}{tail}'
        f'{head}{{}},"logprobs":null,"finish_reason":"stop"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_completions(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = saying(HELLO)
    *chunks, done = events(http, "/v1/completions", COMPLETION)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
        for text, reason in [("Hel", None), ("lo\n\u2028", None), ("", "stop")]
    ]


def test_usage_trailer(http: httpx.Client) -> None:
    wanted = {"stream_options": {"include_usage": True}, "max_tokens": 3}
    *chunks, trailer, done = events(http, "/v1/chat/completions", CHAT | wanted)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert trailer["choices"] == []
    assert trailer["usage"]["completion_tokens"] == 3
    assert trailer["id"] == chunks[0]["id"]
    assert all("usage" not in chunk for chunk in events(http, "/v1/chat/completions", CHAT)[:-1])


def test_each_choice_opens_and_ends_once(http: httpx.Client) -> None:
    *chunks, _ = events(http, "/v1/chat/completions", CHAT | {"n": 3, "max_tokens": 5})
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]
        assert own[-1]["delta"] == {}


def test_several_prompts_have_indices_of_their_own(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 9, "temperature": 0, "echo": True}
    whole = http.post("/v1/completions", json=body).json()
    assert [choice["text"][0] for choice in whole["choices"]] == list("aabbcc")
    assert whole["usage"]["prompt_tokens"] == 3
    assert whole["usage"]["completion_tokens"] == 54
    texts = [""] * 6
    for chunk in events(http, "/v1/completions", body | {"stream": True})[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]


def test_all_that_is_ready_leaves_in_one_write(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = saying([[Accepted(1)], [Text(0, "a")] * 50, [Finished(0, "stop")]])
    with http.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
        sizes = [piece.count(b'"content":"a"') for piece in answer.iter_raw()]
    assert max(sizes) == 50


def test_logprobs_in_pieces(http: httpx.Client, double: Served) -> None:
    euro = "€".encode()  # spread over two tokens
    tokens = [
        TokenLogprob(1, b"a", -0.5, (TopLogprob(1, b"a", -0.5), TopLogprob(2, b"b", float("-inf")))),
        TokenLogprob(3, euro[:1], -1.0),
        TokenLogprob(4, euro[1:], float("-inf")),
        TokenLogprob(5, b"z", 0.0),
    ]
    batches: list[list[Chunk]] = [
        [Accepted(1), Text(0, "a", (1,), tuple(tokens[:1])), Text(0, "", (3,), (tokens[1],))],
        [Text(0, "€z", (4, 5), tuple(tokens[2:])), Finished(0, "stop")],
    ]
    script = saying(batches)
    double.dispatcher.script = script
    *chunks, _ = events(http, "/v1/completions", COMPLETION | {"logprobs": 2})
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
    assert [piece["text_offset"] for piece in pieces] == [[0], [1], [1, 2]]
    assert pieces[0]["top_logprobs"] == [{"a": -0.5, "b": -9999.0}]
    assert pieces[2]["token_logprobs"] == [-9999.0, 0.0]

    wanted = {"logprobs": True, "top_logprobs": 2}
    *chunks, _ = events(http, "/v1/chat/completions", CHAT | wanted)
    entries = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == b"a\xe2\x82\xacz"
    assert entries[0]["top_logprobs"][1] == {"token": "b", "bytes": [98], "logprob": -9999.0}
    double.dispatcher.script = script
    whole = http.post("/v1/chat/completions", json=CHAT | wanted | {"stream": False}).json()
    assert whole["choices"][0]["logprobs"]["content"] == entries
    assert whole["choices"][0]["logprobs"]["refusal"] is None


ERRORS: list[tuple[Callable[[], MeshError], int, str | None]] = [
    (lambda: Busy("The queue is full.", retry_after_s=2.4), 429, "rate_limit_exceeded"),
    (lambda: Busy("The node is shutting down.", code="shutting_down"), 503, "shutting_down"),
    (lambda: ModelDisabled("It is off."), 403, "model_disabled"),
    (lambda: LoadFailed("Not a GGUF file."), 500, "model_load_failed"),
    (lambda: OutOfMemory("It does not fit."), 503, "out_of_memory"),
    (lambda: EngineCrashed("It died."), 502, "engine_crashed"),
    (lambda: EngineFault("It failed."), 500, "engine_fault"),
    (lambda: CallerError("Wrong.", param="grammar"), 400, None),
]


@pytest.mark.parametrize(("make", "status", "code"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["opening", "first chunk", "several prompts"])
def test_errors_before_the_first_chunk_are_a_status(
    http: httpx.Client,
    double: Served,
    make: Callable[[], MeshError],
    status: int,
    code: str | None,
    stream: bool,
    when: str,
) -> None:
    async def fail() -> None:
        raise make()

    if when == "first chunk":
        double.dispatcher.script = saying([], make())
    else:
        double.dispatcher.opening = fail
    prompt = ["a", "b"] if when == "several prompts" else "a"
    answer = http.post("/v1/completions", json=COMPLETION | {"prompt": prompt, "stream": stream})
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["message"] == make().message
    assert double.dispatcher.running == 0
    if status == 429:
        assert answer.headers["Retry-After"] == "3"


@pytest.mark.parametrize(("make", "status", "code"), ERRORS)
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_errors_after_the_first_chunk_are_one_event_and_the_end(
    http: httpx.Client, double: Served, make: Callable[[], MeshError], status: int, code: str | None, prompt: Any
) -> None:
    double.dispatcher.script = saying([[Accepted(1), Text(0, "Hel")]], make())
    *chunks, error, done = events(http, "/v1/completions", COMPLETION | {"prompt": prompt})
    assert done == "[DONE]"
    assert chunks
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    assert list(error) == ["error"]
    assert (error["error"]["code"], error["error"]["message"]) == (code, make().message)
    assert double.dispatcher.running == 0


@pytest.mark.parametrize("batches", [[], [[Accepted(1)]], [[Accepted(1), Text(0, "Hel")]]])
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_just_stops(http: httpx.Client, double: Served, batches: Any, stream: bool) -> None:
    double.dispatcher.script = saying(batches)
    if stream and batches:
        error = events(http, "/v1/chat/completions", CHAT)[-2]
    else:
        answer = http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
        assert answer.status_code == 500
        error = answer.json()
    assert error["error"]["code"] == "engine_fault"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("batches", [[], [[Accepted(1)]]])
def test_a_bug_of_ours_is_logged_and_not_shown(
    http: httpx.Client, double: Served, caplog: pytest.LogCaptureFixture, stream: bool, batches: Any
) -> None:
    double.dispatcher.script = saying(batches, KeyError("a secret"))
    text = http.post("/v1/chat/completions", json=CHAT | {"stream": stream}).text
    assert '"code":"internal_error"' in text
    assert "secret" not in text
    assert "a secret" in caplog.text
