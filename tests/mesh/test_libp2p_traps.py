"""The twelve traps of py-libp2p 0.8.1, by number: each is shown on py-libp2p as it comes, and then that our transport
does not have it. When a new py-libp2p makes the first half of one fail, its workaround may go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.stream_muxer.yamux import yamux as stock_yamux

from mesh.errors import NotAMember, PeerGone
from mesh.libp2p.negotiation import MULTISTREAM, PREAMBLE, REFUSED, line
from mesh.libp2p.pending import MAX_PENDING_PER_ADDRESS
from mesh.libp2p.secure import NOISE, Wire
from mesh.libp2p.yamux import FIRST_WINDOW_BYTES, WINDOW_BYTES
from mesh.transport import Stream
from tests.mesh.nodes import ECHO, NETWORK_KEY, Cable, Watched, echoes, node, pair, read_all, running
from tests.mesh.stock import addresses_of, info, stock_host, swarm_of

OTHER_KEY = "a5" * 32


@pytest.fixture
def quick_clock() -> trio.testing.MockClock:
    """Waits are skipped once nothing has happened for 50 ms: real sockets on loopback answer sooner."""
    return trio.testing.MockClock(autojump_threshold=0.05)


async def tcp(address: str) -> trio.SocketStream:
    """A bare connection."""
    _, _, host, _, port = address.split("/")
    return await trio.open_tcp_stream(host, int(port))


# 1. Every inbound connection leaks a slot and a task.


async def test_trap_1_in_stock_each_inbound_connection_keeps_a_slot() -> None:
    async with stock_host() as host:
        for _ in range(3):
            dialler = node()
            async with running(dialler):
                await dialler.dial(addresses_of(host), host.get_id().to_base58(), timeout_s=5)
        while swarm_of(host).get_connections():
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert swarm_of(host)._inbound_limiter.borrowed_tokens == 3


async def test_trap_1_reconnecting_leaves_nothing_behind() -> None:
    left, right = node(), node()
    watched = Watched(right)
    async with running(left, right):
        await left.dial(right.addresses(), right.peer, timeout_s=5)
        await left.disconnect(right.peer)
        await watched.until("disconnected")
        await trio.testing.wait_all_tasks_blocked(0.01)
        before = trio.lowlevel.current_statistics().tasks_living
        for count in range(2, 52):
            await left.dial(right.addresses(), right.peer, timeout_s=5)
            assert await echoes(left, right.peer)
            await left.disconnect(right.peer)
            await watched.until("disconnected", count)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert (left.connected(), right.connected()) == (frozenset(), frozenset())
        assert len(right._pending) == 0


# 2. An exception that leaves a handler ends the host.


async def _fails(_: Any) -> None:
    raise ZeroDivisionError("a mistake in a handler")


async def test_trap_2_in_stock_a_handler_that_raises_ends_the_host() -> None:
    dialler = node()
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError), flatten_subgroups=True, allow_unwrapped=True):
        async with running(dialler):
            async with stock_host() as host:
                host.set_stream_handler(ECHO, _fails)
                peer = await dialler.dial(addresses_of(host), None, timeout_s=5)
                await dialler.open(peer, ECHO)
                await trio.sleep_forever()


async def test_trap_2_a_handler_that_raises_costs_its_own_stream_only() -> None:
    async with pair() as (left, right):
        right.handle("/test/fails/1", _fails)
        for _ in range(3):
            with pytest.raises(PeerGone):
                await (await left.open(right.peer, "/test/fails/1")).receive()
        assert await echoes(left, right.peer)
        assert left.connected() == {right.peer}


# 3. A cancelled write desynchronises the connection.

WRITE_STEPS = range(24)
"""After how many rounds of the scheduler a write is cancelled: it is over after fewer."""


async def _cancel_writes(write: Callable[[], Awaitable[None]], works: Callable[[], Awaitable[bool]]) -> list[bool]:
    """Cancel a write at each step, and look each time whether the connection still works."""
    outcomes = []
    for steps in WRITE_STEPS:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for _ in range(steps):
                await trio.lowlevel.cancel_shielded_checkpoint()
            nursery.cancel_scope.cancel()
        outcomes.append(await works())
        if not outcomes[-1]:
            break
    return outcomes


async def test_trap_3_in_stock_a_cancelled_write_can_break_the_connection() -> None:
    right = node()
    async with running(right), stock_host() as host:
        await host.connect(info(right.peer, right.addresses()))
        peer = info(right.peer, ()).peer_id

        async def write() -> None:
            await (await host.new_stream(peer, [ECHO])).write(bytes(300))

        async def works() -> bool:
            try:
                with trio.fail_after(1):
                    stream = await host.new_stream(peer, [ECHO])
                    await stream.write(b"hello")
                    return bytes(await stream.read(5)) == b"hello"
            except (BaseLibp2pError, trio.TooSlowError):
                return False

        stream = await host.new_stream(peer, [ECHO])

        async def write_more() -> None:
            await stream.write(bytes(300))

        assert not all(await _cancel_writes(write_more, works))


async def test_trap_3_a_cancelled_send_harms_no_other_stream() -> None:
    async with pair() as (left, right):
        for size in (300, 300_000):

            async def write(size: int = size) -> None:
                stream = await left.open(right.peer, ECHO)
                try:
                    await stream.send(bytes(size))
                finally:
                    await stream.reset()

            assert all(await _cancel_writes(write, lambda: echoes(left, right.peer)))


# 4. A write to a closed window fails after 5 s.


class _Sleeper:
    """A handler that reads nothing until it is woken."""

    def __init__(self) -> None:
        self.wake = trio.Event()
        self.got = b""
        self.done = trio.Event()

    async def __call__(self, stream: Stream) -> None:
        await self.wake.wait()
        self.got = await read_all(stream)
        self.done.set()


DATA = bytes(range(256)) * 8192  # 2 MiB: more than any window


@pytest.fixture
def fast_clock() -> trio.testing.MockClock:
    """For what polls every 10 ms while it waits, and so leaves nothing to skip."""
    return trio.testing.MockClock(rate=20)


async def test_trap_4_in_stock_a_write_to_a_sleeping_reader_fails(fast_clock: trio.testing.MockClock) -> None:
    right = node()
    right.handle(ECHO, _Sleeper())
    async with running(right), stock_host() as host:
        await host.connect(info(right.peer, right.addresses()))
        stream = await host.new_stream(info(right.peer, ()).peer_id, [ECHO])
        with pytest.raises(StreamError), trio.fail_after(60):
            await stream.write(DATA)


async def test_trap_4_a_send_waits_for_a_sleeping_reader(quick_clock: trio.testing.MockClock) -> None:
    sleeper = _Sleeper()
    async with pair() as (left, right):
        right.handle(ECHO, sleeper)
        stream = await left.open(right.peer, ECHO)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send(DATA)
                await stream.close_write()

            nursery.start_soon(send)
            await trio.sleep(9)
            assert not sleeper.done.is_set()
            assert left.links_of(right.peer)[0].mux.out_bytes < WINDOW_BYTES  # it waits, and does not queue it all
            sleeper.wake.set()
        await sleeper.done.wait()
        assert sleeper.got == DATA


# 5. After one failed dial the peer is refused for 60 s.


async def test_trap_5_in_stock_a_failed_dial_blocks_the_peer() -> None:
    right = node()
    async with stock_host() as host:
        async with running(right):
            address, peer = right.addresses(), right.peer
        with pytest.raises(SwarmException):
            await host.connect(info(peer, address))
        again = node(right._identity, listen=address)  # type: ignore[arg-type]
        async with running(again):
            with pytest.raises(SwarmException, match="recently failed"):
                await host.connect(info(peer, address))


async def test_trap_5_a_peer_that_is_back_is_dialled_at_once() -> None:
    left, right = node(), node()
    async with running(left):
        async with running(right):
            address = right.addresses()
        for _ in range(3):
            with pytest.raises(PeerGone, match="refuses connections"):
                await left.dial(address, right.peer, timeout_s=5)
        again = node(right._identity, listen=address)  # type: ignore[arg-type]
        async with running(again):
            assert await left.dial(address, right.peer, timeout_s=5) == right.peer


# 6. By default plaintext and secio are offered.

WEAK = ("/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0")


async def _security_offered(address: str) -> dict[str, bool]:
    answers = {}
    for proposed in (*WEAK, NOISE):
        async with await tcp(address) as stream:
            wire = Wire(stream, bytes.fromhex(NETWORK_KEY))
            await wire.write(PREAMBLE + line(proposed))
            assert await wire.line() == MULTISTREAM
            answers[proposed] = await wire.line() != REFUSED
    return answers


async def test_trap_6_in_stock_weak_security_is_offered() -> None:
    async with stock_host() as host:
        offered = await _security_offered(addresses_of(host)[0])
        assert offered["/plaintext/2.0.0"]
        assert offered["/secio/1.0.0"]


async def test_trap_6_nothing_but_noise_is_taken() -> None:
    right = node()
    async with running(right):
        offered = await _security_offered(right.addresses()[0])
        assert offered == dict.fromkeys(WEAK, False) | {NOISE: True}


# 7. A reset can look like a clean end.


async def _breaks(stream: Stream) -> None:
    await stream.receive()
    await stream.send(b"half of")
    raise ValueError("and then this")


async def test_trap_7_in_stock_a_lost_connection_reads_as_a_clean_end() -> None:
    right = node()
    async with running(right), stock_host() as host:
        await host.connect(info(right.peer, right.addresses()))
        stream = await host.new_stream(info(right.peer, ()).peer_id, [ECHO])
        await stream.write(b"hello")
        await stream.read(5)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(StreamEOF):
                    await stream.read(5)

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await right.disconnect(host.get_id().to_base58())


@pytest.mark.parametrize("lose", ["reset", "connection"])
async def test_trap_7_what_is_cut_short_never_ends_cleanly(lose: str) -> None:
    async with pair() as (left, right):
        right.handle("/test/breaks/1", _breaks)
        stream = await left.open(right.peer, "/test/breaks/1" if lose == "reset" else ECHO)
        await stream.send(b"hello")
        if lose == "connection":
            assert await stream.receive() == b"hello"
            await right.disconnect(left.peer)
        with pytest.raises(PeerGone):
            await read_all(stream)  # which ends at a clean end


# 8. A silent peer is never noticed.


async def test_trap_8_in_stock_a_silent_peer_hangs_a_read(quick_clock: trio.testing.MockClock) -> None:
    right = node()
    async with running(right), stock_host() as host, trio.open_nursery() as nursery:
        cable = Cable(right.addresses()[0])
        await nursery.start(cable.run)
        await host.connect(info(right.peer, (cable.address,)))
        stream = await host.new_stream(info(right.peer, ()).peer_id, [ECHO])
        cable.cut()
        with trio.move_on_after(30) as scope:
            await stream.read(1)
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_trap_8_a_silent_peer_is_given_up(quick_clock: trio.testing.MockClock) -> None:
    left, right = node(), node()
    watched = Watched(left)
    async with running(left, right), trio.open_nursery() as nursery:
        cable = Cable(right.addresses()[0])
        await nursery.start(cable.run)
        await left.dial((cable.address,), right.peer, timeout_s=5)
        stream = await left.open(right.peer, ECHO)
        await trio.sleep(30)
        assert watched.events == [("connected", right.peer)]  # quiet, and not silent
        cable.cut()
        with trio.fail_after(10), pytest.raises(PeerGone):
            await stream.receive()
        await watched.until("disconnected")
        await left.dial(right.addresses(), right.peer, timeout_s=5)
        assert await echoes(left, right.peer)
        nursery.cancel_scope.cancel()


# 9. Silent sockets lock out peers.

SILENT = 300


@contextmanager
def _sockets(address: str) -> Iterator[list[trio.SocketStream]]:
    streams: list[trio.SocketStream] = []
    try:
        yield streams
    finally:
        for stream in streams:
            stream.socket.close()


async def test_trap_9_in_stock_silent_sockets_take_all_slots() -> None:
    async with stock_host() as host:
        with _sockets(addresses_of(host)[0]) as sockets:
            for _ in range(SILENT):
                sockets.append(await tcp(addresses_of(host)[0]))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert swarm_of(host)._inbound_limiter.available_tokens == 0
            dialler = node()
            async with running(dialler):
                with pytest.raises(PeerGone):
                    await dialler.dial(addresses_of(host), None, timeout_s=5)


async def test_trap_9_silent_sockets_lock_nobody_out() -> None:
    left, right = node(), node()
    async with running(left, right):
        with _sockets(right.addresses()[0]) as sockets:
            for _ in range(SILENT):
                sockets.append(await tcp(right.addresses()[0]))
            assert await left.dial(right.addresses(), right.peer, timeout_s=5) == right.peer
            assert await echoes(left, right.peer)
            assert len(right._pending) <= MAX_PENDING_PER_ADDRESS


# 10. A wrong network key is noticed after 31 s and more.


async def test_trap_10_in_stock_a_wrong_key_is_not_noticed_in_time(quick_clock: trio.testing.MockClock) -> None:
    right = node(network_key=OTHER_KEY)

    async def hold(stream: trio.SocketStream) -> None:  # a listener that waits for sense, as py-libp2p's does
        await stream.send_all(bytes(28))
        await trio.sleep_forever()

    async with stock_host() as host, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, hold, 0)
        address = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"
        with trio.move_on_after(5) as scope, pytest.raises(SwarmException):
            await host.connect(info(right.peer, (address,)))
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_trap_10_a_wrong_key_is_named_at_once() -> None:
    left, right = node(network_key=OTHER_KEY), node()
    async with running(left, right):
        with trio.fail_after(5), pytest.raises(NotAMember, match="network key"):
            await left.dial(right.addresses(), right.peer, timeout_s=5)
        assert right.connected() == frozenset()


async def test_trap_10_a_stranger_receives_no_byte_of_a_protocol() -> None:
    """A nonce and one encrypted line is all that goes to one without the network key, whatever it sends."""
    right = node()
    async with running(right):
        for hello in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(60), PREAMBLE + line(NOISE), bytes(100_000)):
            async with await tcp(right.addresses()[0]) as stream:
                received = b""
                try:
                    await stream.send_all(hello)
                    await stream.send_eof()
                    while data := await stream.receive_some():
                        received += data
                except trio.BrokenResourceError:
                    pass  # closed with bytes of ours unread
                assert len(received) <= 8 + len(PREAMBLE)
                assert b"multistream" not in received


# 11. Windows grow to 16 MiB, and what a reset stream leaves unread stays for a minute.


def test_trap_11_in_stock_a_window_may_hold_16_mib() -> None:
    assert stock_yamux.MAX_WINDOW_SIZE == 16 << 20
    assert stock_yamux._STALE_STREAM_GRACE_SECONDS == 60.0


async def test_trap_11_unread_data_is_bounded_and_goes_with_its_stream() -> None:
    streams: list[Stream] = []
    arrived = trio.Event()

    async def hoard(stream: Stream) -> None:
        streams.append(stream)
        if len(streams) == 8:
            arrived.set()
        await trio.sleep_forever()

    async with pair() as (left, right):
        right.handle(ECHO, hoard)
        mux = right.links_of(left.peer)[0].mux
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon((await left.open(right.peer, ECHO)).send, DATA)
            await arrived.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert 7 * FIRST_WINDOW_BYTES < mux.unread_bytes <= 8 * FIRST_WINDOW_BYTES
            nursery.cancel_scope.cancel()
        for stream in streams:
            await stream.reset()
        assert mux.unread_bytes == 0


# 12. Many hosts in one process are slow to link.


async def test_trap_12_a_connection_costs_two_tasks_an_end() -> None:
    """py-libp2p runs seven an end, and 50 hosts took 58 s to link all pairs; ours have no gossipsub to lag behind."""
    nodes = [node() for _ in range(10)]
    async with running(*nodes):
        before = trio.lowlevel.current_statistics().tasks_living
        async with trio.open_nursery() as nursery:
            for index, left in enumerate(nodes):
                for right in nodes[:index]:
                    nursery.start_soon(partial(left.dial, right.addresses(), right.peer, timeout_s=20))
        pairs = len(nodes) * (len(nodes) - 1) // 2
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert all(len(each.connected()) == len(nodes) - 1 for each in nodes)
        assert trio.lowlevel.current_statistics().tasks_living - before < 2 * 2 * pairs + pairs
