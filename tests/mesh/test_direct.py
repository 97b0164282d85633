"""mesh/tunnel/direct: who is let in, what a member may say there, and that without it the mesh's stream carries."""

from __future__ import annotations

import random
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import psutil
import pytest
import trio
from cryptography.hazmat.primitives import serialization

from mesh.libp2p.addresses import direct_hosts
from mesh.tunnel import Meter, wire
from mesh.tunnel.direct import Carrier, Way
from mesh.tunnel.direct.carrier import _nameless, _new_certificate
from mesh.tunnel.direct.process import MAX_GUESTS
from mesh.tunnel.direct.setup import WELCOME, Own
from mesh.tunnel.wire import Invitation
from tests.mesh.test_tunnel import dial, direct_world, echo, read_all, target, until

PEER = "the peer"


@asynccontextmanager
async def carriers() -> AsyncIterator[tuple[Carrier, Carrier]]:
    """One that invites, and one that comes."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            host, guest = Carrier(), Carrier(hosts=lambda _: ["127.0.0.1"])
            nursery.start_soon(host.run)
            nursery.start_soon(guest.run)
            await trio.testing.wait_all_tasks_blocked()
            yield host, guest
            nursery.cancel_scope.cancel()


async def invited(host: Carrier, certificate: bytes) -> tuple[Way, Invitation]:
    way = await host.invite(certificate)
    assert way is not None
    assert way.invitation is not None
    return way, way.invitation


class Stranger:
    """A TLS client of the test's own."""

    def __init__(self) -> None:
        key, certificate = _new_certificate()
        self.certificate = certificate.public_bytes(serialization.Encoding.DER)
        self._files = [_nameless(certificate.public_bytes(serialization.Encoding.PEM)), _nameless(key)]
        self._own = Own(*(file.fileno() for file in self._files))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def call(self, invitation: Invitation, said: bytes, *, anonymous: bool = False) -> ssl.SSLSocket:
        """Connect, and say it. Raises OSError when that fails already."""
        context = self._own.context(server=False, trusted=[invitation.certificate])
        if anonymous:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", invitation.port), timeout=10)
        far = context.wrap_socket(plain, suppress_ragged_eofs=False)
        far.sendall(said)
        return far

    async def is_let_in(self, invitation: Invitation, said: bytes, **how: Any) -> bool:
        """Whether it gets an answer."""

        def ask() -> bool:
            try:
                with self.call(invitation, said, **how) as far:
                    return far.recv(1) == WELCOME
            except OSError:
                return False

        return await trio.to_thread.run_sync(ask)


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    made = Stranger()
    yield made
    made.close()


# -- who is let in --


async def test_whoever_is_not_meant_is_refused_and_the_ticket_stays_good(stranger: Stranger) -> None:
    async with carriers() as (host, guest):
        way, invitation = await invited(host, await guest.certificate_for(PEER))
        assert not await stranger.is_let_in(invitation, invitation.ticket)  # another certificate than the one told
        assert not await stranger.is_let_in(invitation, invitation.ticket, anonymous=True)
        # One that is let into the handshake, as it is invited itself, may not use another's ticket.
        other_way, other = await invited(host, stranger.certificate)
        assert other.port == invitation.port
        assert not await stranger.is_let_in(other, invitation.ticket)
        assert not await stranger.is_let_in(other, bytes(len(other.ticket)))
        assert (way.up, other_way.up) == (False, False)
        assert await guest.dial(PEER, invitation) is not None
        assert await stranger.is_let_in(other, other.ticket)


async def test_a_ticket_is_good_once_and_the_port_is_open_as_long_as_one_is_out(stranger: Stranger) -> None:
    async with carriers() as (host, guest):
        first, invitation = await invited(host, await guest.certificate_for(PEER))
        _, second = await invited(host, stranger.certificate)
        assert await guest.dial(PEER, invitation) is not None
        await first.told.wait()
        assert first.up
        assert await guest.dial(PEER, invitation) is None
        assert await guest.certificate_for(PEER) == b""  # it is not tried again for a while
        assert await stranger.is_let_in(second, second.ticket)
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", invitation.port)


async def test_a_host_with_another_certificate_than_it_told_gets_no_ticket(stranger: Stranger) -> None:
    async with carriers() as (host, guest):
        way, invitation = await invited(host, await guest.certificate_for(PEER))
        impostor = msgspec.structs.replace(invitation, certificate=stranger.certificate)
        assert await guest.dial(PEER, impostor) is None
        assert not way.up


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", random.Random(3).randbytes(4000), b""])
async def test_who_speaks_no_tls_is_hung_up_on(said: bytes) -> None:
    async with carriers() as (host, guest):
        _, invitation = await invited(host, await guest.certificate_for(PEER))
        async with await trio.open_tcp_stream("127.0.0.1", invitation.port) as stream:
            with suppress(trio.BrokenResourceError):  # it may not even hear all of it
                await stream.send_all(said)
                await stream.send_eof()
                await read_all(stream)  # an alert, or nothing
        assert await guest.dial(PEER, invitation) is not None


