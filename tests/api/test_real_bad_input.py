"""Bad input where only a real engine can judge it, on a node with SmolLM2: a 4xx that names the parameter, the same
worker before and after, and not a slot that stays taken."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.api.double import MODEL
from tests.api.test_bad_input import CHAT, COMPLETIONS, DETOKENIZE, EMBEDDINGS, GOOD, TOKENIZE, USER, error_of
from tests.support.ends import until
from tests.support.nodes import RunningNode

LONG = "word " * 2500  # the context is 2,048 tokens
OBJECT = {"type": "object"}


@pytest.fixture(scope="module")
def http(real_node: RunningNode) -> Iterator[httpx.Client]:
    with real_node.http as client:
        assert client.post(COMPLETIONS, json=GOOD[COMPLETIONS] | {"max_tokens": 1}).status_code == 200
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(real_node: RunningNode, http: httpx.Client) -> Iterator[None]:
    """The worker lives through every test, and has all its slots back."""
    before = worker_of(real_node).pid
    yield
    until(lambda: leased(http) == 0)
    assert worker_of(real_node).pid == before


def worker_of(node: RunningNode) -> psutil.Process:
    [worker] = node.workers()
    return worker


def leased(http: httpx.Client) -> int:
    [model] = http.get("/system").json()["models"]
    return int(model["slots_leased"]) + int(model["queue"])


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


OVER: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    (CHAT, {"messages": [USER] * 1000}, "messages"),
    (COMPLETIONS, {"prompt": LONG}, "prompt"),
    (COMPLETIONS, {"prompt": [5] * 2048}, "prompt"),
    (COMPLETIONS, {"prompt": [LONG, LONG]}, "prompt"),  # with one that fits, its stream might begin before
    (EMBEDDINGS, {"input": LONG}, "input"),
    (EMBEDDINGS, {"input": [[5], [5] * 3000]}, "input"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields", "param"), OVER)
def test_over_the_context(http: httpx.Client, path: str, fields: dict[str, Any], param: str, stream: bool) -> None:
    error = error_of(http.post(path, json=GOOD[path] | fields | {"stream": stream}), 400)
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert "2048" in error["message"]


GRAMMARS = {
    "empty": " ",
    "no GBNF": "please answer in French",
    "open": "root ::= (",
    "open class": "root ::= [a",
    "bad escape": 'root ::= "\\x"',
    "no root": 'answer ::= "a"',
    "undefined rule": "root ::= nope",
    "left recursion": 'root ::= root "a" | "a"',
    "hidden left recursion": "root ::= a\na ::= b\nb ::= a",
    "too many repetitions": 'root ::= "a"{1000000}',
    "endless number": 'root ::= "a"{99999999999999999999999}',
    "deep": "root ::= " + "(" * 500 + '"a"' + ")" * 500,
    "large": "root ::= " + '"a" ' * 100_000,
    "NUL": 'root ::= "a\0b"',
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", GRAMMARS)
def test_a_broken_grammar(http: httpx.Client, kind: str, stream: bool) -> None:
    for path in (CHAT, COMPLETIONS):
        body = GOOD[path] | {"grammar": GRAMMARS[kind], "max_tokens": 4, "stream": stream}
        assert error_of(http.post(path, json=body), 400)["param"] == "grammar"


DEAD_ENDS = {
    "nothing": "root ::= [^\\x00-\\U0010FFFF]",
    "no token": "root ::= [z-a]",
    "no second": 'root ::= "a" [z-a]',
}


@pytest.mark.parametrize("kind", DEAD_ENDS)
def test_a_grammar_that_leads_nowhere(http: httpx.Client, kind: str) -> None:
    """It can be parsed; that no token follows is seen when one is wanted. A stream has begun by then."""
    body = GOOD[COMPLETIONS] | {"grammar": DEAD_ENDS[kind], "max_tokens": 4}
    assert error_of(http.post(COMPLETIONS, json=body), 400)["param"] == "grammar"
    streamed = http.post(COMPLETIONS, json=body | {"stream": True})
    [error] = [
        json.loads(line[6:])["error"] for line in streamed.text.splitlines() if line.startswith('data: {"error"')
    ]
    assert (error["param"], error["type"]) == ("grammar", "invalid_request_error")


SCHEMAS: list[Any] = [
    {"type": "string", "maxLength": 10**9},
    {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    {"type": "string", "pattern": "^a{1000000000}$"},
    {"type": "string", "pattern": "^[a$"},
    {"type": "string", "pattern": 7},
    {"$ref": "#/definitions/missing"},
    {"$ref": "https://schemas.invalid/x.json"},
    {"$ref": "file:///etc/passwd"},
    {"enum": []},
    {"anyOf": []},
    {"oneOf": 7},
    {"not": OBJECT},
    {"type": "array", "items": 7},
    {"type": "object", "properties": {"a": 7}},
    {"type": "object", "properties": {"a": OBJECT}, "required": 7},
]


@pytest.mark.parametrize("wanted", SCHEMAS, ids=lambda wanted: str(wanted)[:40])
def test_a_broken_schema(http: httpx.Client, wanted: Any) -> None:
    error = error_of(http.post(CHAT, json=GOOD[CHAT] | schema(wanted) | {"max_tokens": 4}), 400)
    assert error["param"].startswith("response_format")


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "string", "maxLength": 500},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 1000},
        {"type": "string", "pattern": "^[a-c]{1,300}$"},
    ],
    ids=str,
)
def test_a_generous_schema_is_none(http: httpx.Client, wanted: Any) -> None:
    assert http.post(CHAT, json=GOOD[CHAT] | schema(wanted) | {"max_tokens": 4}).status_code == 200


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {"n": 0}, "n"),
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"max_tokens": -1}, "max_tokens"),
    (CHAT, {"max_completion_tokens": -1}, "max_completion_tokens"),
    (CHAT, {"temperature": "hot"}, "temperature"),
    (CHAT, {"messages": {}}, "messages"),
    (CHAT, {"model": ["smol"]}, "model"),
    (CHAT, {"logit_bias": {"2000000000": 1}}, "logit_bias"),
    (COMPLETIONS, {"prompt": [2_000_000_000]}, "prompt"),
    (COMPLETIONS, {"prompt": [1, -1]}, "prompt[1]"),
    (EMBEDDINGS, {"input": [[2_000_000_000]]}, "input"),
    (DETOKENIZE, {"tokens": [2_000_000_000]}, "tokens"),
    (CHAT, {"grammar": 'root ::= "a"', "ignore_eos": True}, "ignore_eos"),
    (CHAT, {"chat_template_kwargs": {"messages": 1, "x": []}, "messages": []}, "messages"),
]


@pytest.mark.parametrize(("path", "fields", "param"), WRONG)
def test_wrong_values(http: httpx.Client, path: str, fields: dict[str, Any], param: str) -> None:
    assert error_of(http.post(path, json=GOOD[path] | fields), 400)["param"] == param


@pytest.mark.parametrize("path", GOOD)
def test_an_unknown_model(http: httpx.Client, path: str) -> None:
    error = error_of(http.post(path, json=GOOD[path] | {"model": f"{MODEL}x"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert f'"{MODEL}"' in error["message"], "the nearest name is a hint"


@pytest.mark.parametrize("path", GOOD)
def test_bodies_that_are_none(http: httpx.Client, path: str) -> None:
    whole = json.dumps(GOOD[path]).encode()
    for content in (b"", whole[:-1], whole.replace(b"hello", b"\xff"), whole.replace(b"104", b"\xff"), b"\xff\xfe"):
        if content != whole:
            assert error_of(http.post(path, content=content), 400)["param"] is None
    error = error_of(http.post(path, content=b" " * (16 << 20)), 413)
    assert error["code"] == "request_too_large"


@pytest.mark.parametrize(
    "text", ["\0", "<|im_start|>" * 5, "\U0010ffff\ufffe\ufeff", "e\u0301" * 9, " ", "\n" * 30], ids=ascii
)
def test_text_of_every_kind_is_no_bad_input(http: httpx.Client, text: str) -> None:
    """What may break an engine and must not."""
    for path, field in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input"), (TOKENIZE, "content")):
        answer = http.post(path, json=GOOD[path] | {field: text, "max_tokens": 1})
        assert answer.status_code == 200, answer.text


REQUEST = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True}


def raw(stream: bool) -> bytes:
    data = json.dumps(REQUEST | {"stream": stream}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_at_any_point(real_node: RunningNode, http: httpx.Client, stream: bool) -> None:
    """In the headers, in the body, right behind it, while the engine works, and in mid-stream."""
    url = httpx.URL(real_node.url)
    whole = raw(stream)
    for cut in (*range(1, len(whole), 29), len(whole)):
        with socket.create_connection((url.host, url.port or 80)) as client:
            client.sendall(whole[:cut])
    until(lambda: leased(http) == 0)
    for _ in range(12):  # more than there are slots
        with socket.create_connection((url.host, url.port or 80)) as client:
            client.sendall(whole)
            if stream:
                seen = b""
                while seen.count(b"data: ") < 2:
                    seen += client.recv(65536)
            else:
                until(lambda: leased(http) > 0)
    until(lambda: leased(http) == 0)
    assert http.post(COMPLETIONS, json=REQUEST | {"max_tokens": 3}).status_code == 200
