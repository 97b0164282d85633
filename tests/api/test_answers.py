"""What a request becomes for an engine, and the answers that the official client does not look at closely."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import httpx
import pytest

from backends.types import ChatRequest, CompletionRequest, EmbeddingRequest, Message, Sampling, TokenizeRequest
from tests.api.double import ALIAS, EMBEDDING_SIZE, MODEL
from tests.api.serving import VERSION, Served

USER = {"role": "user", "content": "x"}


def asked(http: httpx.Client, double: Served, path: str, **body: Any) -> Any:
    """The request that reaches the dispatcher."""
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return double.dispatcher.asked[-1]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_sampling_field_arrives(http: httpx.Client, double: Served, path: str) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "repeat_penalty": 1.2,
        "repeat_last_n": -1,
        "frequency_penalty": -1.0,
        "presence_penalty": 2.0,
        "mirostat": 2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
        "seed": -5,
    }
    request = asked(http, double, path, messages=[USER], prompt="x", **fields, logit_bias={"17": -100, "4": 1.5})
    assert request.sampling == Sampling(**fields, logit_bias={17: -100.0, 4: 1.5})
    assert set(fields) | {"logit_bias"} == set(Sampling.__struct_fields__)


def test_absent_fields_are_the_models_own(http: httpx.Client, double: Served) -> None:
    request = asked(http, double, "/v1/chat/completions", messages=[USER])
    assert request == ChatRequest(model=MODEL, messages=(Message(role="user", content="x"),))
    request = asked(http, double, "/v1/completions", prompt="x", echo=None, n=None, stop=None, max_tokens=None)
    assert request == CompletionRequest(model=MODEL, prompt="x")


def test_chat_fields(http: httpx.Client, double: Served) -> None:
    request = asked(
        http,
        double,
        "/v1/chat/completions",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None},
        ],
        max_tokens=1,
        max_completion_tokens=2,
        n=3,
        stop="end",
        logprobs=True,
        top_logprobs=4,
        ignore_eos=True,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert request == ChatRequest(
        model=MODEL,
        messages=(
            Message(role="system", content="be brief"),
            Message(role="user", content="a\nb", name="Ann"),
            Message(role="assistant"),
        ),
        max_tokens=2,
        n=3,
        stop=("end",),
        logprobs=4,
        ignore_eos=True,
        template_kwargs={"enable_thinking": False},
    )


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        ({"type": "json_object", "schema": {"type": "array"}}, {"type": "array"}),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}}, {"type": "null"}),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, {}),
    ],
)
def test_response_formats(http: httpx.Client, double: Served, wanted: Any, schema: Any) -> None:
    double.dispatcher.asked.clear()
    answer = http.post("/v1/chat/completions", json={"messages": [USER], "response_format": wanted})
    assert answer.status_code != 400
    [request] = double.dispatcher.asked
    assert isinstance(request, ChatRequest)
    assert request.json_schema == schema


def test_grammar(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": "x", "grammar": 'root ::= "yes" | "no"'}).json()
    assert answer["choices"][0]["text"] == "yes"


@pytest.mark.parametrize("path", ["/v1/completions", "/completions", f"/v1/engines/{MODEL}/completions"])
def test_prompts(http: httpx.Client, double: Served, path: str) -> None:
    assert asked(http, double, path, prompt="a", stop=["", "b"]).stop == ("b",)
    assert asked(http, double, path, prompt=[1, 2]).prompt == (1, 2)
    double.dispatcher.asked.clear()
    asked(http, double, path, prompt=[[1], [2, 3]])
    prompts = [request.prompt for request in double.dispatcher.asked if isinstance(request, CompletionRequest)]
    assert sorted(prompts, key=str) == [(1,), (2, 3)]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", f"/v1/engines/{MODEL}/embeddings"])
@pytest.mark.parametrize(
    ("given", "inputs"), [("ab", ("ab",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2]], ((1,), (2,)))]
)
def test_embeddings(http: httpx.Client, double: Served, path: str, given: Any, inputs: Any) -> None:
    request = asked(http, double, path, input=given, dimensions=EMBEDDING_SIZE)
    assert request == EmbeddingRequest(model=MODEL, inputs=inputs)
    plain = http.post(path, json={"input": given}).json()
    packed = http.post(path, json={"input": given, "encoding_format": "base64"}).json()
    assert plain["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert [item["index"] for item in plain["data"]] == list(range(len(inputs)))
    for floats, text in zip(plain["data"], packed["data"], strict=True):
        assert list(struct.unpack(f"<{EMBEDDING_SIZE}f", base64.b64decode(text["embedding"]))) == floats["embedding"]


def test_shorter_embeddings(http: httpx.Client, double: Served) -> None:
    whole = http.post("/v1/embeddings", json={"input": "ab"}).json()["data"][0]["embedding"]
    body = {"input": "ab", "dimensions": 8}
    short = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    length = math.sqrt(sum(number**2 for number in whole[:8]))
    assert short == pytest.approx([number / length for number in whole[:8]])
    packed = http.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert list(struct.unpack("<8f", base64.b64decode(packed))) == short
    refused = http.post("/v1/embeddings", json=body | {"dimensions": EMBEDDING_SIZE + 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokenize_and_back(http: httpx.Client, double: Served, prefix: str) -> None:
    tokens = http.post(f"{prefix}/tokenize", json={"model": MODEL, "content": "né"}).json()
    assert tokens == {"tokens": [110, 195, 169]}
    assert http.post(f"{prefix}/detokenize", json={"model": MODEL, **tokens}).json() == {"content": "né"}
    request = asked(http, double, f"{prefix}/tokenize", content="", add_special=True, parse_special=False)
    assert request == TokenizeRequest(model=MODEL, content="", add_special=True, parse_special=False)


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings", "/tokenize"])
def test_with_and_without_the_prefix(http: httpx.Client, prefix: str, path: str) -> None:
    body = {"prompt": "x", "input": "x", "content": "x"} if path != "/chat/completions" else {"messages": [USER]}
    assert http.post(prefix + path, json=body).status_code == 200
    assert http.post(prefix + path + "/", json=body).status_code == 200


def test_the_model_of_the_query_and_of_nobody(http: httpx.Client) -> None:
    assert http.post("/v1/completions?model=nobody", json={"prompt": "x"}).status_code == 404
    assert http.post("/v1/completions?model=nobody", json={"prompt": "x", "model": MODEL}).json()["model"] == MODEL
    assert http.post("/v1/completions", json={"prompt": "x", "model": ""}).json()["model"] == MODEL


def test_content_type_does_not_matter(http: httpx.Client) -> None:
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=x",
    ):
        answer = http.post("/v1/completions", content=b'{"prompt": "x"}', headers={"Content-Type": kind})
        assert answer.status_code == 200


def test_timings_when_asked_for(http: httpx.Client) -> None:
    body = {"prompt": "x"}
    usage = http.post("/v1/completions", json=body, headers={"Extra-Usage": "1"}).json()["usage"]
    assert {"timing_prompt_processing", "timing_token_generation"} <= set(usage)
    assert "timing_prompt_processing" not in http.post("/v1/completions", json=body).json()["usage"]


def test_fingerprint_is_the_models(http: httpx.Client) -> None:
    prints = {http.post("/v1/completions", json={"prompt": text}).json()["system_fingerprint"] for text in "ab"}
    assert len(prints) == 1


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_models(http: httpx.Client, prefix: str) -> None:
    card = {"id": MODEL, "object": "model", "created": 1700000000, "owned_by": "mesh"}
    assert http.get(f"{prefix}/models").json() == {"object": "list", "data": [card]}
    assert http.get(f"{prefix}/models?filter=^sm.l$").json()["data"] == [card]
    assert http.get(f"{prefix}/models?filter=other").json()["data"] == []
    assert http.get(f"{prefix}/models/{MODEL}").json() == card
    assert http.get(f"{prefix}/models/{ALIAS}").json() == card
    assert http.get(f"{prefix}/models/a/b").status_code == 404


@pytest.mark.parametrize("text", ["(", "(a+)+$", "x" * 129, r"(a)\1", "a*a*a*a*a*", "[z-a]"])
def test_filters_that_could_hang_or_are_none(http: httpx.Client, text: str) -> None:
    answer = http.get("/v1/models", params={"filter": text})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "filter"


def test_reload(http: httpx.Client, double: Served) -> None:
    assert http.post("/models/reload").status_code == 200
    assert double.node.reloads == 1


def test_system_pages(http: httpx.Client, double: Served) -> None:
    assert http.get("/healthz").content == b""
    assert http.get("/version").json() == {"version": VERSION}
    assert http.get("/").json()["version"] == VERSION
    assert http.get("/system").json() == {"backends": ["double"], "loaded_models": []}
    metrics = http.get("/metrics")
    assert metrics.text.endswith("up 1\n")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert http.get("/readyz").status_code == 200
    double.node.ready = False
    assert http.get("/readyz").status_code == 503
    assert http.get("/readyz").json() == {"status": "starting"}
