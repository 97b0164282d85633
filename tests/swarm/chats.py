"""Streaming chats with a node, many at a time, and what their clients saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from tests.support.nodes import RunningNode

ANSWER_S = 90.0
"""Of a test that would hang."""


@dataclass
class Told:
    """One chat as its client saw it."""

    node: str = ""
    """X-Mesh-Node: who answered first."""
    texts: dict[int, str] = field(default_factory=dict)
    """By choice."""
    finish: str | None = None
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Any = None
    tokens: int = 0
    """As the usage counts them."""
    done: bool = False
    """The stream ended as it shall."""

    @property
    def text(self) -> str:
        """Of all choices."""
        return "".join(text for _, text in sorted(self.texts.items()))

    @property
    def outcome(self) -> tuple[bool, str | None, str, int]:
        """All that must not depend on what happened on the way."""
        return self.done, self.finish, self.text, self.tokens


async def chats(
    node: RunningNode,
    model: str,
    contents: Sequence[str],
    meanwhile: Callable[[Sequence[Told]], bool] = lambda _: True,
    *,
    headers: Mapping[str, str] | None = None,
    **body: Any,
) -> list[Told]:
    """A streaming greedy chat for each of `contents`, all at once; `body` is added to each.

    `meanwhile` is called with all of them whenever one has got something, until it returns True.
    """
    told = [Told() for _ in contents]
    done = False

    def look() -> None:
        nonlocal done
        done = done or meanwhile(told)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    options: dict[str, Any] = {"timeout": ANSWER_S, "limits": limits, "trust_env": False}
    async with httpx.AsyncClient(base_url=node.url, headers=node.headers | dict(headers or {}), **options) as client:
        with trio.fail_after(ANSWER_S):
            async with trio.open_nursery() as nursery:
                for one, content in zip(told, contents, strict=True):
                    nursery.start_soon(_chat, client, one, model, content, body, look)
    return told


async def _chat(
    client: httpx.AsyncClient,
    told: Told,
    model: str,
    content: str,
    more: Mapping[str, Any],
    look: Callable[[], None],
) -> None:
    body: dict[str, Any] = {"temperature": 0, "stream_options": {"include_usage": True}, **more}
    body |= {"model": model, "messages": [{"role": "user", "content": content}], "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        told.status, told.headers, told.node = answer.status_code, answer.headers, answer.headers.get("X-Mesh-Node", "")
        if answer.status_code != 200:
            told.error = json.loads(await answer.aread())["error"]
        else:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    _take(told, line.removeprefix("data: "))
                    look()
        look()


def _take(told: Told, data: str) -> None:
    if data == "[DONE]":
        told.done = True
        return
    event = json.loads(data)
    if "error" in event:
        told.error = event["error"]
        return
    for choice in event["choices"]:
        index = choice["index"]
        told.texts[index] = told.texts.get(index, "") + (choice["delta"].get("content") or "")
        told.finish = choice["finish_reason"] or told.finish
    if event.get("usage"):
        told.tokens = event["usage"]["completion_tokens"]