async def test_strangers_who_say_nothing_cost_a_direct_tunnel_and_no_more() -> None:
    async with carriers() as (host, guest):
        _, invitation = await invited(host, await guest.certificate_for(PEER))
        silent = [await trio.open_tcp_stream("127.0.0.1", invitation.port) for _ in range(MAX_GUESTS + 2)]
        assert host.pid is not None
        assert psutil.Process(host.pid).num_threads() <= MAX_GUESTS + 1
        assert await guest.dial(PEER, invitation) is None
        for stream in silent:
            await stream.aclose()


@pytest.mark.parametrize("certificate", [b"no certificate", bytes(700)])
async def test_a_certificate_that_is_none_is_not_invited_and_others_are(certificate: bytes) -> None:
    async with carriers() as (host, guest):
        _, invitation = await invited(host, await guest.certificate_for(PEER))
        assert await host.invite(certificate) is None
        assert await guest.dial(PEER, invitation) is not None


# -- what a member may say --


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\x00\x00\x00\x05he", id="cut inside of a frame"),
        pytest.param(b"\x00\x00", id="cut inside of a header"),
        pytest.param(b"", id="an end without its frame"),
        pytest.param(b"\x7f\xff\xff\xff", id="a frame that is too long"),
        pytest.param(b"\x00\x00\x00\x00\x00\x00\x00\x01x", id="more after the end"),
    ],
)
async def test_what_is_no_clean_end_is_a_break(stranger: Stranger, said: bytes) -> None:
    async with carriers() as (host, _):
        way, invitation = await invited(host, stranger.certificate)
        far = await trio.to_thread.run_sync(lambda: stranger.call(invitation, invitation.ticket))
        ours, theirs = trio.socket.socketpair()
        near, program = trio.SocketStream(ours), trio.SocketStream(theirs)
        outcome: list[bool] = []

        async def carry() -> None:
            outcome.append(await host.carry(way, near, Meter()))

        async with program, trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            await trio.to_thread.run_sync(far.recv, 1)
            await trio.to_thread.run_sync(far.sendall, said)
            far.close()
        assert outcome == [False]


# -- with and without --


async def test_where_it_can_it_goes_by_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("the mesh's stream was used")

    monkeypatch.setattr("mesh.tunnel.leasing.pump", never)
    monkeypatch.setattr("mesh.tunnel.lending.pump", never)
    with trio.fail_after(60):
        async with direct_world() as world, target(world, echo), world.lease() as end, await dial(end) as near:
            await near.send_all(b"by TLS")
            assert await near.receive_some() == b"by TLS"


async def test_a_listener_that_cannot_be_reached_leaves_the_meshs_stream() -> None:
    with trio.fail_after(60):
        async with direct_world() as world, target(world, echo):
            assert world.carrier is not None
            world.carrier.hosts = lambda _: ["127.0.0.2"]  # it listens at 127.0.0.1 alone
            async with world.lease() as end, await dial(end) as near:
                await near.send_all(b"all the same")
                assert await near.receive_some() == b"all the same"
            assert await world.carrier.certificate_for(world.worker.peer) == b""


async def test_a_pump_process_that_dies_breaks_its_tunnels_and_the_next_ones_have_another() -> None:
    with trio.fail_after(60):
        async with direct_world() as world, target(world, echo), world.lease() as end:
            assert world.carrier is not None
            async with await dial(end) as near:
                await near.send_all(b"x")
                assert await near.receive_some() == b"x"
                first = world.carrier.pid
                assert first is not None
                psutil.Process(first).send_signal(signal.SIGKILL)
                with pytest.raises(trio.BrokenResourceError):
                    await read_all(near)
            await until(lambda: world.carrier is not None and world.carrier.pid is None)
            async with await dial(end) as near:
                await near.send_all(b"y")
                assert await near.receive_some() == b"y"
            assert world.carrier.pid not in (None, first)


async def test_the_process_knows_no_settings_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_API_KEYS", "secret")
    async with carriers() as (host, guest):
        await invited(host, await guest.certificate_for(PEER))
        assert host.pid is not None
        assert "MESH_API_KEYS" not in psutil.Process(host.pid).environ()


@pytest.mark.parametrize(
    ("addresses", "hosts"),
    [
        (["/ip4/192.168.1.5/tcp/4801", "/ip4/192.168.1.5/tcp/4802", "/dns/home/tcp/1"], ["192.168.1.5", "home"]),
        (["/ip4/10.0.0.1/tcp/4801/p2p/Qm1/p2p-circuit", "/ip4/10.0.0.2/udp/1/quic", "nonsense"], []),
        ([], []),
    ],
)
def test_where_a_peer_may_be_reached_without_a_relay(addresses: list[str], hosts: list[str]) -> None:
    assert direct_hosts(addresses) == hosts


async def test_an_older_peer_knows_nothing_of_it() -> None:
    """What it says has neither of the new fields, and what it hears it reads without them."""
    assert wire.wishes.decode(msgspec.msgpack.encode({"target": "rpc", "lease": "x"})).certificate == b""
    assert wire.verdicts.decode(msgspec.msgpack.encode({})).direct is None
