"""What every transport does, whatever it is made of: the promises of mesh/transport.py, one by one.

On the real clock: limits are there to end a hang, not to measure.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from mesh.errors import NotAMember, PeerGone, PeerMisbehaved
from mesh.identity import Identity
from mesh.transport import PeerId, Stream, Transport
from tests.conformance.transports import OTHER_KEY, WORLDS, Join

ECHO, PATIENCE_S = "/test/echo/1", 20.0


@pytest.fixture(params=sorted(WORLDS))
async def join(request: pytest.FixtureRequest) -> AsyncIterator[Join]:
    async with WORLDS[request.param]() as join:
        yield join


async def connected(join: Join) -> tuple[Transport, Transport]:
    """Two nodes; the first has dialled the second, which echoes."""
    one, other = await join(), await join()
    other.handle(ECHO, echo)
    assert await one.dial(other.addresses(), other.peer, timeout_s=PATIENCE_S) == other.peer
    return one, other


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def read_all(stream: Stream) -> bytes:
    parts = []
    while data := await stream.receive():
        parts.append(data)
    return b"".join(parts)


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 (what it waits for is not ours to set an event in)
            await trio.sleep(0.01)


# -- connections --


async def test_a_dial_tells_who_answered(join: Join) -> None:
    one, other = await join(), await join()
    assert one.peer != other.peer
    assert await one.dial(other.addresses(), None, timeout_s=PATIENCE_S) == other.peer
    assert one.connected() == {other.peer}
    await until(lambda: other.connected() == {one.peer})


async def test_watchers_are_told_of_the_first_connection_and_of_the_end_of_the_last(join: Join) -> None:
    one, other = await join(), await join()
    seen: dict[str, list[tuple[str, PeerId]]] = {"one": [], "other": []}

    def note(name: str, kind: str) -> Callable[[PeerId], None]:
        return lambda peer: seen[name].append((kind, peer))

    for name, transport in (("one", one), ("other", other)):
        transport.watch(connected=note(name, "connected"), disconnected=note(name, "disconnected"))
    for _ in range(2):  # the second dial finds a connection
        await one.dial(other.addresses(), other.peer, timeout_s=PATIENCE_S)
    await until(lambda: bool(seen["other"]))
    await one.disconnect(other.peer)
    await until(lambda: len(seen["one"]) >= 2 and len(seen["other"]) >= 2)
    assert seen == {
        "one": [("connected", other.peer), ("disconnected", other.peer)],
        "other": [("connected", one.peer), ("disconnected", one.peer)],
    }
    assert not one.connected()


async def test_a_peer_can_be_dialled_again_after_it_was_disconnected(join: Join) -> None:
    one, other = await connected(join)
    for _ in range(3):
        await one.disconnect(other.peer)
        await until(lambda: not other.connected() and not one.connected())
        await one.dial(other.addresses(), other.peer, timeout_s=PATIENCE_S)
    assert one.connected() == {other.peer}


async def test_both_may_dial_at_once(join: Join) -> None:
    one, other = await join(), await join()
    other.handle(ECHO, echo)
    async with trio.open_nursery() as nursery:
        for here, there in ((one, other), (other, one)):

            async def dial(here: Transport = here, there: Transport = there) -> None:
                await here.dial(there.addresses(), there.peer, timeout_s=PATIENCE_S)

            nursery.start_soon(dial)
    stream = await one.open(other.peer, ECHO)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"


async def test_nobody_there_is_peer_gone(join: Join) -> None:
    one, other = await join(), await join()
    nowhere = tuple(address.rsplit("/", 1)[0] + "/1" for address in other.addresses()[:1])
    with pytest.raises(PeerGone):
        await one.dial(nowhere, None, timeout_s=2.0)


async def test_one_good_address_among_bad_ones_is_enough(join: Join) -> None:
    one, other = await join(), await join()
    bad = other.addresses()[0].rsplit("/", 1)[0] + "/1"
    assert await one.dial((bad, *other.addresses()), other.peer, timeout_s=PATIENCE_S) == other.peer


async def test_another_peer_than_expected_is_refused(join: Join) -> None:
    one, other = await join(), await join()
    with pytest.raises(PeerMisbehaved):
        await one.dial(other.addresses(), Identity.generate().peer, timeout_s=PATIENCE_S)
    assert not one.connected()


async def test_another_swarms_network_key_is_refused(join: Join) -> None:
    one, other = await join(), await join(network_key=OTHER_KEY)
    with pytest.raises(NotAMember):
        await one.dial(other.addresses(), None, timeout_s=PATIENCE_S)
    assert not one.connected()


@pytest.mark.parametrize("gatekeeper", ["dialler", "listener"])
async def test_the_gate_keeps_a_peer_out(join: Join, gatekeeper: str) -> None:
    one, other = await join(), await join()
    guard, kept_out = (one, other) if gatekeeper == "dialler" else (other, one)
    guard.admit(lambda peer: peer != kept_out.peer)
    guard.handle(ECHO, echo)
    kept_out.handle(ECHO, echo)

    async def dial_and_ask() -> None:
        await one.dial(other.addresses(), None, timeout_s=PATIENCE_S)
        # The listener's refusal may come after the dial: then no stream opens.
        await (await one.open(other.peer, ECHO)).receive()

    with pytest.raises(PeerGone):
        await dial_and_ask()
    await until(lambda: not guard.connected())
    guard.admit(lambda peer: True)
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                await one.dial(other.addresses(), None, timeout_s=PATIENCE_S)
                await one.open(other.peer, ECHO)
                break
            except PeerGone:  # what was left of the refused connection
                await trio.sleep(0.1)


# -- streams --


async def test_a_stream_carries_bytes_both_ways_and_knows_its_peer(join: Join) -> None:
    one, other = await connected(join)
    peers = []

    async def serve(stream: Stream) -> None:
        peers.append(stream.peer)
        await echo(stream)

    other.handle(ECHO, serve)
    stream = await one.open(other.peer, ECHO)
    assert stream.peer == other.peer
    for data in (b"x", b"hello", bytes(range(256)) * 40):
        await stream.send(data)
        got = b""
        while len(got) < len(data):
            got += await stream.receive()
        assert got == data
    assert peers == [one.peer]
    await stream.aclose()


async def test_the_listener_can_open_streams_too(join: Join) -> None:
    one, other = await connected(join)
    one.handle(ECHO, echo)
    await until(lambda: one.peer in other.connected())
    stream = await other.open(one.peer, ECHO)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"


async def test_no_stream_without_a_connection_or_a_handler(join: Join) -> None:
    one, other = await connected(join)
    with pytest.raises(PeerGone):
        await one.open(other.peer, "/test/nobody/1")
    with pytest.raises(PeerGone):
        await one.open(Identity.generate().peer, ECHO)
    await (await one.open(other.peer, ECHO)).aclose()


async def test_the_second_handler_of_a_protocol_replaces_the_first(join: Join) -> None:
    one, other = await connected(join)

    async def greet(stream: Stream) -> None:
        await stream.send(b"second")

    other.handle(ECHO, greet)
    assert await read_all(await one.open(other.peer, ECHO)) == b"second"


async def test_half_closed_streams_still_answer(join: Join) -> None:
    one, other = await connected(join)

    async def count(stream: Stream) -> None:
        await stream.send(str(len(await read_all(stream))).encode())

    other.handle("/test/count/1", count)
    stream = await one.open(other.peer, "/test/count/1")
    for _ in range(10):
        await stream.send(b"x" * 1000)
    await stream.close_write()
    assert await read_all(stream) == b"10000"
    await stream.aclose()


async def test_megabytes_arrive_whole_at_a_slow_reader(join: Join) -> None:
    one, other = await connected(join)
    data = bytes(range(256)) * (5 << 12)  # 5 MiB
    received = bytearray()
    done = trio.Event()

    async def read_slowly(stream: Stream) -> None:
        while part := await stream.receive():
            received.extend(part)
            await trio.sleep(0.001)
        done.set()

    other.handle("/test/sink/1", read_slowly)
    stream = await one.open(other.peer, "/test/sink/1")
    with trio.fail_after(60):
        await stream.send(data)
        await stream.close_write()
        await done.wait()
    assert received == data


async def test_who_does_not_read_holds_up_the_sender_of_that_stream_alone(join: Join) -> None:
    one, other = await connected(join)

    async def never_read(stream: Stream) -> None:
        await trio.sleep_forever()

    other.handle("/test/deaf/1", never_read)
    deaf = await one.open(other.peer, "/test/deaf/1")
    with trio.move_on_after(1.0) as sending:
        await deaf.send(bytes(24 << 20))
    assert sending.cancelled_caught  # more than any window
    sibling = await one.open(other.peer, ECHO)
    with trio.fail_after(PATIENCE_S):
        await sibling.send(b"hello")
        assert await sibling.receive() == b"hello"
    await deaf.reset()
    await sibling.send(b"again")
    assert await sibling.receive() == b"again"


async def test_a_cancelled_receive_loses_nothing(join: Join) -> None:
    one, other = await connected(join)
    stream = await one.open(other.peer, ECHO)
    for number in range(20):
        with trio.move_on_after(0):
            await stream.receive()
        await stream.send(bytes([number]))
        with trio.move_on_after(0.001):  # about when it arrives
            assert await stream.receive() == bytes([number])
            continue
        assert await stream.receive() == bytes([number])


async def test_a_reset_is_peer_gone_at_the_other_side(join: Join) -> None:
    one, other = await connected(join)
    ends: list[BaseException] = []
    over = trio.Event()

    async def serve(stream: Stream) -> None:
        try:
            await stream.send(await stream.receive())
            while True:
                await stream.send(b"x" * 1000)
                await trio.sleep(0.001)
        except PeerGone as error:
            ends.append(error)
            raise
        finally:
            over.set()

    other.handle("/test/talk/1", serve)
    stream = await one.open(other.peer, "/test/talk/1")
    await stream.send(b"hello")
    await stream.receive()
    await stream.reset()
    with trio.fail_after(PATIENCE_S):
        await over.wait()
    assert len(ends) == 1
    with pytest.raises(PeerGone):
        await stream.send(b"more")


async def test_a_handler_that_raises_costs_its_own_stream_and_nothing_else(join: Join) -> None:
    one, other = await connected(join)

    async def fail(stream: Stream) -> None:
        await stream.receive()
        raise RuntimeError("a bug in a handler")

    other.handle("/test/fail/1", fail)
    sibling = await one.open(other.peer, ECHO)
    for _ in range(3):
        stream = await one.open(other.peer, "/test/fail/1")
        await stream.send(b"x")
        with trio.fail_after(PATIENCE_S):
            with contextlib.suppress(PeerGone):
                assert await stream.receive() == b""  # some take a reset for an end: facts, trap 7
        await stream.reset()
    await sibling.send(b"hello")
    assert await sibling.receive() == b"hello"


async def test_disconnecting_breaks_the_streams_of_both(join: Join) -> None:
    one, other = await connected(join)
    broken = trio.Event()

    async def serve(stream: Stream) -> None:
        try:
            while await stream.receive():
                pass
        except PeerGone:
            pass
        broken.set()

    other.handle("/test/wait/1", serve)
    stream = await one.open(other.peer, "/test/wait/1")
    await stream.send(b"x")
    await one.disconnect(other.peer)
    with trio.fail_after(PATIENCE_S):
        with pytest.raises(PeerGone):
            await stream.receive()
        await broken.wait()


async def test_fifty_streams_at_once(join: Join) -> None:
    one, other = await connected(join)
    answers: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        stream = await one.open(other.peer, ECHO)
        await stream.send(str(number).encode() * 100)
        await stream.close_write()
        answers[number] = await read_all(stream)
        await stream.aclose()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
    assert answers == {number: str(number).encode() * 100 for number in range(50)}


async def test_closing_twice_and_resetting_what_is_closed_is_harmless(join: Join) -> None:
    one, other = await connected(join)
    stream = await one.open(other.peer, ECHO)
    await stream.aclose()
    await stream.aclose()
    await stream.reset()
    await stream.reset()
    await one.disconnect(other.peer)
    await one.disconnect(other.peer)
    await stream.aclose()
