"""OpenAI's stream chunks and whole answers, for chat and completions alike.

The two differ in a few constants (`Shape`). In a stream everything but the text of a token is encoded once a choice,
so that a token costs one small JSON string and a join.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
from quart import request

from api.answer import CallArguments, CallStart, Content, Delta, Readers, Reasoning
from api.calls import Choice
from api.openai.generation import usage_object
from api.openai.logprobs import LegacyLogprobs, chat_logprobs
from api.sse import DONE, error_event
from api.text import one_line
from backends.types import Accepted, Chunk, EngineFault, Finished, FinishReason, Text, TokenLogprob, Usage

_encode = msgspec.json.Encoder().encode

# Renders the log probabilities of one choice; stateful where the format wants offsets.
Logprobs: TypeAlias = Callable[[Iterable[TokenLogprob]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Shape:
    """What tells a chat completion from a completion on the wire."""

    id_prefix: str
    whole: str  # `object` of an answer
    chunk: str  # `object` of a stream chunk
    before: bytes  # around a text in a chunk's choice
    after: bytes
    opening: bytes  # the text part of a choice's first chunk; empty: it has none
    ending: bytes  # the text part of a choice's last chunk


CHAT = Shape(
    id_prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    before=b'"delta":{"content":',
    after=b"}",
    opening=b'"delta":{"role":"assistant","content":""}',
    ending=b'"delta":{}',
)
COMPLETION = Shape(
    id_prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    before=b'"text":',
    after=b"",
    opening=b"",
    ending=b'"text":""',
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What all parts of one answer say alike."""

    shape: Shape
    model: str  # as the request named it: an alias is echoed, as LocalAI does
    version: str
    choices: int
    logprobs: int | None = None
    timings: bool = False
    legacy_calls: bool = False  # calls are `function_call`
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that precede `choices`."""
        # OpenAI: changes when what is behind the model's name may answer differently for the same seed.
        fingerprint = hashlib.sha256(f"{self.version}\0{self.model}".encode()).hexdigest()[:12]
        return {
            "id": self.shape.id_prefix + self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{fingerprint}",
        }

    def logprobs_renderer(self) -> Logprobs:
        """A renderer for one choice."""
        return chat_logprobs if self.shape is CHAT else LegacyLogprobs(self.logprobs or 0).render

    def whole(self, choices: Sequence[Choice], usage: Usage, reasoning_tokens: int | None = None) -> dict[str, Any]:
        """The answer that is not streamed."""
        return {
            **self.head(self.shape.whole),
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_object(usage, timings=self.timings, reasoning_tokens=reasoning_tokens),
        }

    def reason(self, reason: FinishReason, calls: int) -> str:
        """`finish_reason`. An answer that was cut off is that, whether or not it has called anything."""
        if not calls or reason != "stop":
            return reason
        return "function_call" if self.legacy_calls else "tool_calls"

    def delta(self, delta: Delta) -> dict[str, Any]:
        """`choices[].delta` of a chat's stream."""
        match delta:
            case Content():
                return {"content": delta.text}
            case Reasoning():  # LocalAI's name, and the one that most other servers have
                return {"reasoning": delta.text, "reasoning_content": delta.text}
            case CallStart():
                function = {"name": delta.name, "arguments": ""}
                if self.legacy_calls:
                    return {"function_call": function}
                call = {"index": delta.index, "id": delta.id, "type": "function", "function": function}
                return {"tool_calls": [call]}
            case CallArguments():
                if self.legacy_calls:
                    return {"function_call": {"arguments": delta.text}}
                return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        logprobs = None if self.logprobs is None else self.logprobs_renderer()(choice.logprobs)
        if self.shape is not CHAT:
            return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.reason}
        reply = choice.reply
        assert reply is not None
        assert choice.reason is not None
        message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
        if reply.reasoning:
            message |= {"reasoning": reply.reasoning, "reasoning_content": reply.reasoning}
        if reply.calls:
            message["content"] = reply.content or None
            made = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in reply.calls
            ]
            message |= {"function_call": made[0]["function"]} if self.legacy_calls else {"tool_calls": made}
        reason = self.reason(choice.reason, len(reply.calls))
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


