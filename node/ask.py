"""The protocol `/mesh/ask/1`: small questions to another node, one a stream.

ASK  Question            ANSWER  the JSON text of the answer; empty where there is none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from inspect import isawaitable
from typing import Annotated, Any

import msgspec
import trio
from msgspec import Meta

from mesh.errors import PeerError, PeerMisbehaved
from mesh.framed import Framed
from mesh.transport import PeerId, Stream
from mesh.wire import Decoder
from node.remote import Streams

PROTOCOL = "/mesh/ask/1"
ASK_S = 5.0
MAX_ANSWER_BYTES = 32 << 20


class Kind(IntEnum):
    """What a message is."""

    ASK = 1
    ANSWER = 16


class Question(msgspec.Struct, frozen=True):
    """What is asked: the `trace` of a request, a stored `response`, the `chain` of them that ends there, the node's
    `models`, its `history` since a number, what a leased target has `computed`.
    """

    what: Annotated[str, Meta(max_length=32)]
    of: Annotated[str, Meta(max_length=512)]


Answerer = Callable[[str], Any]
"""Makes an answer of plain values, or an awaitable of one; None: there is none."""
_questions = msgspec.msgpack.Decoder(Question)


class Answering:
    """Handles streams of `/mesh/ask/1`."""

    def __init__(self, answers: Mapping[str, Answerer]) -> None:
        """`answers`: for each question, what makes the answer (None: there is none)."""
        self._answers = answers

    async def handle(self, stream: Stream) -> None:
        """Answer one question. Raises PeerError on foreign bytes."""
        framed = Framed(stream, Decoder(4096, kinds={Kind.ASK}))
        message = await framed.receive()
        if message is None:
            return
        try:
            question = _questions.decode(message.body)
        except msgspec.MsgspecError as error:
            raise PeerMisbehaved(f"A question that is none of ours: {error}") from None
        answerer = self._answers.get(question.what)
        answer = answerer(question.of) if answerer is not None else None
        if isawaitable(answer):
            answer = await answer
        await framed.send(Kind.ANSWER, b"" if answer is None else msgspec.json.encode(answer))


async def ask(swarm: Streams, peer: PeerId, what: str, of: str) -> Any:
    """The peer's answer, as plain JSON values; None where it has none, or cannot be asked in `ASK_S` seconds."""
    with trio.move_on_after(ASK_S):
        try:
            stream = await swarm.open(peer, PROTOCOL)
        except PeerError:
            return None
        try:
            framed = Framed(stream, Decoder(MAX_ANSWER_BYTES, kinds={Kind.ANSWER}))
            await framed.send(Kind.ASK, msgspec.msgpack.encode(Question(what, of)))
            message = await framed.receive()
            return msgspec.json.decode(message.body) if message is not None and message.body else None
        except (PeerError, msgspec.MsgspecError, RecursionError):  # RecursionError: lists within lists without end
            return None
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()
    return None
