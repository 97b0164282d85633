"""Messages over a stream: a cut at every byte, cancellation, and what comes together."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from mesh.errors import PeerGone, PeerMisbehaved
from mesh.framed import Framed
from mesh.transport import Stream
from mesh.wire import HEADER, MAX_FRAME_BYTES, Decoder, encode

MemoryStream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


class Pipe:
    """One end of trio's memory stream as a `mesh.transport.Stream`."""

    def __init__(self, end: MemoryStream) -> None:
        self._end = end

    @property
    def peer(self) -> str:
        return "peer"

    async def send(self, data: bytes) -> None:
        await self._end.send_all(data)

    async def receive(self) -> bytes:
        return bytes(await self._end.receive_some(65_536))

    async def close_write(self) -> None:
        await self._end.send_eof()

    async def aclose(self) -> None:
        await self._end.aclose()

    async def reset(self) -> None:
        await self._end.aclose()


def pair() -> tuple[Stream, Stream]:
    here, there = memory_stream_pair()
    return Pipe(here), Pipe(there)


async def test_there_and_back() -> None:
    one, other = pair()
    here, there = Framed(one, Decoder()), Framed(other, Decoder())
    body = bytes(MAX_FRAME_BYTES + 5)
    await here.send(1, b"small")
    await here.send(2, body)
    await here.send_raw(encode(3) + encode(4, b"raw"))
    assert there.stream.peer == "peer"
    assert await there.receive() == (1, b"small")
    assert await there.receive() == (2, body)
    assert await there.receive() == (3, b"")
    await there.send(9, b"answer")
    assert await here.receive() == (9, b"answer")
    assert here.idle
    await one.close_write()
    assert await there.receive() == (4, b"raw")
    assert await there.receive() is None
    assert await there.receive() is None


async def test_a_stream_cut_at_every_byte() -> None:
    """What was whole arrives; then a clean end between messages, and PeerGone inside one."""
    parts = [encode(1, b"abc"), encode(2), encode(3, bytes(10))]
    stream = b"".join(parts)
    ends = [len(b"".join(parts[:count])) for count in range(len(parts) + 1)]
    for size in range(len(stream) + 1):
        one, other = pair()
        await one.send(stream[:size])
        await one.close_write()
        there = Framed(other, Decoder())
        for _ in range(sum(0 < end <= size for end in ends)):
            assert await there.receive() is not None
        if size in ends:
            assert await there.receive() is None
        else:
            with pytest.raises(PeerGone, match="inside a message"):
                await there.receive()


async def test_cancelling_a_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    one, other = pair()
    there = Framed(other, Decoder())
    message = encode(1, b"abcdef")
    for at in range(len(message) - 1):
        await one.send(message[at : at + 1])
        with trio.move_on_after(1) as scope:
            await there.receive()
        assert scope.cancelled_caught
        assert not there.idle
    await one.send(message[-1:])
    assert await there.receive() == (1, b"abcdef")
    assert there.idle


async def test_messages_that_came_together_are_not_idle() -> None:
    one, other = pair()
    there = Framed(other, Decoder())
    await one.send(encode(1) + encode(2))
    assert await there.receive() == (1, b"")
    assert not there.idle
    assert await there.receive() == (2, b"")
    assert there.idle


async def test_a_receive_waits_for_its_message() -> None:
    one, other = pair()
    there = Framed(other, Decoder())
    got: list[object] = []

    async def receive() -> None:
        got.append(await there.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        assert got == []
        await one.send(encode(7))
    assert got == [(7, b"")]


@pytest.mark.parametrize("junk", [HEADER.pack(0xFFFFFFFF, 1), HEADER.pack(0, 9), b"\xff" * 100])
async def test_junk_raises_now_and_later(junk: bytes) -> None:
    one, other = pair()
    there = Framed(other, Decoder(kinds=(1,)))
    await one.send(junk)
    with pytest.raises(PeerMisbehaved):
        await there.receive()
    await one.send(encode(1))
    with pytest.raises(PeerMisbehaved):
        await there.receive()
