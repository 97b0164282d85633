"""mesh/tunnel over the simulated network, over libp2p, and by TLS: bytes, ends, breaks, leases, and what is refused."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import pytest
import trio

from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.identity import Identity
from mesh.memory import Network
from mesh.transport import Stream, Transport
from mesh.tunnel import (
    MAX_HEAD_BYTES,
    MAX_TUNNELS,
    PROTOCOL,
    LocalEnd,
    Traffic,
    TunnelRefused,
    Tunnels,
    break_off,
    lease,
)
from mesh.tunnel.direct import Carrier
from mesh.tunnel.leasing import ask
from mesh.tunnel.wire import Wish
from tests.mesh.nodes import node, running

PATIENCE_S = 20.0
SIZE = 3 << 20


@dataclass
class World:
    """A head, another head, and a peer that exposes targets."""

    head: Transport
    rival: Transport
    worker: Transport
    tunnels: Tunnels
    drop: Callable[[], Awaitable[None]]
    """Take the head away, as if it was killed."""
    misbehaved: list[PeerError]
    carrier: Carrier | None = None
    """The heads'; the worker has one of its own."""

    def lease(self, target: str = "rpc", *, rival: bool = False) -> AbstractAsyncContextManager[LocalEnd]:
        transport = self.rival if rival else self.head
        return lease(transport.open, self.worker.peer, target, self.carrier)


@asynccontextmanager
async def memory_world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        network = Network(latency_s=0.0005)
        await nursery.start(network.run)
        transports = [network.join(Identity.generate().peer) for _ in range(3)]
        for transport in transports:
            await nursery.start(transport.run)
        head = transports[0]

        async def drop() -> None:
            network.crash(head.peer)

        yield await meet(head, transports[1], transports[2], drop)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def libp2p_world() -> AsyncIterator[World]:
    head, rival, worker = node(), node(), node()
    async with running(rival, worker), trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await head.run(task_status=task_status)

        await nursery.start(run)

        async def drop() -> None:
            scope.cancel()
            await trio.lowlevel.checkpoint()

        yield await meet(head, rival, worker, drop)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def direct_world() -> AsyncIterator[World]:
    """As `memory_world`, and the bytes go from one pump process to another by TLS."""
    async with trio.open_nursery() as nursery:
        network = Network(latency_s=0.0005)
        await nursery.start(network.run)
        head, rival, worker = (network.join(Identity.generate().peer) for _ in range(3))
        for transport in (head, rival, worker):
            await nursery.start(transport.run)
        ours, theirs = Carrier(hosts=lambda _: ["127.0.0.1"]), Carrier()
        for carrier in (ours, theirs):
            nursery.start_soon(carrier.run)

        async def drop() -> None:
            network.crash(head.peer)

        yield await meet(head, rival, worker, drop, ours, theirs)
        nursery.cancel_scope.cancel()


async def meet(
    head: Transport,
    rival: Transport,
    worker: Transport,
    drop: Callable[[], Awaitable[None]],
    ours: Carrier | None = None,
    theirs: Carrier | None = None,
) -> World:
    tunnels = Tunnels(named=lambda peer: "the head" if peer == head.peer else "the rival", carrier=theirs)
    misbehaved: list[PeerError] = []

    async def handle(stream: Stream) -> None:
        try:
            await tunnels.handle(stream)
        except PeerError as error:
            misbehaved.append(error)
            raise

    worker.handle(PROTOCOL, handle)
    for transport in (head, rival):
        await transport.dial(worker.addresses(), worker.peer, timeout_s=PATIENCE_S)
    return World(head, rival, worker, tunnels, drop, misbehaved, ours)


