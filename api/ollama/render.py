"""Answers as Ollama writes them: one object, or one object a line. Ollama's API documentation, "Streaming"."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from api import errors
from api.answer import CallArguments, CallStart, Content, Delta, Reasoning
from api.openai.logprobs import chat_logprobs
from api.text import one_line
from api.turns import Turn, arguments_object
from backends.types import ChatRequest, Chunk, CompletionRequest, Text, Usage

Shape: TypeAlias = Literal["chat", "generate"]

_encode = msgspec.json.Encoder().encode
NS = 1_000_000_000


class AnswerWriter:
    """Implements `api.sse.Renderer`; `whole` is the answer that was not streamed.

    Ollama tells a tool call when it is complete, arguments and all.
    """

    def __init__(
        self, request: ChatRequest | CompletionRequest, model: str, shape: Shape, *, shows_thinking: bool
    ) -> None:
        self._shape = shape
        self._model = model
        self._shows_thinking = shows_thinking
        self._turn = Turn(request)
        self._started = time.monotonic()
        self._accepted_s = 0.0
        self._call: CallStart | None = None  # the call that is being told, and its arguments so far
        self._arguments: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []  # not told yet
        # Around the text of a line that tells nothing else, which is what most tokens are.
        self._before = b'{"model":' + _encode(model) + b',"created_at":"'
        said = b'"message":{"role":"assistant","content":' if shape == "chat" else b'"response":'
        self._between = b'Z",' + said
        self._after = (b"}" if shape == "chat" else b"") + b',"done":false}\n'

    def opening(self, model: str) -> bytes:
        """Nothing: each line stands for itself."""
        self._accepted_s = time.monotonic() - self._started
        return b""

    def batch(self, chunks: Sequence[Chunk]) -> bytes:
        """One line for each piece of the answer in `chunks`."""
        return b"".join(self._line(part) for part in self._parts(chunks))

    def closing(self, usage: Usage) -> bytes:
        """The last line. Raises EngineFault if the answer is incomplete."""
        reason = self._turn.ending().reason
        last = b"".join(self._line(part) for part in self._last_call())
        part: dict[str, Any] = {"content": "", **({"logprobs": self._logprobs} if self._logprobs else {})}
        return last + self._line(part, self._ending(reason, usage))

    def failure(self, error: Exception) -> bytes:
        """The error in place of the rest."""
        return one_line(errors.envelope(errors.fault_of(error), "ollama")) + b"\n"

    def whole(self, batches: Sequence[Sequence[Chunk]], usage: Usage) -> dict[str, Any]:
        """The answer that was not streamed. Raises EngineFault if it is incomplete."""
        said: dict[str, list[str]] = {"content": [], "thinking": []}
        calls: list[dict[str, Any]] = []
        logprobs: list[dict[str, Any]] = []
        parts = [part for batch in batches for part in self._parts(batch)]
        reason = self._turn.ending().reason
        for part in [*parts, *self._last_call()]:
            calls += part.get("tool_calls", ())
            logprobs += part.pop("logprobs", ())
            for key, texts in said.items():
                texts.append(part.get(key, ""))
        value: dict[str, Any] = {"content": "".join(said["content"])}
        if thinking := "".join(said["thinking"]):
            value["thinking"] = thinking
        if calls:
            value["tool_calls"] = calls
        if logprobs or self._logprobs:
            value["logprobs"] = logprobs + self._logprobs
        return self._object(value, self._ending(reason, usage))

    def _parts(self, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        for chunk in chunks:
            if type(chunk) is Text and chunk.logprobs:
                self._logprobs += chat_logprobs(chunk.logprobs)["content"]
        parts: list[dict[str, Any]] = []
        for delta in self._turn.read(chunks):
            self._add(delta, parts)
        if parts and self._logprobs:
            parts[-1]["logprobs"], self._logprobs = self._logprobs, []
        return parts

    def _add(self, delta: Delta, parts: list[dict[str, Any]]) -> None:
        match delta:
            case Content(text):
                parts += self._last_call()
                parts.append({"content": text})
            case Reasoning(text):
                if self._shows_thinking:
                    parts.append({"content": "", "thinking": text})
            case CallStart():
                parts += self._last_call()
                self._call = delta
            case CallArguments(_, text):
                self._arguments.append(text)

    def _last_call(self) -> list[dict[str, Any]]:
        if self._call is None:
            return []
        call, self._call = self._call, None
        arguments = arguments_object("".join(self._arguments))
        self._arguments.clear()
        function = {"index": call.index, "name": call.name, "arguments": arguments}
        return [{"content": "", "tool_calls": [{"id": call.id, "function": function}]}]

    def _line(self, part: dict[str, Any], ending: dict[str, Any] | None = None) -> bytes:
        if ending is None and len(part) == 1:
            now = _moment(time.time()).encode()
            return self._before + now + self._between + one_line(_encode(part["content"])) + self._after
        return one_line(_encode(self._object(part, ending))) + b"\n"

    def _object(self, part: dict[str, Any], ending: dict[str, Any] | None) -> dict[str, Any]:
        logprobs = {"logprobs": part.pop("logprobs")} if "logprobs" in part else {}
        said = {"message": {"role": "assistant", **part}} if self._shape == "chat" else _generated(part)
        head = {"model": self._model, "created_at": timestamp(time.time())}
        return {**head, **said, **logprobs, "done": ending is not None, **(ending or {})}

    def _ending(self, reason: str, usage: Usage) -> dict[str, Any]:
        total_s = time.monotonic() - self._started
        return {
            "done_reason": reason,
            "total_duration": int(total_s * NS),
            "load_duration": int(self._accepted_s * NS),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int(usage.prefill_s * NS),
            "eval_count": usage.completion_tokens,
            "eval_duration": int(usage.decode_s * NS),
        }


def empty(model: str, shape: Shape, reason: Literal["load", "unload"]) -> dict[str, Any]:
    """The answer to a request without a prompt, which loads or unloads the model."""
    said = {"message": {"role": "assistant", "content": ""}} if shape == "chat" else {"response": ""}
    return {"model": model, "created_at": timestamp(time.time()), **said, "done": True, "done_reason": reason}


def timestamp(seconds: float) -> str:
    """RFC 3339."""
    return _moment(seconds) + "Z"


def _moment(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1e6):06d}"


@lru_cache(maxsize=64)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _generated(part: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in part.items() if key != "content"}
    return {"response": part["content"], **rest}
