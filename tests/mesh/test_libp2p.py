"""The libp2p transport: connections between real nodes on loopback. Its traps: test_libp2p_traps.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.security.noise.messages import NoiseHandshakePayload

from mesh.errors import NotAMember, PeerGone, PeerMisbehaved
from mesh.identity import Identity
from mesh.libp2p import Libp2pTransport, Options
from mesh.libp2p.addresses import Endpoint, dialable, parse
from mesh.libp2p.negotiation import PREAMBLE, line
from mesh.libp2p.pending import MAX_PENDING, MAX_PENDING_PER_ADDRESS, Pending
from mesh.libp2p.secure import NOISE, Wire
from mesh.transport import Stream
from tests.mesh.nodes import ECHO, LOOPBACK, NETWORK_KEY, Watched, echoes, node, pair, read_all, reconnect, running
from tests.mesh.stock import addresses_of, info, stock_host

ROOT = Path(__file__).resolve().parents[2]


def _python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_importing_the_transport_does_not_import_py_libp2p() -> None:
    code = "import sys, mesh.libp2p; print([name for name in sys.modules if name.split('.')[0] == 'libp2p'])"
    with _python(code) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "[]\n"


def test_py_libp2p_is_imported_in_one_place() -> None:
    importing = re.compile(r"^\s*(from|import) (libp2p|multiaddr|noise)\b", re.MULTILINE)
    found = {
        path.relative_to(ROOT) for room in ("api", "backends", "mesh", "node") for path in (ROOT / room).rglob("*.py")
    }
    assert {path.parent for path in found if importing.search((ROOT / path).read_text())} == {Path("mesh/libp2p")}


# Streams


async def test_large_data_arrives_whole_and_each_half_closes_by_itself() -> None:
    data = os.urandom(3 << 20)
    async with pair() as (left, right):
        assert await echoes(left, right.peer, data)
        assert left.traffic(right.peer)[0] >= len(data)


async def test_many_streams_at_once_keep_to_themselves() -> None:
    async with pair() as (left, right), trio.open_nursery() as nursery:

        async def talk(index: int) -> None:
            mine = bytes([index]) * (1000 + index * 997)
            assert await echoes(left, right.peer, mine)
            assert await echoes(right, left.peer, mine)

        for index in range(60):
            nursery.start_soon(talk, index)


async def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    async with pair() as (left, right):
        stream = await left.open(right.peer, ECHO)
        for index in range(40):
            with trio.move_on_after(0) as scope:
                await stream.receive()
            assert scope.cancelled_caught
            await stream.send(bytes([index]))
            got = b""
            while not got:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:

                        async def cancel_soon(scope: trio.CancelScope = scope) -> None:
                            await trio.testing.wait_all_tasks_blocked()
                            scope.cancel()

                        nursery.start_soon(cancel_soon)
                        got = await stream.receive()
                        nursery.cancel_scope.cancel()
            assert got == bytes([index])


async def test_the_last_words_of_a_node_that_ends_are_heard() -> None:
    async def says_goodbye(stream: Stream) -> None:
        try:
            await stream.receive()
        finally:
            with trio.CancelScope(shield=True):
                await stream.send(b"goodbye")
                await stream.aclose()

    left, right = node(), node()
    right.handle("/test/goodbye/1", says_goodbye)
    async with running(left):
        async with running(right):
            await left.dial(right.addresses(), right.peer, timeout_s=5)
            stream = await left.open(right.peer, "/test/goodbye/1")
        assert await read_all(stream) == b"goodbye"


async def test_a_slow_reader_slows_only_its_own_sender() -> None:
    async def sleeps(stream: Stream) -> None:
        await trio.sleep_forever()

    async with pair() as (left, right):
        right.handle("/test/sleeps/1", sleeps)
        stream = await left.open(right.peer, "/test/sleeps/1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(5 << 20))
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert await echoes(left, right.peer, bytes(1 << 20))
            nursery.cancel_scope.cancel()


async def test_an_unknown_protocol_is_refused() -> None:
    async with pair() as (left, right):
        with pytest.raises(PeerGone, match="does not serve"):
            await left.open(right.peer, "/test/unknown/1")
        with pytest.raises(PeerGone, match="not connected"):
            await left.open(Identity.generate().peer, ECHO)


async def test_a_stream_that_is_only_left_frees_its_place(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05

    async def never_ends(stream: Stream) -> None:
        await trio.sleep_forever()

    async with pair() as (left, right):
        right.handle("/test/never/1", never_ends)
        for _ in range(3):
            await (await left.open(right.peer, "/test/never/1")).aclose()
        assert left.links_of(right.peer)[0].streams == 3
        await trio.sleep(15)
        assert left.links_of(right.peer)[0].streams == 0
        assert right.links_of(left.peer)[0].streams == 0


# Connections


async def test_who_answers_is_authenticated() -> None:
    left, right = node(), node()
    async with running(left, right):
        with pytest.raises(PeerMisbehaved, match=right.peer):
            await left.dial(right.addresses(), Identity.generate().peer, timeout_s=5)
        assert await left.dial(right.addresses(), None, timeout_s=5) == right.peer
        with pytest.raises(PeerGone, match="This node itself"):
            await left.dial(left.addresses(), None, timeout_s=5)


async def test_a_dial_finds_the_one_address_that_works() -> None:
    left, right = node(), node()
    async with running(left, right):
        bad = ("/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.255/tcp/9", "/dns4/no.such.host.invalid/tcp/1", "nonsense")
        assert await left.dial((*bad, *right.addresses()), right.peer, timeout_s=20) == right.peer


async def test_a_dial_says_why_it_failed() -> None:
    left = node()
    async with running(left):
        for addresses, said in (((), "no address"), (("/ip4/127.0.0.1/tcp/1",), "refuses"), (("/unix/x",), "not an")):
            with pytest.raises(PeerGone, match=said):
                await left.dial(addresses, None, timeout_s=5)


async def test_a_listener_that_says_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    left = node()
    async with running(left), trio.open_nursery() as nursery:

        async def silent(_: trio.SocketStream) -> None:
            await trio.sleep_forever()

        listeners = await nursery.start(trio.serve_tcp, silent, 0)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(PeerGone, match="says nothing"):
            await left.dial((f"/ip4/127.0.0.1/tcp/{port}",), None, timeout_s=10)
        with pytest.raises(PeerGone, match="Nobody answers"):
            await left.dial((f"/ip4/127.0.0.1/tcp/{port}",), None, timeout_s=1)
        nursery.cancel_scope.cancel()


async def test_both_sides_refuse_a_banned_peer() -> None:
    left, right = node(), node()
    watched = Watched(right)
    async with running(left, right):
        right.admit(lambda peer: peer != left.peer)
        with pytest.raises(NotAMember, match="does not let this node in"):
            await left.dial(right.addresses(), right.peer, timeout_s=5)
        assert watched.events == []
        with pytest.raises(NotAMember, match="does not let"):
            await right.dial(left.addresses(), left.peer, timeout_s=5)
        assert right.connected() == frozenset()


async def test_dialling_each_other_at_once_ends_in_one_connection(autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    left, right = node(), node()
    watched = Watched(left)
    async with running(left, right):
        async with trio.open_nursery() as nursery:
            for one, other in ((left, right), (right, left)):
                nursery.start_soon(partial(one.dial, other.addresses(), other.peer, timeout_s=5))
        # Two connections or one, by chance; make it two.
        if len(left.links_of(right.peer)) == 1:
            link = await left._dialler.dial(right.addresses(), right.peer, timeout_s=5)
            left._spawn(link, keep=True)
        assert await echoes(left, right.peer)
        assert await echoes(right, left.peer)
        await trio.sleep(12)
        assert len(left.links_of(right.peer)) == len(right.links_of(left.peer)) == 1
        assert await echoes(left, right.peer)
        assert await echoes(right, left.peer)
        assert watched.events == [("connected", right.peer)]


async def test_a_node_is_the_same_after_a_restart() -> None:
    identity = Identity.generate()
    left, right = node(), node(identity)
    watched = Watched(left)
    async with running(left):
        async with running(right):
            await left.dial(right.addresses(), None, timeout_s=5)
            address = right.addresses()
        await watched.until("disconnected")
        async with running(node(identity, listen=address)):
            assert await left.dial(address, None, timeout_s=5) == identity.peer


async def test_a_killed_process_is_noticed_at_once() -> None:
    code = """