WORLDS = {"memory": memory_world, "libp2p": libp2p_world, "direct": direct_world}


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    with trio.fail_after(60):
        async with WORLDS[request.param]() as made:
            yield made


Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def target(world: World, serve: Serve, name: str = "rpc") -> AsyncIterator[None]:
    """A server on a loopback port of the worker, exposed under `name`."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, guarded(serve), 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]

        async def connect() -> trio.SocketStream:
            return await trio.open_tcp_stream("127.0.0.1", port)

        world.tunnels.expose(name, connect)
        yield
        nursery.cancel_scope.cancel()


def guarded(serve: Serve) -> Serve:
    async def quiet(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await serve(stream)

    return quiet


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def dial(end: LocalEnd) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", end.port)


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 (what it waits for is not ours to set an event in)
            await trio.sleep(0.01)


# -- bytes --


async def test_bytes_arrive_whole_both_ways_and_are_counted(world: World) -> None:
    data = random.Random(4).randbytes(SIZE)
    async with target(world, echo), world.lease() as end, await dial(end) as near:

        async def send() -> None:
            await near.send_all(data)
            await near.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await read_all(near) == data
        counted = Traffic(SIZE, SIZE)
        await until(lambda: replace(end.traffic, round_trips=0) == counted)
        await until(lambda: replace(world.tunnels.traffic("rpc"), round_trips=0) == counted)


async def test_each_direction_ends_by_itself(world: World) -> None:
    heard: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        heard.append(await read_all(stream))
        await stream.send_all(b"only now")

    async with target(world, serve), world.lease() as end, await dial(end) as near:
        await near.send_all(b"all of it")
        await near.send_eof()
        assert await read_all(near) == b"only now"
    assert heard == [b"all of it"]


async def test_a_target_that_ends_first_still_hears_the_rest(world: World) -> None:
    heard: list[bytes] = []
    done = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"that is all from me")
        await stream.send_eof()
        heard.append(await read_all(stream))
        done.set()

    async with target(world, serve), world.lease() as end, await dial(end) as near:
        assert await read_all(near) == b"that is all from me"
        await near.send_all(b"not from me")
        await near.send_eof()
        await done.wait()
    assert heard == [b"not from me"]


async def test_a_target_that_does_not_read_holds_the_sender_back(world: World) -> None:
    """Nothing between the two swallows more than sockets and windows hold; and then all of it arrives."""
    reads, size = trio.Event(), 64 << 20
    heard = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal heard
        await reads.wait()
        async for data in stream:
            heard += len(data)
        await stream.send_all(b"done")

    async with target(world, serve), world.lease() as end, await dial(end) as near:

        async def send() -> None:
            piece = bytes(1 << 20)
            for _ in range(size >> 20):
                await near.send_all(piece)
            await near.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            before = -1
            while before != end.traffic.sent_bytes:  # it comes to a stand
                before = end.traffic.sent_bytes
                await trio.sleep(0.3)
            assert before < 24 << 20
            reads.set()
            assert await read_all(near) == b"done"
    assert heard == size


async def test_small_pieces_that_are_ready_go_out_together(world: World) -> None:
    """A message written as llama.cpp writes it, in three pieces, is one round trip; so is its answer."""

    async def serve(stream: trio.SocketStream) -> None:
        buffer = b""
        async for data in stream:
            buffer += data
            while len(buffer) >= 17:
                buffer = buffer[17:]
                await stream.send_all(b"8 bytes.")
                await stream.send_all(b"eight more")

    async with target(world, serve), world.lease() as end, await dial(end) as near:
        for _ in range(50):
            for piece in (b"1", b"22222222", b"33333333"):
                await near.send_all(piece)
            answer = b""
            while len(answer) < 18:
                answer += await near.receive_some(64)
        await until(lambda: end.traffic.round_trips == 50)


# -- breaks --


async def test_a_break_at_the_target_is_a_break_here(world: World) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        break_off(stream)
        await stream.send_all(b"half an ans")

    async with target(world, serve), world.lease() as end, await dial(end) as near:
        await near.send_all(b"?")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(near)


async def test_a_break_here_is_a_break_at_the_target(world: World) -> None:
    outcome: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await read_all(stream)
            outcome.append("a clean end")
        except trio.BrokenResourceError:
            outcome.append("a break")

    async with target(world, serve), world.lease() as end:
        near = await dial(end)
        await near.send_all(b"half a quest")
        await until(lambda: world.tunnels.traffic("rpc").received_bytes + world.tunnels.traffic("rpc").sent_bytes > 0)
        break_off(near)
        await near.aclose()
        await until(lambda: bool(outcome))
    assert outcome == ["a break"]


async def test_a_target_that_is_not_there_breaks_the_local_connection(world: World) -> None:
    async def refused() -> trio.SocketStream:
        raise ConnectionRefusedError(111, "Connection refused")

    world.tunnels.expose("rpc", refused)
    async with world.lease() as end:
        near = await dial(end)
        with pytest.raises(trio.BrokenResourceError):
            await read_all(near)
        assert not end.lost.is_set()


async def test_what_fails_under_a_lease_is_raised_as_it_is(world: World) -> None:
    async with target(world, echo):
        with pytest.raises(LookupError):
            async with world.lease():
                raise LookupError
        await until(lambda: not world.tunnels.holder("rpc"))


# -- leases --


async def test_one_holder_at_a_time_and_as_many_connections_as_it_likes(world: World) -> None:
    async with target(world, echo):
        async with world.lease() as end:
            assert world.tunnels.holder("rpc") == world.head.peer
            with pytest.raises(TunnelRefused, match="leased to the head"):
                async with world.lease(rival=True):
                    pass
            for _ in range(5):
                async with await dial(end) as near:
                    await near.send_all(b"again")
                    assert await near.receive_some() == b"again"
        await until(lambda: not world.tunnels.holder("rpc"))
        async with world.lease(rival=True) as end, await dial(end) as near:
            await near.send_all(b"mine now")
            assert await near.receive_some() == b"mine now"


async def test_a_killed_holder_gives_back_what_it_had(world: World) -> None:
    ended = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await read_all(stream)
        ended.set()

    async with target(world, serve):
        try:
            async with world.lease() as end, await dial(end) as near:
                await near.send_all(b"x")
                await until(
                    lambda: world.tunnels.traffic("rpc").sent_bytes + world.tunnels.traffic("rpc").received_bytes > 0
                )
                await world.drop()
                with trio.fail_after(PATIENCE_S):
                    await end.lost.wait()
                    await ended.wait()
                await until(lambda: not world.tunnels.holder("rpc"))
        except PeerGone:
            pass
        async with world.lease(rival=True):
            assert world.tunnels.holder("rpc") == world.rival.peer


async def test_a_target_that_is_withdrawn_takes_its_lease_and_tunnels_along(world: World) -> None:
    changes: list[str] = []
    world.tunnels.on_change.append(lambda: changes.append(world.tunnels.holder("rpc")))
    async with target(world, echo), world.lease() as end, await dial(end) as near:
        await near.send_all(b"x")
        assert await near.receive_some() == b"x"
        world.tunnels.withdraw("rpc")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(near)
        await end.lost.wait()
        assert world.tunnels.exposed == ()
    assert changes[1] == world.head.peer
    assert changes[-1] == ""


# -- what is refused --


async def test_a_name_that_is_not_exposed(world: World) -> None:
    async with target(world, echo):
        for name in ("mlx-rank", "127.0.0.1:22", "rpc "):
            with pytest.raises(TunnelRefused, match="exposes no target"):
                async with world.lease(name):
                    pass
        assert world.tunnels.holder("rpc") == ""


@pytest.mark.parametrize("name", ["", "x" * 65, "back\x1b[2Jspace"])
async def test_a_name_that_none_of_ours_would_say(world: World, name: str) -> None:
    with pytest.raises(PeerGone):
        async with world.lease(name):
            pass
    await until(lambda: bool(world.misbehaved))
    assert isinstance(world.misbehaved[0], PeerMisbehaved)


async def test_a_tunnel_without_its_lease(world: World) -> None:
    """Neither a peer that holds none, nor one that has heard the name of another's."""
    async with target(world, echo), world.lease():
        held = world.tunnels._targets["rpc"].lease
        for transport, name in ((world.rival, held), (world.head, "0" * 16)):
            with pytest.raises(TunnelRefused, match="not leased"):
                await ask(transport.open, world.worker.peer, Wish("rpc", name))


