"""A response and its events. Open Responses specification, "Streaming"; OpenAI API reference, "Responses".

One state machine makes both: the resource is what its events add up to, so a whole answer, a stream, a background run
and a WebSocket tell the same. Every event has the next sequence number.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from api import errors
from api.answer import CallArguments, CallStart, Content, Delta, Reasoning
from api.openai.logprobs import chat_logprobs
from api.responses.ids import ResponseId
from api.sse import DONE
from api.text import one_line
from api.turns import Turn
from backends.types import ChatRequest, Chunk, Text, Usage

_encode = msgspec.json.Encoder().encode
_TYPE = re.compile(rb'\{"type":"([a-z_.]+)"')

# By the type of an item: its part, and the stem of that part's events.
_PARTS = {
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
}


class ResponseWriter:
    """Implements `api.sse.Renderer`. `resource` is the response as it stands."""

    def __init__(self, request: ChatRequest, identity: ResponseId, base: dict[str, Any]) -> None:
        """`base` are the fields of the resource that only echo the request."""
        self._request = request
        self._identity = identity
        self._turn = Turn(request)
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that grows
        self._text: list[str] = []
        self._before = b""  # what precedes a text in a delta of the open item
        self._after = b""
        self._logprobs: list[dict[str, Any]] = []  # of the open item
        self._fresh_logprobs: list[dict[str, Any]] = []  # not told yet
        self.begun = False  # whether the engine has accepted it
        self.resource: dict[str, Any] = {
            "id": str(identity),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            **base,
            "output": self._output,
            "usage": None,
        }

    @property
    def over(self) -> bool:
        """Whether the response has come to an end, whichever."""
        return self.resource["status"] not in ("queued", "in_progress")

    def queued(self) -> list[bytes]:
        """The first events of a response that nobody waits for."""
        self.resource["status"] = "queued"
        return [self._lifecycle("response.created"), self._lifecycle("response.queued")]

    def events(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """The events of `chunks`, as JSON."""
        out: list[bytes] = []
        if not self.begun:
            self.begun = True
            if self.resource["status"] != "queued":
                out.append(self._lifecycle("response.created"))
            self.resource["status"] = "in_progress"
            out.append(self._lifecycle("response.in_progress"))
        if self._request.logprobs is not None:
            for chunk in chunks:
                if type(chunk) is Text and chunk.logprobs:
                    self._fresh_logprobs += chat_logprobs(chunk.logprobs)["content"]
        for delta in self._turn.read(chunks):
            self._add(delta, out)
        return out

    def ended(self, usage: Usage) -> list[bytes]:
        """The events of the end. Raises EngineFault if the answer is incomplete."""
        cut = self._turn.ending().reason == "length"
        out: list[bytes] = []
        self._close(out, "incomplete" if cut else "completed")
        self.resource["usage"] = self._usage(usage)
        if cut:
            self.resource["incomplete_details"] = {"reason": "max_output_tokens"}
        self._finish("incomplete" if cut else "completed")
        out.append(self._lifecycle(f"response.{self.resource['status']}"))
        return out

    def failed(self, error: BaseException) -> list[bytes]:
        """The events of a failure: what happened, and the response as far as it came."""
        fault = errors.fault_of(error)
        out: list[bytes] = []
        self._close(out, "incomplete")
        code = "invalid_prompt" if fault.status < 500 else "server_error"
        code = "rate_limit_exceeded" if fault.status == 429 else code
        self.resource["error"] = {"code": code, "message": fault.message}
        self._finish("failed")
        told = {"code": str(fault.code or fault.type), "message": fault.message, "param": fault.param}
        out.append(self._event("error", told))
        out.append(self._lifecycle("response.failed"))
        return out

    def cancelled(self) -> None:
        """Somebody has cancelled the response; there is no event for that."""
        self._close([], "incomplete")
        self._finish("cancelled")

    # -- api.sse.Renderer --

    def opening(self, model: str) -> bytes:
        """Nothing: the first batch brings the first events."""
        return b""

    def batch(self, chunks: Sequence[Chunk]) -> bytes:
        """The events of `chunks`, for a stream."""
        return b"".join(map(framed, self.events(chunks)))

    def closing(self, usage: Usage) -> bytes:
        """The events of the end, for a stream."""
        return b"".join(map(framed, self.ended(usage))) + DONE

    def failure(self, error: Exception) -> bytes:
        """The events of a failure, for a stream."""
        return b"".join(map(framed, self.failed(error))) + DONE

    # -- items --

    def _add(self, delta: Delta, out: list[bytes]) -> None:
        match delta:
            case Content(text):
                self._grow_part("message", "msg", {"role": "assistant", "content": []}, text, out)
            case Reasoning(text):
                self._grow_part("reasoning", "rs", {"summary": [], "content": []}, text, out)
            case CallStart(_, identity, name):
                item = {"type": "function_call", "call_id": identity, "name": name, "arguments": ""}
                self._start(item, "fc", out)
                self._before = self._delta_head("response.function_call_arguments.delta", {})
                self._after = b""
            case CallArguments(_, text):
                self._grow(text, out)

    def _grow_part(self, kind: str, prefix: str, fields: dict[str, Any], text: str, out: list[bytes]) -> None:
        if self._open is None or self._open["type"] != kind:
            self._start({"type": kind, **fields}, prefix, out)
            part, stem = _PARTS[kind]
            out.append(self._event("response.content_part.added", self._place(part=_part(part, "", []))))
            self._before = self._delta_head(f"{stem}.delta", {"content_index": 0})
            self._after = b',"logprobs":[]' if kind == "message" else b""
        if kind == "message" and self._fresh_logprobs:
            fresh, self._fresh_logprobs = self._fresh_logprobs, []
            self._logprobs += fresh
            self._grow(text, out, b',"logprobs":' + _encode(fresh))
        else:
            self._grow(text, out)

    def _grow(self, text: str, out: list[bytes], after: bytes | None = None) -> None:
        self._text.append(text)
        rest = b'%s,"sequence_number":%d}' % (self._after if after is None else after, self._sequence)
        self._sequence += 1
        out.append(one_line(self._before + _encode(text) + rest))

    def _start(self, item: dict[str, Any], prefix: str, out: list[bytes]) -> None:
        self._close(out, "completed")
        number = len(self._output)
        whole = {"id": self._identity.item(prefix, "o", number), "status": "in_progress", **item}
        self._output.append(whole)
        self._open = whole
        out.append(self._event("response.output_item.added", {"output_index": number, "item": whole}))

    def _close(self, out: list[bytes], status: str) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        text, logprobs = "".join(self._text), self._logprobs
        self._text, self._logprobs = [], []
        number = len(self._output) - 1
        place = {"item_id": item["id"], "output_index": number}
        if item["type"] == "function_call":
            item["arguments"] = text
            done = {**place, "name": item["name"], "arguments": text}
            out.append(self._event("response.function_call_arguments.done", done))
        else:
            part, stem = _PARTS[item["type"]]
            place["content_index"] = 0
            value = _part(part, text, logprobs)
            told = {"logprobs": logprobs} if item["type"] == "message" else {}
            out.append(self._event(f"{stem}.done", {**place, "text": text, **told}))
            out.append(self._event("response.content_part.done", {**place, "part": value}))
            item["content"] = [value]
        item["status"] = status
        out.append(self._event("response.output_item.done", {"output_index": number, "item": item}))

    # -- events --

    def _place(self, **rest: Any) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._output) - 1, "content_index": 0, **rest}

    def _delta_head(self, kind: str, rest: dict[str, Any]) -> bytes:
        assert self._open is not None
        head = {"type": kind, "item_id": self._open["id"], "output_index": len(self._output) - 1, **rest}
        return _encode(head)[:-1] + b',"delta":'

    def _lifecycle(self, kind: str) -> bytes:
        return self._event(kind, {"response": self.resource})

    def _event(self, kind: str, value: dict[str, Any]) -> bytes:
        encoded = one_line(_encode({"type": kind, "sequence_number": self._sequence, **value}))
        self._sequence += 1
        return encoded

    def _finish(self, status: str) -> None:
        self.resource["status"] = status
        self.resource["completed_at"] = int(time.time())

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._turn.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


def framed(event: bytes) -> bytes:
    """An event as a server-sent one. Its type always comes first in it."""
    found = _TYPE.match(event)
    assert found is not None
    return b"event: " + found[1] + b"\ndata: " + event + b"\n\n"


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "output_text":
        return {"type": kind, "text": text, "annotations": [], "logprobs": logprobs}
    return {"type": kind, "text": text}
