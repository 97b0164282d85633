"""Ollama's API to the letter: lines of a stream, what the engine is asked, models, and what is refused."""

from __future__ import annotations

import base64
import math
from typing import Any

import httpx
import pytest

from backends.types import (
    Accepted,
    Chunk,
    CompletionRequest,
    Finished,
    ImagePart,
    Text,
    TextPart,
    TokenLogprob,
    TopLogprob,
)
from backends.types import ChatRequest as EngineChat
from tests.api.dialects import CALLS, CITY, CRASH, HERMES, THINKING, lines, says
from tests.api.double import CONTEXT_TOKENS, EMBEDDING_SIZE, MODEL
from tests.api.serving import Served
from tests.api.test_streams import saying
from tests.support.images import PNG

HELLO = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": HELLO}
GENERATE = {"model": MODEL, "prompt": "hi"}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}}]
FIGURES = {
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
}


def chat(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post("/api/chat", json=CHAT | {"stream": False} | body)
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def chatted(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    return lines(http.post("/api/chat", json=CHAT | body))


def asked(double: Served) -> EngineChat:
    request = double.dispatcher.asked[-1]
    assert isinstance(request, EngineChat)
    return request


def check_end(line: dict[str, Any], reason: str) -> None:
    assert set(line) == {"model", "created_at", "message", "done", "done_reason"} | FIGURES
    assert (line["done"], line["done_reason"]) == (True, reason)
    assert line["message"] == {"role": "assistant", "content": ""}
    assert all(isinstance(line[name], int) and line[name] >= 0 for name in FIGURES)


def test_a_stream_of_text(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hel", "lo\u2028")
    *parts, last = chatted(http, {})
    for part, text in zip(parts, ("Hel", "lo\u2028"), strict=True):
        assert part.pop("created_at").endswith("Z")
        assert part == {"model": MODEL, "message": {"role": "assistant", "content": text}, "done": False}
    check_end(last, "stop")
    double.dispatcher.reset()
    *_, last = chatted(http, {"options": {"num_predict": 3}})
    check_end(last, "length")
    assert (last["prompt_eval_count"], last["eval_count"]) == (9, 3)


def test_a_stream_of_tool_calls(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says(*CALLS, form=HERMES)
    text, first, second, last = chatted(http, {"tools": TOOLS})
    assert text["message"]["content"] == "I look."
    calls = [part["message"].pop("tool_calls") for part in (first, second)]
    assert first["message"] == second["message"] == {"role": "assistant", "content": ""}
    assert [call["function"] for [call] in calls] == [
        {"index": 0, "name": "weather", "arguments": {"city": "Paris"}},
        {"index": 1, "name": "weather", "arguments": {"city": "Rome"}},
    ]
    assert calls[0][0]["id"] != calls[1][0]["id"]
    check_end(last, "stop")
    double.dispatcher.script = says(*CALLS, form=HERMES)
    message = chat(http, {"tools": TOOLS})["message"]
    assert message["content"] == "I look."
    assert [call["function"] for call in message["tool_calls"]] == [call["function"] for [call] in calls]


def test_thinking_is_told_apart(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hm", "m.</think>", "Yes.", form=THINKING)
    *parts, _ = chatted(http, {"think": True})
    assert [part["message"] for part in parts] == [
        {"role": "assistant", "content": "", "thinking": "Hm"},
        {"role": "assistant", "content": "", "thinking": "m."},
        {"role": "assistant", "content": "Yes."},
    ]
    assert asked(double).template_kwargs == {"enable_thinking": True}
    double.dispatcher.script = says("Hmm.</think>Yes.", form=THINKING)
    assert chat(http, {})["message"] == {"role": "assistant", "content": "Yes.", "thinking": "Hmm."}
    assert asked(double).template_kwargs == {}
    double.dispatcher.script = says("Hmm.</think>Yes.", form=THINKING)
    assert chat(http, {"think": False})["message"] == {"role": "assistant", "content": "Yes."}
    double.dispatcher.script = says("Hmm.</think>Yes.", form=THINKING)
    answer = http.post("/api/generate", json=GENERATE | {"stream": False, "think": "high"}).json()
    assert (answer["response"], answer["thinking"]) == ("Yes.", "Hmm.")
    assert asked(double).template_kwargs == {"enable_thinking": True, "reasoning_effort": "high"}


def test_an_error_in_the_middle_is_the_last_line(http: httpx.Client, double: Served) -> None:
    for path, body in (("/api/chat", CHAT), ("/api/generate", GENERATE)):
        double.dispatcher.script = says("Hel", error=CRASH)
        *_, last = lines(http.post(path, json=body))
        assert last == {"error": "The engine died."}
        double.dispatcher.script = saying([], CRASH)
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()) == (502, {"error": "The engine died."})
    assert double.dispatcher.running == 0


def test_generate(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hel", "lo")
    *parts, last = lines(http.post("/api/generate", json=GENERATE | {"system": "Be kind."}))
    assert [part["response"] for part in parts] == ["Hel", "lo"]
    assert set(parts[0]) == {"model", "created_at", "response", "done"}
    assert set(last) == {"model", "created_at", "response", "done", "done_reason"} | FIGURES
    assert [(m.role, m.content) for m in asked(double).messages] == [("system", "Be kind."), ("user", "hi")]
    for extra, prompt, suffix in (({"raw": True}, "hi", None), ({"suffix": "end"}, "hi", "end")):
        double.dispatcher.script = says("x")
        assert http.post("/api/generate", json=GENERATE | extra | {"stream": False}).json()["response"] == "x"
        request = double.dispatcher.asked[-1]
        assert isinstance(request, CompletionRequest)
        assert (request.prompt, request.suffix) == (prompt, suffix)


def test_options_and_format(http: httpx.Client, double: Served) -> None:
    options = {
        "num_predict": -1,
        "temperature": 1,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.7,
        "repeat_last_n": 33,
        "repeat_penalty": 1.2,
        "presence_penalty": 1.5,
        "frequency_penalty": 1.0,
        "mirostat": 1,
        "mirostat_tau": 0.8,
        "mirostat_eta": 0.6,
        "seed": 42,
        "stop": ["\n", "user:"],
        "num_ctx": 1024,
        "num_gpu": 1,
        "numa": False,
    }
    double.dispatcher.script = says("x")
    chat(http, {"options": options, "format": CITY})
    request = asked(double)
    assert request.max_tokens is None
    assert request.stop == ("\n", "user:")
    assert request.json_schema == CITY
    for name in set(options) - {"num_predict", "stop", "num_ctx", "num_gpu", "numa"}:
        assert getattr(request.sampling, name) == options[name], name
    double.dispatcher.reset()
    assert chat(http, {"format": "json"})["message"]["content"] == "{}"
    assert asked(double).json_schema == {}
    double.dispatcher.script = says("x")
    chat(http, {"format": "", "options": {"stop": "END", "num_predict": 0}})
    assert (asked(double).json_schema, asked(double).stop, asked(double).max_tokens) == (None, ("END",), None)


def test_messages(http: httpx.Client, double: Served) -> None:
    image = base64.b64encode(PNG).decode()
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Look.", "images": [image]},
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "Sun.", "tool_name": "weather"},
    ]
    double.dispatcher.script = says("ok")
    chat(http, {"messages": messages, "tools": TOOLS})
    request = asked(double)
    assert request.messages[1].content == (ImagePart(data=PNG, media_type="image/png"), TextPart("Look."))
    assert request.messages[2].reasoning == "Hm."
    assert request.messages[2].tool_calls[0].arguments == '{"city": "Paris"}'
    assert (request.messages[3].role, request.messages[3].name) == ("tool", "weather")
    assert (request.tools[0].name, request.tools[0].parameters) == ("weather", CITY)


def test_logprobs(http: httpx.Client, double: Served) -> None:
    token = TokenLogprob(1, b"a", -0.5, (TopLogprob(1, b"a", -0.5), TopLogprob(2, b"b", -math.inf)))
    batches: list[list[Chunk]] = [[Accepted(1)], [Text(0, "a", (1,), (token,))], [Finished(0, "stop")]]
    double.dispatcher.script = saying(batches)
    part, _ = chatted(http, {"logprobs": True, "top_logprobs": 2})
    [entry] = part["logprobs"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("a", -0.5, [97])
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -9999.0]
    double.dispatcher.script = saying(batches)
    assert chat(http, {"logprobs": True, "top_logprobs": 2})["logprobs"] == [entry]


def test_how_long_a_model_stays(http: httpx.Client, double: Served) -> None:
    wanted = {
        "5m": 300,
        "1h30m": 5400,
        10: 10,
        "10": 10,
        "-1": math.inf,
        -1: math.inf,
        "-5m": math.inf,
        "0": 0,
        "1.5s": 1.5,
    }
    for given, seconds in wanted.items():
        chat(http, {"keep_alive": given, "options": {"num_predict": 1}})
        assert double.dispatcher.contexts[-1].keep_s == seconds
    for path, body in (("/api/chat", {"model": MODEL}), ("/api/generate", {"model": MODEL, "prompt": ""})):
        answer = http.post(path, json=body | {"keep_alive": 0}).json()
        assert (answer["done"], answer["done_reason"]) == (True, "unload")
        assert double.dispatcher.contexts[-1].keep_s == 0
        loaded = http.post(path, json=body).json()
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        assert double.dispatcher.contexts[-1].keep_s is None
    chat(http, {"options": {"num_predict": 1}})
    assert double.dispatcher.contexts[-1].keep_s is None


def test_embeddings(http: httpx.Client) -> None:
    answer = http.post("/api/embed", json={"model": MODEL, "input": ["a b", "c"]}).json()
    assert [len(vector) for vector in answer["embeddings"]] == [EMBEDDING_SIZE] * 2
    assert answer["prompt_eval_count"] == 4
    one = http.post("/api/embed", json={"model": MODEL, "input": "a b", "dimensions": 8}).json()["embeddings"][0]
    assert len(one) == 8
    assert math.isclose(sum(value * value for value in one), 1, abs_tol=1e-6)
    older = http.post("/api/embeddings", json={"model": MODEL, "prompt": "a b"}).json()
    assert older == {"embedding": answer["embeddings"][0]}
    assert http.post("/api/embed", json={"model": MODEL, "input": []}).json()["embeddings"] == []
    assert http.post("/api/embeddings", json={"model": MODEL, "prompt": ""}).json() == {"embedding": []}
    assert http.post("/api/embed", json={"model": MODEL, "input": "x", "dimensions": 9999}).status_code == 400


def test_long_inputs_are_cut_unless_told_otherwise(http: httpx.Client) -> None:
    body = {"model": MODEL, "input": ["x" * CONTEXT_TOKENS, "short"]}
    assert len(http.post("/api/embed", json=body).json()["embeddings"]) == 2
    refused = http.post("/api/embed", json=body | {"truncate": False})
    assert refused.status_code == 400
    assert "context" in refused.json()["error"]


def test_models(http: httpx.Client) -> None:
    [listed] = http.get("/api/tags").json()["models"]
    assert (listed["name"], listed["model"]) == (MODEL, MODEL)
    assert set(listed) == {"name", "model", "modified_at", "size", "digest", "details"}
    assert len(listed["digest"]) == 64
    assert set(listed["details"]) >= {"format", "family", "families", "parameter_size", "quantization_level"}
    [running] = http.get("/api/ps").json()["models"]
    assert set(running) >= {"name", "model", "size", "digest", "expires_at", "size_vram", "context_length"}
    for body in ({"model": MODEL}, {"name": MODEL}, {"model": f"{MODEL}:latest"}):
        shown = http.post("/api/show", json=body).json()
        assert set(shown["capabilities"]) == {"completion", "embedding", "tools", "vision"}
        assert shown["model_info"]["general.context_length"] == CONTEXT_TOKENS
    missing = http.post("/api/show", json={"model": "none"})
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'none' not found"})


def test_a_tag_is_no_other_model(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("x")
    assert chat(http, {"model": f"{MODEL}:latest"})["model"] == f"{MODEL}:latest"
    assert asked(double).model == MODEL
    answer = http.post("/api/chat", json=CHAT | {"model": "none:latest"})
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_heartbeats(http: httpx.Client) -> None:
    for path in ("/", "/api/tags", "/api/version", "/api/ps"):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert http.get("/", headers={"User-Agent": "ollama/0.13 (amd64 linux)"}).text == "Ollama is running"
    assert http.get("/").json()["version"]
    major, *_ = http.get("/api/version").json()["version"].split(".")
    assert major.isdigit()


BAD_BOTH: list[dict[str, Any]] = [
    {"model": None},
    {"model": ""},
    {"model": 7},
    {"stream": "yes"},
    {"options": []},
    {"options": {"temperature": "hot"}},
    {"options": {"temperature": -1}},
    {"options": {"num_predict": -9}},
    {"options": {"num_predict": 2**40}},
    {"options": {"top_p": 7}},
    {"options": {"stop": [7]}},
    {"options": {"stop": ["x"] * 99}},
    {"options": {"seed": 2**70}},
    {"format": "xml"},
    {"format": 7},
    {"format": {"type": "nonsense"}},
    {"think": "much"},
    {"think": {}},
    {"keep_alive": "soon"},
    {"keep_alive": []},
    {"keep_alive": "9" * 99},
    {"top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 99},
]
BAD_CHAT: list[dict[str, Any]] = [
    {"messages": "hi"},
    {"messages": [7]},
    {"messages": [{"content": "x"}]},
    {"messages": [{"role": "wizard", "content": "x"}]},
    {"messages": [{"role": "user", "content": 7}]},
    {"messages": [{"role": "user", "content": "x", "images": "x"}]},
    {"messages": [{"role": "user", "content": "x", "images": ["?"]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{}"}}]}]},
    {"tools": "x"},
    {"tools": [{"type": "function"}]},
    {"tools": [{"type": "hammer", "function": {"name": "x"}}]},
    {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "nonsense"}}}]},
]
BAD_GENERATE: list[dict[str, Any]] = [
    {"prompt": 7},
    {"system": []},
    {"suffix": 7},
    {"template": "{{ .Prompt }}"},
    {"context": [1, 2]},
    {"images": ["?"]},
    {"raw": "yes"},
    {"raw": True, "images": ["eA=="]},
]
BAD_EMBED: list[dict[str, Any]] = [
    {"input": 7},
    {"input": [7]},
    {"input": ["x"] * 5000},
    {"truncate": "no"},
    {"dimensions": 0},
]
BAD = [
    *(("/api/chat", CHAT | body) for body in BAD_BOTH + BAD_CHAT),
    *(("/api/generate", GENERATE | body) for body in BAD_BOTH + BAD_GENERATE),
    *(("/api/embed", {"model": MODEL, "input": "x"} | body) for body in BAD_EMBED),
    ("/api/embeddings", {"model": MODEL, "prompt": 7}),
    ("/api/show", {}),
    ("/api/show", {"model": 7}),
]


@pytest.mark.parametrize(("path", "body"), BAD, ids=lambda value: str(value)[-60:])
def test_bad_input(http: httpx.Client, double: Served, path: str, body: dict[str, Any]) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)
    assert double.dispatcher.asked == []


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"])
@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a": NaN}', b"\xff"])
def test_what_is_no_json(http: httpx.Client, path: str, data: bytes) -> None:
    answer = http.post(path, content=data)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
