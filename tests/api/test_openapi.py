"""/openapi.json says what the routes do, is a valid document, and its page needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from api.openapi import BODIES, BODILESS
from node.docs import application
from tests.api.serving import VERSION, Served


@pytest.fixture
def document(http: httpx.Client) -> Any:
    answer = http.get("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json()


def test_it_is_valid(document: Any) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["info"]["version"] == VERSION


def test_every_route_is_in_it(document: Any) -> None:
    served: dict[str, set[str]] = defaultdict(set)
    for rule in application().url_map.iter_rules():
        if not rule.websocket:
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
            served[path] |= {method.lower() for method in rule.methods or () if method not in ("HEAD", "OPTIONS")}
    assert {path: set(operations) for path, operations in document["paths"].items()} == served


def test_every_post_says_what_it_parses() -> None:
    posts = {rule.endpoint for rule in application().url_map.iter_rules() if "POST" in (rule.methods or ())}
    assert posts == set(BODIES) | BODILESS


def test_a_body_is_what_checks_it(document: Any) -> None:
    operation = document["paths"]["/v1/chat/completions"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert schema["required"] == ["messages"]
    assert {"tools", "tool_choice", "stream_options", "logit_bias"} <= set(schema["properties"])
    assert operation["operationId"] == "post_v1_chat_completions"


def test_the_page(http: httpx.Client, double: Served) -> None:
    answer = http.get("/docs")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"<script|src=|https?://", answer.text)
    for path in json.loads(http.get("/openapi.json").text)["paths"]:
        assert f"<code>{path}</code>" in answer.text
