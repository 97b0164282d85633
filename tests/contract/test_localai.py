"""Live answers against LocalAI's published schemas (corrected: see localai.yaml), and its list of operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from node.docs import application
from node.operations import OPERATIONS, served
from tests.api.double import MODEL
from tests.api.serving import Served

FOLDER = Path(__file__).parent
SCHEMAS = yaml.safe_load((FOLDER / "localai.yaml").read_text(encoding="utf-8"))
PUBLISHED = FOLDER.parents[2] / "shared" / "api" / "localai-swagger.yaml"  # beside some checkouts only

USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

# Operation, body, schema, the keys that the answer has beside what the schema requires.
ANSWERS: list[tuple[str, dict[str, Any], str, set[str]]] = [
    ("/v1/chat/completions", {"messages": [USER]}, "OpenAIResponse", {"id", "object", "created", "choices", "usage"}),
    ("/v1/chat/completions", {"messages": [USER], "logprobs": True, "n": 2}, "OpenAIResponse", {"choices"}),
    ("/v1/chat/completions", {"messages": [USER], "tools": [TOOL]}, "OpenAIResponse", {"choices"}),
    ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 2}, "OpenAIResponse", {"id", "object", "choices", "usage"}),
    ("/v1/edits", {"instruction": "x", "input": "y"}, "OpenAIResponse", {"object", "choices", "usage"}),
    ("/v1/embeddings", {"input": ["a", "b"]}, "OpenAIResponse", {"object", "model", "data", "usage"}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}, "OpenAIResponse", {"data"}),
    ("/v1/rerank", {"query": "a", "documents": ["a", "b"]}, "JINARerankResponse", set()),
    ("/v1/tokenize", {"content": "hello"}, "TokenizeResponse", set()),
    ("/v1/messages", {"messages": [USER], "max_tokens": 9}, "AnthropicResponse", set()),
    ("/v1/responses", {"input": "hello"}, "ORResponseResource", set()),
]


def check(value: Any, schema: str) -> None:
    jsonschema.Draft202012Validator({**SCHEMAS, "$ref": f"#/$defs/schema.{schema}"}).validate(value)


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: f"{case[0]}-{'-'.join(case[1])}")
def test_an_answer(http: httpx.Client, double: Served, case: tuple[str, dict[str, Any], str, set[str]]) -> None:
    path, body, schema, keys = case
    answer = http.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    check(answer.json(), schema)
    assert keys <= set(answer.json())


def test_models(http: httpx.Client, double: Served) -> None:
    check(http.get("/v1/models").json(), "ModelsDataResponse")


def test_a_stored_response(http: httpx.Client, double: Served) -> None:
    made = http.post("/v1/responses", json={"model": MODEL, "input": "hello"}).json()
    check(http.get(f"/v1/responses/{made['id']}").json(), "ORResponseResource")
    cancelled = http.post(f"/v1/responses/{made['id']}/cancel")
    assert cancelled.status_code in (200, 400)
    if cancelled.status_code == 200:
        check(cancelled.json(), "ORResponseResource")


def test_a_wrong_answer_would_be_noticed() -> None:
    values: list[Any] = [
        {"choices": [{"index": 0}]},
        {"choices": [{"index": 0, "finish_reason": "done"}]},
        {"data": [{}]},
    ]
    for value in values:
        with pytest.raises(jsonschema.ValidationError):
            check(value, "OpenAIResponse")


def test_the_operations_in_scope_are_served() -> None:
    found = served(application().url_map.iter_rules())
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 73
    assert {("POST", path) for path, *_ in ANSWERS} <= found
    assert {("GET", "/v1/tokenMetrics"), ("GET", "/tokenMetrics"), ("GET", "/v1/responses/{id}")} <= found
    assert ("POST", "/video") not in found


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published swagger lies beside some checkouts only")
def test_the_operations_are_those_that_are_published() -> None:
    paths = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["paths"]
    assert set(OPERATIONS) == {(method.upper(), path) for path, methods in paths.items() for method in methods}
