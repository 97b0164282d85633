"""Errors that arise before a handler is reached come in the dialect of their path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.ports import ApiOptions
from tests.api.serving import VERSION, Served, serving_in_thread

PATHS = {
    "/v1/messages": "anthropic",
    "/messages": "anthropic",
    "/v1/messages/count_tokens": "anthropic",
    "/v1/messages/": "anthropic",
    "/api/chat": "ollama",
    "/api/generate": "ollama",
    "/api/embed": "ollama",
    "/api/embeddings": "ollama",
    "/api/show": "ollama",
    "/v1/responses": "openai",
    "/v1/chat/completions": "openai",
    "/v1/messagesque": "openai",
    "/api/chatter": "openai",
    "/api/mesh": "openai",
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """An API with a key and a small body limit."""
    options = ApiOptions(version=VERSION, api_keys=("secret",), max_body_bytes=2000)
    with serving_in_thread(Served(options=options)) as served:
        yield served.url


def check(body: dict[str, Any], dialect: str) -> None:
    error = body["error"]
    match dialect:
        case "ollama":
            assert body == {"error": error}
            assert isinstance(error, str)
        case "anthropic":
            assert set(body) == {"type", "error", "request_id"}
            assert set(error) == {"type", "message"}
        case _:
            assert set(body) == {"error"}
            assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("path", "dialect"), PATHS.items())
def test_without_a_key(guarded: str, path: str, dialect: str) -> None:
    answer = httpx.post(guarded + path, json={}, trust_env=False)
    assert answer.status_code == 401
    check(answer.json(), dialect)
    if dialect == "anthropic":
        assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "path", [path for path in PATHS if path not in ("/v1/messagesque", "/api/chatter", "/api/mesh")]
)
def test_a_body_that_is_too_large(guarded: str, path: str) -> None:
    headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
    answer = httpx.post(guarded + path, content=b"x" * 5000, headers=headers, trust_env=False)
    assert answer.status_code == 413
    check(answer.json(), PATHS[path])
    if PATHS[path] == "anthropic":
        assert answer.json()["error"]["type"] == "request_too_large"


def test_a_page_of_another_site() -> None:
    with serving_in_thread(Served()) as open_to_all:
        headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        for path, dialect in PATHS.items():
            answer = httpx.post(open_to_all.url + path, json={}, headers=headers, trust_env=False)
            assert answer.status_code == 403
            check(answer.json(), dialect)
