"""A message as Anthropic writes it, whole and as events. Anthropic API reference, "Messages" and "Streaming messages".

One state machine makes both: a whole message is what its events add up to. A token in a stream costs one small JSON
string between two constants.
"""

from __future__ import annotations

import hashlib
import uuid
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import msgspec

from api import errors
from api.answer import CallArguments, CallStart, Content, Delta, Reasoning
from api.text import one_line
from api.turns import Turn, arguments_object
from backends.types import ChatRequest, Chunk, Usage

_encode = msgspec.json.Encoder().encode

PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event; its name is the value's `type`."""
    name: str = value["type"]
    return b"event: " + name.encode() + b"\ndata: " + one_line(_encode(value)) + b"\n\n"


class MessageWriter:
    """Implements `api.sse.Renderer`; `whole` is the message that was not streamed.

    Thoughts are shown where the caller has enabled thinking, and dropped otherwise, as Anthropic's own default is.
    """

    def __init__(self, request: ChatRequest, *, model: str, thinking: bool, request_id: str) -> None:
        self._request = request
        self._model = model
        self._thinking = thinking
        self._request_id = request_id
        self._turn = Turn(request)
        self._id = f"msg_{uuid.uuid4().hex}"
        self._content: list[dict[str, Any]] = []
        self._text: list[str] = []  # of the open block
        self._open = ""  # the type of the open block
        self._before = b""  # what precedes a text in a delta of the open block

    def opening(self, model: str) -> bytes:
        """Nothing: a message begins with the number of its input tokens, which the first batch brings."""
        return b""

    def batch(self, chunks: Sequence[Chunk]) -> bytes:
        """The events of `chunks`."""
        begun = self._turn.accepted is not None
        deltas = self._turn.read(chunks)
        out: list[bytes] = []
        if not begun and self._turn.accepted is not None:
            out += (self._begin(self._turn.accepted.prompt_tokens), PING)
        for delta in deltas:
            self._add(delta, out)
        return b"".join(out)

    def closing(self, usage: Usage) -> bytes:
        """The end of the last block and of the message. Raises EngineFault if the answer is incomplete."""
        reason, stop = self._ending(usage)
        out: list[bytes] = []
        self._close(out)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        out.append(event({"type": "message_delta", "delta": delta, "usage": self._usage(usage)}))
        out.append(event({"type": "message_stop"}))
        return b"".join(out)

    def failure(self, error: Exception) -> bytes:
        """An error event in place of the rest. Nothing follows it."""
        return (
            b"event: error\ndata: " + errors.envelope(errors.fault_of(error), "anthropic", self._request_id) + b"\n\n"
        )

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The message, once all batches have been read. Raises EngineFault if the answer is incomplete."""
        reason, stop = self._ending(usage)
        self._close([])
        return self._message(reason, stop, self._usage(usage))

    def _message(self, reason: str | None, stop: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": self._content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }

    def _begin(self, prompt_tokens: int) -> bytes:
        usage = self._usage(Usage(prompt_tokens=prompt_tokens))
        return event({"type": "message_start", "message": self._message(None, None, usage)})

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,  # those found in a cache are counted apart
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self._turn.reasoning_tokens},
        }

    def _ending(self, usage: Usage) -> tuple[str, str | None]:
        finished = self._turn.ending()
        if finished.reason == "length":
            full = usage.completion_tokens < (self._request.max_tokens or 0)
            return ("model_context_window_exceeded" if full else "max_tokens"), None
        if finished.stop is not None and finished.stop in self._request.stop:  # not one of the model's own
            return "stop_sequence", finished.stop
        return ("tool_use" if self._turn.calls else "end_turn"), None

    def _add(self, delta: Delta, out: list[bytes]) -> None:
        match delta:
            case Content(text):
                if self._open != "text":
                    self._start({"type": "text", "text": ""}, "text_delta", "text", out)
                self._grow(text, out)
            case Reasoning(text):
                if not self._thinking:
                    return
                if self._open != "thinking":
                    empty = {"type": "thinking", "thinking": "", "signature": ""}
                    self._start(empty, "thinking_delta", "thinking", out)
                self._grow(text, out)
            case CallStart(_, identity, name):
                identity = f"toolu_{identity.removeprefix('call_')}"
                call = {"type": "tool_use", "id": identity, "name": name, "input": {}}
                self._start(call, "input_json_delta", "partial_json", out)
            case CallArguments(_, text):
                self._grow(text, out)

    def _grow(self, text: str, out: list[bytes]) -> None:
        self._text.append(text)
        out += (self._before, one_line(_encode(text)), b"}}\n\n")

    def _start(self, block: dict[str, Any], delta: str, key: str, out: list[bytes]) -> None:
        self._close(out)
        index = len(self._content)
        self._open = block["type"]
        self._before = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":'
            % (index, delta.encode(), key.encode())
        )
        out.append(event({"type": "content_block_start", "index": index, "content_block": block}))
        self._content.append(dict(block))

    def _close(self, out: list[bytes]) -> None:
        if not self._open:
            return
        block, text, index = self._content[-1], "".join(self._text), len(self._content) - 1
        match self._open:
            case "text":
                block["text"] = text
            case "thinking":
                block["thinking"] = text
                block["signature"] = signature(text)
                delta = {"type": "signature_delta", "signature": block["signature"]}
                out.append(event({"type": "content_block_delta", "index": index, "delta": delta}))
            case _:
                block["input"] = arguments_object(text)
        out.append(event({"type": "content_block_stop", "index": index}))
        self._open = ""
        self._text.clear()


def signature(thinking: str) -> str:
    """What a client hands back with the thoughts. Anthropic's says that they are genuine; this one names them only."""
    return b64encode(hashlib.sha256(thinking.encode()).digest()).decode()