import trio
from tests.mesh.nodes import node
async def main():
    each = node()
    async with trio.open_nursery() as nursery:
        await nursery.start(each.run)
        print(each.addresses()[0], flush=True)
trio.run(main)
"""
    left = node()
    watched = Watched(left)
    with _python(code) as process:
        assert process.stdout is not None
        try:
            address = (await trio.to_thread.run_sync(process.stdout.readline)).strip()
            async with running(left):
                peer = await left.dial((address,), None, timeout_s=10)
                stream = await left.open(peer, ECHO)
                process.send_signal(signal.SIGKILL)
                with trio.fail_after(10), pytest.raises(PeerGone):
                    await stream.receive()
                await watched.until("disconnected")
        finally:
            process.kill()


async def test_a_taken_port_is_an_error() -> None:
    left = node()
    async with running(left):
        taken = node(listen=left.addresses())
        with pytest.RaisesGroup(OSError, flatten_subgroups=True):
            async with running(taken):
                pytest.fail("it has started")


async def test_another_port_is_taken_where_any_will_do() -> None:
    left = node()
    async with running(left):
        right = Libp2pTransport(Identity.generate(), NETWORK_KEY, left.addresses(), Options(any_port=True))
        async with running(right):
            assert right.addresses() != left.addresses()
            assert await right.dial(left.addresses(), left.peer, timeout_s=5) == left.peer


async def test_reconnecting_leaks_nothing() -> None:
    assert await reconnect(50) == (0, 0, 0)


def test_silent_handshakes_are_bounded_by_address_and_in_all() -> None:
    async def main() -> None:
        pending = Pending()

        async def silent(host: str) -> None:
            with pending.handshake(host):
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(silent, "192.0.2.1")
            await trio.testing.wait_all_tasks_blocked()
            assert len(pending) == MAX_PENDING_PER_ADDRESS
            for index in range(300):
                nursery.start_soon(silent, f"198.51.100.{index}")
            await trio.testing.wait_all_tasks_blocked()
            assert len(pending) == MAX_PENDING
            nursery.cancel_scope.cancel()
        assert len(pending) == 0

    trio.run(main)


# Strangers that hold the network key


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4), st.booleans())
def test_random_bytes_in_the_handshake_end_only_their_own_connection(parts: list[bytes], noise: bool) -> None:
    """`noise`: after Noise has been agreed on, so that its messages are what is random."""

    async def main() -> None:
        left, right = node(), node()
        async with running(left, right):
            parsed = parse(right.addresses()[0])
            async with await trio.open_tcp_stream(parsed.host, parsed.port) as stream:
                wire = Wire(stream, bytes.fromhex(NETWORK_KEY))
                try:
                    await wire.write(PREAMBLE + (line(NOISE) if noise else b""))
                    for part in parts:
                        await wire.write(len(part).to_bytes(2) + part if noise else part)
                    await stream.send_eof()
                    with trio.fail_after(10):
                        while await stream.receive_some():
                            pass
                except trio.BrokenResourceError:
                    pass  # it has had enough before all was sent
            assert await left.dial(right.addresses(), right.peer, timeout_s=5) == right.peer
            assert len(right._pending) == 0

    trio.run(main)


@pytest.mark.parametrize("liar", ["listener", "dialler"])
async def test_a_noise_handshake_with_nonsense_in_it_ends_only_its_own_connection(
    liar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Noise authenticates is then no protobuf; the listener is the first to send it."""
    honest = NoiseHandshakePayload.serialize
    turns = iter([liar == "listener", liar == "dialler"])

    def serialize(payload: NoiseHandshakePayload) -> bytes:
        return b"\xff\x01nonsense" if next(turns) else honest(payload)

    left, right = node(), node()
    async with running(left, right):
        with monkeypatch.context() as patched:
            patched.setattr(NoiseHandshakePayload, "serialize", serialize)
            with pytest.raises((PeerMisbehaved, PeerGone)):
                await left.dial(right.addresses(), right.peer, timeout_s=5)
        assert await left.dial(right.addresses(), right.peer, timeout_s=5) == right.peer


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6))
def test_random_bytes_after_the_handshake_end_only_their_own_connection(parts: list[bytes]) -> None:
    async def main() -> None:
        left, right = node(), node()
        async with running(left, right):
            await left.dial(right.addresses(), right.peer, timeout_s=5)
            link = left.links_of(right.peer)[0]
            for part in parts:
                link.mux.out.append(part)
                link.send_soon()
                await trio.lowlevel.checkpoint()
            await left.disconnect(right.peer)
            await left.dial(right.addresses(), right.peer, timeout_s=5)
            assert await echoes(left, right.peer)

    trio.run(main)