class StreamRenderer:
    """`api.sse.Renderer` for both shapes.

    With `include_usage` every chunk has a `usage`, null but in the last one, which has no choices (OpenAI API
    reference, `stream_options`). `readers` are a chat's.
    """

    def __init__(self, answer: Answer, *, include_usage: bool, readers: Readers | None = None) -> None:
        self._answer = answer
        self._include_usage = include_usage
        self._head = b"data: " + _encode(answer.head(answer.shape.chunk))[:-1] + b',"choices":['
        self._tail = b"]" + (b',"usage":null' if include_usage else b"") + b"}\n\n"
        # Before and after the text of a token.
        self._after = answer.shape.after + b',"logprobs":null,"finish_reason":null}' + self._tail
        self._before: dict[int, bytes] = {}
        self._logprobs: dict[int, Logprobs] = {}
        self._unfinished = answer.choices
        self._readers = readers
        self._unsaid: dict[int, list[TokenLogprob]] = {}  # of text that is held back, by choice

    def opening(self, model: str) -> bytes:
        """The role chunk of every choice; nothing for completions."""
        part = self._answer.shape.opening
        if not part:
            return b""
        return b"".join(self._event(index, part) for index in range(self._answer.choices))

    def batch(self, chunks: Sequence[Chunk]) -> bytes:
        """The events of `chunks`. Texts without characters only carry token ids, unless they carry logprobs."""
        out: list[bytes] = []
        readers = self._readers
        for chunk in chunks:
            if type(chunk) is Text:
                if readers is not None and not readers[chunk.index].plain:
                    self._read(chunk, readers.feed(chunk), out)
                elif chunk.logprobs and self._answer.logprobs is not None:
                    out.append(self._with_logprobs(chunk))
                elif chunk.text:
                    before = self._before.get(chunk.index) or self._choice(chunk.index)
                    out += (before, one_line(_encode(chunk.text)), self._after)
            elif type(chunk) is Finished:
                self._unfinished -= 1
                out.append(self._finished(chunk))
            elif type(chunk) is Accepted and readers is not None:
                readers.feed(chunk)
        return b"".join(out)

    def _read(self, chunk: Text, deltas: Sequence[Delta], out: list[bytes]) -> None:
        """The events of a text that a reader has looked at. Log-probabilities go with the first that follows."""
        if chunk.logprobs and self._answer.logprobs is not None:
            self._unsaid.setdefault(chunk.index, []).extend(chunk.logprobs)
        for delta in deltas:
            if type(delta) is Content and not self._unsaid:
                before = self._before.get(chunk.index) or self._choice(chunk.index)
                out += (before, one_line(_encode(delta.text)), self._after)
                continue
            part = b'"delta":' + one_line(_encode(self._answer.delta(delta)))
            out.append(self._event(chunk.index, part, logprobs=self._logprobs_of(chunk.index)))

    def _finished(self, chunk: Finished) -> bytes:
        index, out = chunk.index, b""
        reason: str = chunk.reason
        if self._readers is not None:
            parts: list[bytes] = []
            self._read(Text(index, ""), self._readers.feed(chunk), parts)
            out = b"".join(parts)
            reason = self._answer.reason(chunk.reason, self._readers[index].calls)
        logprobs = self._logprobs_of(index)
        return out + self._event(index, self._answer.shape.ending, logprobs=logprobs, reason=_encode(reason))

    def closing(self, usage: Usage) -> bytes:
        """The usage event, if it was asked for, and [DONE]."""
        if self._unfinished:
            raise EngineFault("The engine ended the call before its answer was complete.")
        if not self._include_usage:
            return DONE
        thought = None if self._readers is None else self._readers.reasoning_tokens
        value = _encode(usage_object(usage, timings=self._answer.timings, reasoning_tokens=thought))
        return self._head + b'],"usage":' + value + b"}\n\n" + DONE

    def failure(self, error: Exception) -> bytes:
        """An error event in place of the rest."""
        return error_event(error)

    def _choice(self, index: int) -> bytes:
        before = self._head + b'{"index":%d,' % index + self._answer.shape.before
        self._before[index] = before
        return before

    def _event(self, index: int, part: bytes, *, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        rest = b',"logprobs":' + logprobs + b',"finish_reason":' + reason + b"}"
        return self._head + b'{"index":%d,' % index + part + rest + self._tail

    def _with_logprobs(self, chunk: Text) -> bytes:
        self._unsaid.setdefault(chunk.index, []).extend(chunk.logprobs)
        shape = self._answer.shape
        text = shape.before + one_line(_encode(chunk.text)) + shape.after
        return self._event(chunk.index, text, logprobs=self._logprobs_of(chunk.index))

    def _logprobs_of(self, index: int) -> bytes:
        """The log-probabilities that wait to be told."""
        waiting = self._unsaid.pop(index, None)
        if not waiting:
            return b"null"
        render = self._logprobs.get(index)
        if render is None:
            render = self._logprobs[index] = self._answer.logprobs_renderer()
        return one_line(_encode(render(waiting)))


def wants_timings() -> bool:
    """Whether the current request asks for LocalAI's timings in `usage`."""
    return request.headers.get("Extra-Usage", "").strip() == "1"
