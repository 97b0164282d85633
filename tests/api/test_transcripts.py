"""Golden transcripts: what chat and completions stream, byte for byte, but for ids and times.

`UPDATE_GOLDEN=1` writes them anew; then read the difference.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.types import (
    Accepted,
    AnswerFormat,
    Chunk,
    EngineCrashed,
    Finished,
    FinishReason,
    Request,
    Text,
    TokenLogprob,
    Usage,
)
from tests.api.double import MODEL
from tests.api.serving import Served

FOLDER = Path(__file__).parent / "golden"
FUNCTIONS = [{"name": "get_weather"}, {"name": "get_time"}]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
CALLS = (
    'I look.<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'
)

# Name, endpoint, body, the pieces of the answer, why it ends.
CASES: list[tuple[str, str, dict[str, Any], list[str], FinishReason | None]] = [
    ("chat-text", "chat", {}, ["Hel", "lo", "", "\u2028é."], "stop"),
    ("chat-usage", "chat", {"stream_options": {"include_usage": True}}, ["Hi"], "stop"),
    ("chat-tools", "chat", {"tools": TOOLS}, [CALLS[:30], CALLS[30:60], CALLS[60:100], CALLS[100:]], "stop"),
    ("chat-functions", "chat", {"functions": FUNCTIONS}, [CALLS[:60], CALLS[60:]], "stop"),
    ("chat-reasoning", "chat", {}, ["<thi", "nk>\nHm", ".\n</think>\n\n", "Yes", "."], "stop"),
    ("chat-length", "chat", {}, ["Hel", "lo"], "length"),
    ("chat-length-in-a-call", "chat", {"tools": TOOLS}, [CALLS[:60]], "length"),
    ("chat-error", "chat", {}, ["Hel"], None),
    ("chat-logprobs", "chat", {"logprobs": True, "top_logprobs": 0}, ["Hel", "lo"], "stop"),
    ("completions-text", "completions", {}, ["Hel", "lo"], "stop"),
    ("completions-usage", "completions", {"stream_options": {"include_usage": True}}, ["Hi"], "stop"),
    ("completions-length", "completions", {}, ["Hel", "lo"], "length"),
    ("completions-error", "completions", {}, ["Hel"], None),
    ("completions-logprobs", "completions", {"logprobs": 0}, ["Hel", "lo"], "stop"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_transcript(
    http: httpx.Client,
    double: Served,
    case: tuple[str, str, dict[str, Any], list[str], FinishReason | None],
) -> None:
    name, endpoint, body, pieces, reason = case

    async def script(request: Request) -> AsyncIterator[Sequence[Chunk]]:
        yield [Accepted(3, AnswerFormat("hermes", ("<think>", "</think>")))]
        for number, piece in enumerate(pieces):
            logprobs = (TokenLogprob(number, piece.encode(), -0.5),) if body.get("logprobs") is not None else ()
            yield [Text(0, piece, (number,), logprobs)]
        if reason is None:
            raise EngineCrashed("The engine died.")
        yield [Finished(0, reason)]

    double.dispatcher.script = script
    double.dispatcher.usage = Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=len(pieces))
    asked = {"messages": [{"role": "user", "content": "x"}]} if endpoint == "chat" else {"prompt": "x"}
    path = "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"
    answer = http.post(path, json={"model": MODEL, "stream": True, **asked, **body})
    assert answer.status_code == 200
    text = settled(answer.text)
    golden = FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def settled(text: str) -> str:
    """`text` with ids numbered in their order, and one time."""
    ids: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return ids.setdefault(match[0], f"{match[1]}{len(ids)}")

    text = re.sub(r"((?:chatcmpl|cmpl)-|call_)[0-9a-f]{24,32}", numbered, text)
    text = re.sub(r'"system_fingerprint":"fp_[0-9a-f]{12}"', '"system_fingerprint":"fp"', text)
    return re.sub(r'"created":\d+', '"created":0', text)