# Addresses


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("/ip4/192.168.1.5/tcp/4001", Endpoint("192.168.1.5", 4001)),
        ("/ip6/fd00::5/tcp/4001", Endpoint("fd00::5", 4001)),
        ("/dns4/box.local/tcp/80", Endpoint("box.local", 80)),
        ("/ip4/10.0.0.1/tcp/1/p2p/12D3KooX", Endpoint("10.0.0.1", 1)),
        ("/ip4/10.0.0.1/tcp/1/p2p/12D3KooX/p2p-circuit", Endpoint("10.0.0.1", 1, "12D3KooX")),
    ],
)
def test_addresses_that_can_be_dialled(address: str, endpoint: Endpoint) -> None:
    assert parse(address) == endpoint


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "192.168.1.5:80",
        "/ip4/300.1.1.1/tcp/1",
        "/ip4/fd00::5/tcp/1",
        "/ip4/1.2.3.4/udp/1",
        "/ip4/1.2.3.4/tcp/x",
        "/ip4/1.2.3.4/tcp/70000",
        "/unix/a/tcp/1",
        "/ip4/1.2.3.4/tcp/1/ws",
        "/ip4/1.2.3.4/tcp/1/p2p/a/p2p-circuit/p2p/b",
    ],
)
def test_addresses_that_cannot(address: str) -> None:
    with pytest.raises(ValueError, match=r"holds|is not an address"):
        parse(address)


