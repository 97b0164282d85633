"""What an engine answers with: a call is `Accepted`, then chunks, then the frame Done with its `Usage`.

Encoded once, where they are born, and decoded once, where they are rendered; array-like, so that a token costs a
few bytes and microseconds.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from backends.types.conversation import AnswerFormat

FinishReason: TypeAlias = Literal["stop", "length"]


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The engine has checked the request and will answer it. Always the first chunk of a generation."""

    prompt_tokens: int
    format: AnswerFormat = AnswerFormat()


class TopLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One candidate of a position. `text` are the token's bytes (they may be half a character)."""

    token: int
    text: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The chosen token of a position and the best candidates, best first.

    `logprob` is natural, of the model's distribution before any sampler; None where there is none (an echoed
    prompt's first token).
    """

    token: int
    text: bytes
    logprob: float | None
    top: tuple[TopLogprob, ...] = ()


class Text(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Text of choice `index`, whole characters only.

    `tokens` are the ids sampled since the last chunk: they may come with no text yet, while a character or a
    possible stop string is incomplete. Replaying all ids through `Generation.resume` restores exactly that state.
    """

    index: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Choice `index` is complete."""

    index: int
    reason: FinishReason
    stop: str | None = None  # the stop string that ended it, if one did


class Embedding(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The vector of input `index`: little-endian float32, L2-normalised."""

    index: int
    vector: bytes


class TokenIds(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The answer to `TokenizeRequest`."""

    tokens: tuple[int, ...]


class DetokenizedText(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The answer to `DetokenizeRequest`."""

    text: str


class Score(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """What a ranking model makes of document `index`: the more, the better; the scale is the model's own."""

    index: int
    score: float


Chunk: TypeAlias = Accepted | Text | Finished | Embedding | TokenIds | DetokenizedText | Score


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a call cost. Durations are the engine's own, on its own clock."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in a slot's KV cache
    completion_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Chunk] = msgspec.msgpack.Decoder(Chunk)


def encode_chunk(chunk: Chunk) -> bytes:
    """`chunk` as msgpack."""
    return _encoder.encode(chunk)


def decode_chunk(data: bytes) -> Chunk:
    """The chunk in `data`. Raises msgspec.ValidationError or msgspec.DecodeError on foreign bytes."""
    return _decoder.decode(data)
