"""The simulated network's weather, under an autojump clock. What it has in common with others: tests/conformance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mesh.errors import PeerGone
from mesh.memory import MemoryTransport, Network
from mesh.transport import Stream

PROTOCOL = "/test/1"


@asynccontextmanager
async def network(*peers: str, **options: float) -> AsyncIterator[tuple[Network, list[MemoryTransport]]]:
    async with trio.open_nursery() as nursery:
        net = Network(**options)  # type: ignore[arg-type]
        await nursery.start(net.run)
        transports = [net.join(peer) for peer in peers]
        for transport in transports:
            transport.handle(PROTOCOL, echo)
            await nursery.start(transport.run)
        yield net, transports
        nursery.cancel_scope.cancel()


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def linked(one: MemoryTransport, other: MemoryTransport) -> Stream:
    await one.dial(other.addresses(), other.peer, timeout_s=5.0)
    return await one.open(other.peer, PROTOCOL)


async def test_latency_is_what_was_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b", "c", latency_s=0.1) as (net, [a, b, c]):
        net.set_latency("a", "c", 0.5)
        for other, latency_s in ((b, 0.1), (c, 0.5)):
            stream = await linked(a, other)
            began = trio.current_time()
            await stream.send(b"x")
            await stream.receive()
            assert trio.current_time() - began == pytest.approx(2 * latency_s)


async def test_a_link_that_becomes_faster_keeps_the_order(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b") as (net, [a, b]):
        stream = await linked(a, b)
        for number in range(5):
            net.set_latency("a", "b", 1.0 - 0.2 * number)
            await stream.send(bytes([number]))
        got = b""
        while len(got) < 5:
            got += await stream.receive()
        assert got == bytes(range(5))


async def test_silence_delays_and_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b") as (net, [a, b]):
        stream = await linked(a, b)
        await stream.send(b"1")
        net.partition({"a"}, {"b"})
        await stream.send(b"2")
        with trio.move_on_after(100):
            await stream.receive()
            raise AssertionError("it was told")
        await stream.send(b"3")
        net.heal()
        await stream.send(b"4")
        got = b""
        while len(got) < 4:
            got += await stream.receive()
        assert got == b"1234"


async def test_a_dial_into_silence_is_not_answered_and_one_to_a_dead_process_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with network("a", "b", "c") as (net, [a, b, c]):
        net.silence("b")
        net.crash("c")
        for other, seconds in ((b, 5.0), (c, 0.002)):
            began = trio.current_time()
            with pytest.raises(PeerGone):
                await a.dial(other.addresses(), None, timeout_s=5.0)
            assert trio.current_time() - began == pytest.approx(seconds)


async def test_a_crash_resets_and_a_join_brings_back(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b") as (net, [a, b]):
        lost: list[str] = []
        a.watch(connected=lambda _: None, disconnected=lost.append)
        stream = await linked(a, b)
        net.crash("b")
        with pytest.raises(PeerGone):
            await stream.receive()
        assert lost == ["b"]
        with pytest.raises(PeerGone):
            await b.dial(a.addresses(), None, timeout_s=1.0)
        again = net.join("b", addresses=b.addresses())
        assert await a.dial(again.addresses(), "b", timeout_s=1.0) == "b"


async def test_a_crash_in_silence_is_told_after_it(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b") as (net, [a, b]):
        stream = await linked(a, b)
        net.silence("b")
        net.crash("b")
        with trio.move_on_after(50) as waiting:
            await stream.receive()
        assert waiting.cancelled_caught
        net.heal()
        with pytest.raises(PeerGone):
            await stream.receive()


async def test_a_cut_breaks_both_sides_and_can_be_mended(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b", "c") as (net, [a, b, c]):
        stream, sibling = await linked(a, b), await linked(a, c)
        net.cut("a", "b")
        assert a.connected() == {"c"}
        assert not b.connected()
        with pytest.raises(PeerGone):
            await stream.send(b"x")
        await sibling.send(b"x")
        assert await sibling.receive() == b"x"
        await (await linked(a, b)).send(b"x")


async def test_a_window_closes_after_so_many_unread_bytes(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b", window_bytes=1000) as (_, [a, b]):
        wake = trio.Event()
        got: list[int] = []

        async def late(stream: Stream) -> None:
            await wake.wait()
            while data := await stream.receive():
                got.append(len(data))

        b.handle(PROTOCOL, late)
        stream = await linked(a, b)
        await stream.send(bytes(1000))
        with trio.move_on_after(10) as waiting:
            await stream.send(b"x")
        assert waiting.cancelled_caught
        assert a.sent_bytes == 1000
        wake.set()
        await stream.send(bytes(5000))
        await stream.close_write()
        await trio.sleep(1)
        assert sum(got) == 6000
        assert max(got) <= 1000


async def test_counters_count_what_is_carried(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b") as (net, [a, b]):
        stream = await linked(a, b)
        for _ in range(3):
            await stream.send(b"12345")
            await stream.receive()
        assert (a.sent_bytes, a.sends, a.received_bytes) == (15, 3, 15)
        assert net.dials[b.addresses()[0]] == 1


async def test_nothing_is_kept_of_streams_that_are_over(autojump_clock: trio.testing.MockClock) -> None:
    async with network("a", "b") as (net, [a, b]):
        for number in range(300):
            stream = await linked(a, b)
            await stream.send(b"x")
            if number % 3 == 0:
                await stream.reset()
            elif number % 3 == 1:
                await stream.close_write()
                while await stream.receive():
                    pass
            await stream.aclose()
        await trio.sleep(1)
        for side in (a, b):
            [[connection]] = side.connections.values()
            assert not connection.streams(side)
        assert not net.pending