def test_a_listener_on_all_interfaces_tells_of_those_others_can_dial() -> None:
    assert dialable("127.0.0.1", 7) == ("/ip4/127.0.0.1/tcp/7",)
    found = [parse(address).host for address in dialable("0.0.0.0", 7)]
    assert found
    loopback = [host.startswith("127.") for host in found]
    assert not any(loopback) or all(loopback)
    assert "0.0.0.0" not in found


async def test_a_node_tells_where_it_listens_only_while_it_does() -> None:
    both = node(listen=(*LOOPBACK, "/ip6/::1/tcp/0"))
    assert both.addresses() == ()
    async with running(both):
        hosts = [parse(address).host for address in both.addresses()]
        assert hosts == ["127.0.0.1", "::1"]
    assert both.addresses() == ()


# With py-libp2p's own hosts


async def test_py_libp2p_dials_us_and_we_dial_it() -> None:
    ours = node()
    async with running(ours), stock_host() as host:
        await host.connect(info(ours.peer, ours.addresses()))
        stream = await host.new_stream(info(ours.peer, ()).peer_id, [ECHO])
        await stream.write(b"from stock")
        assert await stream.read(10) == b"from stock"

        async def answer(stream: object) -> None:
            await stream.write(await stream.read(4))  # type: ignore[attr-defined]
            await stream.close()  # type: ignore[attr-defined]

        host.set_stream_handler("/test/stock/1", answer)
        peer = host.get_id().to_base58()
        await ours.disconnect(peer)
        assert await ours.dial(addresses_of(host), peer, timeout_s=5) == peer
        back = await ours.open(peer, "/test/stock/1")
        await back.send(b"ours")
        assert await read_all(back) == b"ours"


def test_the_network_key_is_checked() -> None:
    async def main() -> None:
        async with running(node(network_key=NETWORK_KEY[2:])):
            pytest.fail("it has started")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="64 hex"), flatten_subgroups=True):
        trio.run(main)


async def test_a_stream_that_comes_while_the_node_ends_is_dropped() -> None:
    """Connections outlive what is served over them, if only by a moment."""
    transport, dropped = node(), trio.Event()
    async with trio.open_nursery() as ended:
        pass
    transport._nursery = ended
    transport._opened(SimpleNamespace(drop=dropped.set))  # type: ignore[arg-type]
    assert dropped.is_set()
