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

from api.calls import Choice
from api.openai.generation import usage_object
from api.openai.logprobs import LegacyLogprobs, chat_logprobs
from api.sse import DONE, error_event
from backends.types import Chunk, EngineFault, Finished, Text, TokenLogprob, Usage

_encode = msgspec.json.Encoder().encode
# Valid in JSON, but line ends to Python's str.splitlines, with which some clients cut a stream into its lines.
_LINE_ENDS = {line_end.encode(): b"\\u%04x" % ord(line_end) for line_end in "\x85\u2028\u2029"}

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

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The answer that is not streamed."""
        return {
            **self.head(self.shape.whole),
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_object(usage, timings=self.timings),
        }

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        logprobs = None if self.logprobs is None else self.logprobs_renderer()(choice.logprobs)
        if self.shape is CHAT:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
        else:
            said = {"text": choice.text}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": choice.reason}


class StreamRenderer:
    """`api.sse.Renderer` for both shapes.

    With `include_usage` every chunk has a `usage`, null but in the last one, which has no choices (OpenAI API
    reference, `stream_options`).
    """

    def __init__(self, answer: Answer, *, include_usage: bool) -> None:
        self._answer = answer
        self._include_usage = include_usage
        self._head = b"data: " + _encode(answer.head(answer.shape.chunk))[:-1] + b',"choices":['
        self._tail = b"]" + (b',"usage":null' if include_usage else b"") + b"}\n\n"
        # Before and after the text of a token.
        self._after = answer.shape.after + b',"logprobs":null,"finish_reason":null}' + self._tail
        self._before: dict[int, bytes] = {}
        self._logprobs: dict[int, Logprobs] = {}
        self._unfinished = answer.choices

    def opening(self, model: str) -> bytes:
        """The role chunk of every choice; nothing for completions."""
        part = self._answer.shape.opening
        if not part:
            return b""
        return b"".join(self._event(index, part) for index in range(self._answer.choices))

    def batch(self, chunks: Sequence[Chunk]) -> bytes:
        """The events of `chunks`. Texts without characters only carry token ids, unless they carry logprobs."""
        out: list[bytes] = []
        for chunk in chunks:
            if type(chunk) is Text:
                if chunk.logprobs and self._answer.logprobs is not None:
                    out.append(self._with_logprobs(chunk))
                elif chunk.text:
                    before = self._before.get(chunk.index) or self._choice(chunk.index)
                    out += (before, _encode_text(chunk.text), self._after)
            elif type(chunk) is Finished:
                self._unfinished -= 1
                out.append(self._event(chunk.index, self._answer.shape.ending, reason=_encode(chunk.reason)))
        return b"".join(out)

    def closing(self, usage: Usage) -> bytes:
        """The usage event, if it was asked for, and [DONE]."""
        if self._unfinished:
            raise EngineFault("The engine ended the call before its answer was complete.")
        if not self._include_usage:
            return DONE
        value = _encode(usage_object(usage, timings=self._answer.timings))
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
        render = self._logprobs.get(chunk.index)
        if render is None:
            render = self._logprobs[chunk.index] = self._answer.logprobs_renderer()
        shape = self._answer.shape
        text = shape.before + _encode_text(chunk.text) + shape.after
        return self._event(chunk.index, text, logprobs=_one_line(_encode(render(chunk.logprobs))))


def _encode_text(text: str) -> bytes:
    encoded = _encode(text)
    return encoded if text.isascii() else _one_line(encoded)


def _one_line(encoded: bytes) -> bytes:
    for line_end, escape in _LINE_ENDS.items():
        encoded = encoded.replace(line_end, escape)
    return encoded


def wants_timings() -> bool:
    """Whether the current request asks for LocalAI's timings in `usage`."""
    return request.headers.get("Extra-Usage", "").strip() == "1"