async def test_more_tunnels_than_one_lease_may_have(world: World) -> None:
    async with target(world, echo), world.lease() as end:
        open_ones = [await dial(end) for _ in range(MAX_TUNNELS)]
        for near in open_ones:
            await near.send_all(b"x")
            assert await near.receive_some() == b"x"
        with pytest.raises(trio.BrokenResourceError):
            await read_all(await dial(end))
        await open_ones[0].aclose()
        await until(lambda: world.tunnels._targets["rpc"].tunnels < MAX_TUNNELS)
        async with await dial(end) as near:
            await near.send_all(b"y")
            assert await near.receive_some() == b"y"
        for near in open_ones:
            await near.aclose()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0",
        (MAX_HEAD_BYTES + 1).to_bytes(2, "big"),
        b"\0\x04abcd",
        b"\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        random.Random(1).randbytes(5000),
    ],
)
async def test_first_bytes_that_are_no_wish(world: World, said: bytes) -> None:
    async with target(world, echo):
        stream = await world.head.open(world.worker.peer, PROTOCOL)
        if said:
            await stream.send(said)
        await stream.close_write()
        with suppress(PeerGone):
            assert await stream.receive() == b""
        await until(lambda: bool(world.misbehaved))
        async with world.lease() as end, await dial(end) as near:  # it lives on
            await near.send_all(b"x")
            assert await near.receive_some() == b"x"


async def test_random_bytes_through_a_tunnel_are_the_targets_to_judge(world: World) -> None:
    """They arrive as they are; what the target makes of them ends its own connection and no more."""

    async def strict(stream: trio.SocketStream) -> None:
        if await stream.receive_some(1) != b"\x0e":
            return
        await stream.send_all(b"hello")

    async with target(world, strict), world.lease() as end:
        async with await dial(end) as near:
            await near.send_all(random.Random(2).randbytes(100_000))
            with suppress(trio.BrokenResourceError):
                assert await read_all(near) == b""
        async with await dial(end) as near:
            await near.send_all(b"\x0e")
            assert await near.receive_some() == b"hello"
