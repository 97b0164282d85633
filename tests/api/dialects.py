"""What the tests of the dialects share: answers that a script gives, and streams taken apart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from backends.types import Accepted, AnswerFormat, Chunk, EngineCrashed, Finished, FinishReason, Request, Text
from tests.api.double import Script

THINKING = AnswerFormat(think=("<think>", "</think>"), thinking=True)
HERMES = AnswerFormat(calls="hermes")
CRASH = EngineCrashed("The engine died.")
CALLS = (
    "I look.",
    '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>',
)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def says(
    *texts: str,
    form: AnswerFormat | None = None,
    reason: FinishReason = "stop",
    stop: str | None = None,
    error: Exception | None = None,
) -> Script:
    """A script: each of `texts` is a batch of its own, five tokens long. `error` comes in place of the end."""

    async def script(request: Request) -> AsyncIterator[Sequence[Chunk]]:
        yield [Accepted(3, form or AnswerFormat())]
        for text in texts:
            yield [Text(0, text, (1, 2, 3, 4, 5))]
        if error is not None:
            raise error
        yield [Finished(0, reason, stop)]

    return script


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream whose names stand in `event:` lines; a trailing [DONE] is dropped."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("\n\n")
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        if block == "data: [DONE]" or block.startswith(":"):
            continue
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    """The values of a stream with one on each line."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]
