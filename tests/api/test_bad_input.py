"""What a client can get wrong, field by field: a 4xx in OpenAI's envelope that names the parameter."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api.double import MODEL
from tests.api.serving import Served

USER = {"role": "user", "content": "hello"}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [USER]},
    "/v1/completions": {"model": MODEL, "prompt": "hello"},
    "/v1/embeddings": {"model": MODEL, "input": "hello"},
    "/v1/tokenize": {"model": MODEL, "content": "hello"},
    "/v1/detokenize": {"model": MODEL, "tokens": [104]},
    "/v1/edits": {"model": MODEL, "instruction": "shout", "input": "hello"},
    "/v1/rerank": {"model": MODEL, "query": "hello", "documents": ["hello", "bye"]},
}
CHAT, COMPLETIONS, EMBEDDINGS, TOKENIZE, DETOKENIZE, EDITS, RERANK = GOOD
MODERATIONS = "/v1/moderations"
DEEP: Any = {}
for _ in range(70):
    DEEP = {"properties": DEEP}

# What both kinds of generation share: field, value, param if it is not the field itself.
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
# Content parts, and what of them is wrong.
PARTS: list[tuple[Any, str]] = [
    ({"type": "image_url"}, "image_url"),
    ({"type": "image_url", "image_url": 7}, "image_url"),
    ({"type": "image_url", "image_url": {"url": "ftp://127.0.0.1/x.png"}}, "image_url.url"),
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}, "image_url.url"),
    ({"type": "image_url", "image_url": "file:///etc/passwd"}, "image_url"),
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}, "image_url.url"),
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "image_url.url"),
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,eA==", "detail": 7}}, "image_url.detail"),
    ({"type": "input_audio", "input_audio": "eA=="}, "input_audio"),
    ({"type": "input_audio", "input_audio": {"data": "eA=="}}, "input_audio.format"),
    ({"type": "input_audio", "input_audio": {"data": "é", "format": "wav"}}, "input_audio.data"),
    ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,eA=="}}, "type"),
    ({"type": "file", "file": {}}, "type"),
    ({"type": "refusal", "text": "x"}, "refusal"),
]


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


GENERATION: list[tuple[Any, ...]] = [
    ("model", 7),
    ("model", "x" * 600),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "1"),
    ("temperature", True),
    ("top_p", -0.1),
    ("top_p", 1.1),
    ("n", 0),
    ("n", -1),
    ("n", 129),
    ("n", 1.5),
    ("n", "2"),
    ("stop", 7),
    ("stop", ["a", 7], "stop[1]"),
    ("stop", ["a"] * 17),
    ("stop", ["a", "x" * 1001], "stop[1]"),
    ("stop", "x" * 1001),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 2**31),
    ("max_tokens", "many"),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("logit_bias", []),
    ("logit_bias", {"x": 1}, "logit_bias.x"),
    ("logit_bias", {"-1": 1}, "logit_bias.-1"),
    ("logit_bias", {"5": 101}, "logit_bias.5"),
    ("logit_bias", {"5": "1"}, "logit_bias.5"),
    ("seed", 1.5),
    ("seed", 2**63),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("stream_options", 1),
    ("response_format", "json"),
    ("response_format", {}, "response_format.type"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a b"}}, "response_format.json_schema.name"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
        "response_format.json_schema.schema",
    ),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}},
        "response_format.json_schema.schema.type",
    ),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a", "schema": DEEP}},
        "response_format.json_schema.schema",
    ),
    ("user", 7),
    ("metadata", "x"),
    ("top_k", "all"),
    ("min_p", 1.1),
    ("typical_p", -1),
    ("repeat_penalty", -1),
    ("repeat_last_n", -2),
    ("repeat_last_n", 2**31 - 1),
    ("mirostat", 3),
    ("mirostat_tau", -1),
    ("mirostat_eta", "x"),
    ("ignore_eos", 1),
    ("grammar", 7),
    ("grammar", "root ::= ("),
]
CASES: list[tuple[Any, ...]] = [
    *((CHAT, *case) for case in GENERATION),
    *((COMPLETIONS, *case) for case in GENERATION),
    (CHAT, "messages", None),
    (CHAT, "messages", []),
    (CHAT, "messages", "hello"),
    (CHAT, "messages", ["hello"], "messages[0]"),
    (CHAT, "messages", [USER, {"content": "x"}], "messages[1].role"),
    (CHAT, "messages", [{"role": "robot", "content": "x"}], "messages[0].role"),
    (CHAT, "messages", [{"role": "user"}], "messages[0].content"),
    (CHAT, "messages", [{"role": "user", "content": 7}], "messages[0].content"),
    (CHAT, "messages", [{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    (CHAT, "messages", [{"role": "user", "content": [{"type": 7}]}], "messages[0].content[0].type"),
    (CHAT, "messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    (
        CHAT,
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]}],
        "messages[0].content[1].image_url.url",
    ),
    *(
        (CHAT, "messages", [{"role": "user", "content": [part]}], f"messages[0].content[0].{where}")
        for part, where in PARTS
    ),
    (CHAT, "messages", [{**USER, "name": 7}], "messages[0].name"),
    (CHAT, "messages", [{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].id"),
    (CHAT, "messages", [{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls"),
    (CHAT, "messages", [{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls[0].function"),
    (CHAT, "messages", [{**USER, "tool_calls": [CALL]}], "messages[0].tool_calls"),
    (CHAT, "messages", [{**USER, "function_call": CALL["function"]}], "messages[0].function_call"),
    (CHAT, "messages", [{"role": "assistant", "function_call": {}}], "messages[0].function_call.name"),
    (CHAT, "messages", [{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    (CHAT, "messages", [{"role": "tool", "tool_call_id": "1"}], "messages[0].content"),
    (CHAT, "messages", [{"role": "function", "content": "x"}], "messages[0].name"),
    (CHAT, "max_completion_tokens", 0),
    (CHAT, "logprobs", 5),
    (CHAT, "top_logprobs", 21),
    (CHAT, "top_logprobs", 2),  # without logprobs
    (CHAT, "tools", "f"),
    (CHAT, "tools", ["f"], "tools[0]"),
    (CHAT, "tools", [{"type": "web_search"}], "tools[0].type"),
    (CHAT, "tools", [{"type": "function"}], "tools[0].function"),
    (CHAT, "tools", [{"type": "function", "function": {"name": "f g"}}], "tools[0].function.name"),
    (CHAT, "tools", [{"type": "function", "function": {"name": ""}}], "tools[0].function.name"),
    (CHAT, "tools", [tool("f", 7)], "tools[0].function.parameters"),
    (CHAT, "tools", [tool("f", {"type": "thing"})], "tools[0].function.parameters.type"),
    (CHAT, "tools", [tool("f", DEEP)], "tools[0].function.parameters"),
    (CHAT, "tools", [tool("f"), tool("f")], "tools[1]"),
    (CHAT, "tools", [tool(f"f{number}") for number in range(513)]),
    (CHAT, "tool_choice", "sometimes"),
    (CHAT, "tool_choice", "required"),  # without tools
    (CHAT, "tool_choice", 7),
    (CHAT, "tool_choice", "{not JSON"),
    (CHAT, "tool_choice", {"type": "function", "function": {"name": "g"}}, "tool_choice.function.name"),
    (CHAT, "tool_choice", {"type": "function", "function": {}}, "tool_choice.function.name"),
    (CHAT, "tool_choice", {"type": "custom"}, "tool_choice.type"),
    (CHAT, "tool_choice", {"type": "allowed_tools"}, "tool_choice.allowed_tools"),
    (CHAT, "parallel_tool_calls", "no"),
    (CHAT, "functions", [{}], "functions[0].name"),
    (CHAT, "reasoning_effort", "extreme"),
    (CHAT, "modalities", ["text", "audio"], "modalities[1]"),
    (CHAT, "grammar_json_functions", DEEP),
    (CHAT, "grammar_json_functions", []),
    (CHAT, "chat_template_kwargs", []),
    (CHAT, "chat_template_kwargs", DEEP),
    (EDITS, "instruction", None),
    (EDITS, "instruction", 7),
    (EDITS, "input", 7),
    (EDITS, "n", 0),
    (EDITS, "temperature", 3),
    (RERANK, "query", None),
    (RERANK, "query", ""),
    (RERANK, "documents", None),
    (RERANK, "documents", []),
    (RERANK, "documents", "x"),
    (RERANK, "documents", ["a", 7], "documents[1]"),
    (RERANK, "documents", ["a", ""], "documents[1]"),
    (RERANK, "documents", [{"text": 7}], "documents[0].text"),
    (RERANK, "documents", [{}], "documents[0].text"),
    (RERANK, "documents", ["a"] * 2048),
    (RERANK, "top_n", 0),
    (RERANK, "top_n", "1"),
    (MODERATIONS, "input", None),
    (MODERATIONS, "input", 7),
    (MODERATIONS, "input", []),
    (EMBEDDINGS, "messages", [USER]),  # beside input
    (EMBEDDINGS, "messages", []),
    (COMPLETIONS, "best_of", 0),
    (COMPLETIONS, "best_of", 129),
    (COMPLETIONS, "prompt", None),
    (COMPLETIONS, "prompt", 7),
    (COMPLETIONS, "prompt", []),
    (COMPLETIONS, "prompt", [[]], "prompt[0]"),
    (COMPLETIONS, "prompt", ["a", 7], "prompt[1]"),
    (COMPLETIONS, "prompt", [[1], "a"], "prompt[1]"),
    (COMPLETIONS, "prompt", [1, "a"], "prompt[1]"),
    (COMPLETIONS, "prompt", [1, True], "prompt[1]"),
    (COMPLETIONS, "prompt", [[1], [2, -1]], "prompt[1][1]"),
    (COMPLETIONS, "prompt", ["a"] * 2049),
    (COMPLETIONS, "prompt", "x" * 3000),
    (COMPLETIONS, "prompt", ["x", "x" * 3000], "prompt"),
    (COMPLETIONS, "echo", "yes"),
    (COMPLETIONS, "logprobs", 6),
    (COMPLETIONS, "logprobs", True),
    (EMBEDDINGS, "model", []),
    (EMBEDDINGS, "input", None),
    (EMBEDDINGS, "input", ""),
    (EMBEDDINGS, "input", []),
    (EMBEDDINGS, "input", ["a", ""], "input[1]"),
    (EMBEDDINGS, "input", [["a"]], "input[0][0]"),
    (EMBEDDINGS, "input", {}),
    (EMBEDDINGS, "input", "x" * 3000),
    (EMBEDDINGS, "encoding_format", "hex"),
    (EMBEDDINGS, "dimensions", 0),
    (EMBEDDINGS, "dimensions", 9999),
    (EMBEDDINGS, "user", 7),
    (TOKENIZE, "model", 7),
    (TOKENIZE, "content", 7),
    (TOKENIZE, "add_special", 7),
    (TOKENIZE, "parse_special", "no"),
    (DETOKENIZE, "model", 7),
    (DETOKENIZE, "tokens", "a"),
    (DETOKENIZE, "tokens", [1, -1], "tokens[1]"),
    (DETOKENIZE, "tokens", [1, 1.5], "tokens[1]"),
    (DETOKENIZE, "tokens", [70000]),
]
REQUIRED = [(CHAT, "messages"), (COMPLETIONS, "prompt"), (EMBEDDINGS, "input"), (TOKENIZE, "content")]


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error in OpenAI's envelope."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Correlation-ID"]
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0][4:]}-{case[1]}-{str(case[2])[:20]}")
def test_wrong_values(http: httpx.Client, double: Served, case: tuple[Any, ...]) -> None:
    path, field, value, param = (*case, case[1])[:4]
    error = error_of(http.post(path, json={**GOOD.get(path, {}), field: value}), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert double.dispatcher.running == 0


@pytest.mark.parametrize("path", GOOD)
def test_the_same_bodies_without_a_mistake(http: httpx.Client, path: str) -> None:
    assert http.post(path, json=GOOD[path]).status_code == 200


@pytest.mark.parametrize(("path", "field"), [*REQUIRED, (DETOKENIZE, "tokens")])
def test_missing_fields(http: httpx.Client, path: str, field: str) -> None:
    body = {name: value for name, value in GOOD[path].items() if name != field}
    error = error_of(http.post(path, json=body), 400)
    assert (error["param"], error["code"]) == (field, "missing_required_parameter")


@pytest.mark.parametrize("path", GOOD)
def test_unknown_model(http: httpx.Client, path: str) -> None:
    error = error_of(http.post(path, json={**GOOD[path], "model": "nobody"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "nobody" in error["message"]


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"7",
        b'"x"',
        b"null",
        b"{'model': 1}",
        b'{"model": NaN}',
        b'{"temperature": 1e999}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
    ids=range(15),
)
def test_not_json(http: httpx.Client, path: str, body: bytes) -> None:
    error = error_of(http.post(path, content=body), 400)
    assert error["param"] is None


@pytest.mark.parametrize("path", GOOD)
def test_a_body_cut_short(http: httpx.Client, path: str) -> None:
    whole = json.dumps(GOOD[path]).encode()
    for length in range(len(whole)):
        error_of(http.post(path, content=whole[:length]), 400)


@pytest.mark.parametrize("path", GOOD)
def test_unknown_fields_are_ignored(http: httpx.Client, path: str) -> None:
    extra = {"store": True, "service_tier": "auto", "tools": [], "": None, "x\u2028y": {"a": [1]}}
    assert http.post(path, json={**GOOD[path], **extra}).status_code == 200


@pytest.mark.parametrize("path", GOOD)
def test_null_means_absent(http: httpx.Client, path: str) -> None:
    fields = {case[1] for case in CASES if case[0] == path} - set(GOOD[path])
    assert http.post(path, json={**GOOD[path], **dict.fromkeys(fields)}).status_code == 200


def test_a_broken_schema_is_the_response_formats_fault(http: httpx.Client) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": []}}}
    error = error_of(http.post(CHAT, json={**GOOD[CHAT], "response_format": wanted}), 400)
    assert error["param"] == "response_format.json_schema.schema.properties"


def test_too_many_choices_in_all(http: httpx.Client) -> None:
    body = {**GOOD[COMPLETIONS], "prompt": ["a"] * 2048, "n": 2}
    assert error_of(http.post(COMPLETIONS, json=body), 400)["param"] == "n"


def test_context_overflow_has_openais_code(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 3000}]}
    error = error_of(http.post(CHAT, json=body), 400)
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


def test_no_model_named_and_none_that_could(http: httpx.Client, double: Served) -> None:
    double.node.capabilities = ()
    error = error_of(http.post(EMBEDDINGS, json={"input": "x"}), 404)
    assert error["param"] == "model"
