"""The protocol `/mesh/infer/1`: a request to another node, and its answer, as messages on a mesh stream. Sans-IO.

    entry -> server                          server -> entry
    CALL    CallHead and the request         CHUNKS   encoded chunks, all that were ready at once
    CREDIT  int, chunks that may follow      DONE     Usage, the end of the call
    CANCEL  -                                FAILED   Failure, the end of the call
                                             BOUNCED  float, the server's own expected completion time: the end

One call at a time on a stream; after its end the stream is free for the next. A call starts with the credit of a
worker's call, so that a slow client pauses its own sequence on whichever machine that is. CANCEL is answered by an end,
like everything else: DONE where the answer was complete already, else FAILED.

Chunks and requests pass through encoded: the server copies what its worker wrote, and the entry node decodes it for the
client (backends/types).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from backends.frames import INITIAL_CREDIT
from backends.types import Failure, Usage

PROTOCOL = "/mesh/infer/1"
CREDIT = INITIAL_CREDIT
MAX_CALL_BYTES = 64 << 20


class Kind(IntEnum):
    """What a message is."""

    CALL = 1
    CREDIT = 2
    CANCEL = 3
    CHUNKS = 16
    DONE = 17
    FAILED = 18
    BOUNCED = 19


FROM_ENTRY = frozenset({Kind.CALL, Kind.CREDIT, Kind.CANCEL})
FROM_SERVER = frozenset({Kind.CHUNKS, Kind.DONE, Kind.FAILED, Kind.BOUNCED})

_Text = Annotated[str, Meta(max_length=512)]
_Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class CallHead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the server has to know of a call without decoding it."""

    request_id: _Text
    client: _Text  # the fairness key at the entry node
    model: _Text
    digest: _Text
    capability: _Text
    weight: Annotated[int, Meta(ge=1, le=4096)] = 1  # slots
    prompt_tokens: _Count = 0  # estimates, to judge a bounce by
    cached_tokens: _Count = 0
    output_tokens: _Count = 0
    bounce_above_s: float | None = None  # None: never bounce
    keep_s: Annotated[float, Meta(ge=0)] | None = None  # how long the model stays then; None: the server's own rule


class CallBody(msgspec.Struct, frozen=True):
    """The body of CALL."""

    head: CallHead
    request: bytes


_encoder = msgspec.msgpack.Encoder()
_calls = msgspec.msgpack.Decoder(CallBody)
_chunks = msgspec.msgpack.Decoder(list[bytes])
_usages = msgspec.msgpack.Decoder(Usage)
_failures = msgspec.msgpack.Decoder(Failure)
_credits = msgspec.msgpack.Decoder(Annotated[int, Meta(ge=1, le=CREDIT)])
_times = msgspec.msgpack.Decoder(float)

encode = _encoder.encode
decode_call = _calls.decode
decode_chunks = _chunks.decode
decode_usage = _usages.decode
decode_failure = _failures.decode
decode_credit = _credits.decode
decode_time = _times.decode
