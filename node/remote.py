"""A try at a request on another node: the same shape as node/local.py, over a pooled mesh stream."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec
import trio

from backends.types import NodeGone, Usage, from_failure
from mesh.errors import PeerError, PeerGone
from mesh.framed import Framed
from mesh.transport import PeerId, Stream
from mesh.wire import Decoder, encode
from node import infer
from node.attempt import Bounced
from node.infer import CallBody, CallHead, Kind

MAX_IDLE_STREAMS = 16
"""Kept open for each peer; opening one costs round trips (docs/benchmarks.md)."""

_CANCEL_S = 1.0  # to say CANCEL on a stream that may be stuck
_DRAIN_S = 5.0  # for the end that answers it


class Streams(Protocol):
    """What is needed of the swarm."""

    async def open(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream to a member. Raises PeerError."""


class RemoteAttempt:
    """Implements node.attempt.Attempt."""

    def __init__(self, framed: Framed, name: str) -> None:
        self.usage = Usage()
        self.ended = False
        self.broken = False  # nothing can follow on its stream
        self._framed = framed
        self._name = name

    async def batches(self) -> AsyncIterator[list[bytes]]:
        owed = 0
        while True:
            try:
                message = await self._framed.receive()
                if message is None:
                    raise PeerGone("The stream ended before the answer.")
                match message.kind:
                    case Kind.CHUNKS:
                        chunks = infer.decode_chunks(message.body)
                    case Kind.DONE:
                        self.usage = infer.decode_usage(message.body)
                        self.ended = True
                        return
                    case Kind.FAILED:
                        self.ended = True
                        raise from_failure(infer.decode_failure(message.body))
                    case _:
                        self.ended = True
                        raise Bounced(infer.decode_time(message.body))
                owed += len(chunks)
                if owed >= infer.CREDIT // 2:
                    self.broken = True  # if this is cancelled: half a message may be out
                    await self._framed.send(Kind.CREDIT, infer.encode(owed))
                    self.broken, owed = False, 0
            except PeerError as error:
                self.broken = True
                raise NodeGone(f"The node {self._name} went away while it answered: {error}") from error
            except msgspec.MsgspecError as error:
                self.broken = True
                raise NodeGone(f"The node {self._name} answered in a way that is not ours: {error}") from error
            yield chunks


class Remote:
    """Calls on other nodes, and the idle streams to them."""

    def __init__(self, swarm: Streams) -> None:
        self._swarm = swarm
        self._idle: defaultdict[PeerId, deque[Framed]] = defaultdict(deque)
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Holds the tasks that read cancelled calls to their ends. Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    @asynccontextmanager
    async def open(self, peer: PeerId, name: str, head: CallHead, request: bytes) -> AsyncIterator[RemoteAttempt]:
        """Send a call (an encoded Request) to a peer. Raises NodeGone when it cannot be reached.

        What the peer has to say of the call (its refusal, too) comes from the attempt's `batches`.
        """
        data = encode(Kind.CALL, infer.encode(CallBody(head, request)))
        framed = await self._send(peer, name, data)
        attempt = RemoteAttempt(framed, name)
        try:
            yield attempt
        finally:
            if attempt.broken:
                with trio.CancelScope(shield=True):
                    await framed.stream.reset()
            elif attempt.ended:
                self._keep(peer, framed)
            else:
                await self._cancel(peer, framed)

    def forget(self, peer: PeerId) -> None:
        """Drop the idle streams of a peer that is gone."""
        idle = self._idle.pop(peer, deque())
        if self._nursery is not None:
            for framed in idle:
                self._nursery.start_soon(framed.stream.reset)

    @property
    def idle_streams(self) -> int:
        """Open streams that no call uses."""
        return sum(map(len, self._idle.values()))

    async def _send(self, peer: PeerId, name: str, data: bytes) -> Framed:
        """Send on an idle stream; one that has died since its last call is replaced by a new one."""
        while idle := self._idle.get(peer):
            framed = idle.pop()
            try:
                await _send_or_reset(framed, data)
            except PeerError:
                continue
            return framed
        try:
            stream = await self._swarm.open(peer, infer.PROTOCOL)
            framed = Framed(stream, Decoder(kinds=infer.FROM_SERVER))
            await _send_or_reset(framed, data)
        except PeerError as error:
            raise NodeGone(f"The node {name} cannot be reached: {error}") from error
        return framed

    async def _cancel(self, peer: PeerId, framed: Framed) -> None:
        """The call is not wanted any more: say so, whatever cancelled us, and let somebody else wait for the end."""
        with trio.move_on_after(_CANCEL_S, shield=True) as scope:
            try:
                await framed.send(Kind.CANCEL)
            except PeerError:
                await framed.stream.reset()
                return
        if scope.cancelled_caught or self._nursery is None:
            with trio.CancelScope(shield=True):
                await framed.stream.reset()
        else:
            self._nursery.start_soon(self._drain, peer, framed)

    async def _drain(self, peer: PeerId, framed: Framed) -> None:
        with trio.move_on_after(_DRAIN_S):
            try:
                while (message := await framed.receive()) is not None:
                    if message.kind != Kind.CHUNKS:
                        self._keep(peer, framed)
                        return
            except PeerError:
                pass
        await framed.stream.reset()

    def _keep(self, peer: PeerId, framed: Framed) -> None:
        idle = self._idle[peer]
        if framed.idle and len(idle) < MAX_IDLE_STREAMS:
            idle.append(framed)
        elif self._nursery is not None:
            self._nursery.start_soon(framed.stream.aclose)


async def _send_or_reset(framed: Framed, data: bytes) -> None:
    try:
        await framed.send_raw(data)
    except BaseException:
        # Half a message may be out: nothing can follow it.
        with trio.CancelScope(shield=True):
            await framed.stream.reset()
        raise
