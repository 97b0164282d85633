"""Circuit relay v2: on loopback, and between two network namespaces that have no route to each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from mesh.errors import PeerGone
from mesh.libp2p import Libp2pTransport
from mesh.libp2p.relay import HOP, MAX_CIRCUITS_PER_PEER, RENEW_S
from tests.mesh.nodes import ECHO, Watched, echoes, node, running

ROOT = Path(__file__).resolve().parents[2]


async def met(*others: Libp2pTransport, relay: Libp2pTransport) -> None:
    """All have dialled the relay, and the first has itself carried."""
    for other in others:
        await other.dial(relay.addresses(), relay.peer, timeout_s=5)
    await others[0].reserve(relay.peer)


def circuit(carried: Libp2pTransport) -> tuple[str, ...]:
    """Its addresses through relays."""
    return tuple(address for address in carried.addresses() if address.endswith("/p2p-circuit"))


async def test_a_relay_carries_two_peers() -> None:
    relay, left, right = node(relay=True), node(), node()
    async with running(relay, left, right):
        await met(left, right, relay=relay)
        assert circuit(left) == (f"{relay.addresses()[0]}/p2p/{relay.peer}/p2p-circuit",)
        assert await right.dial(circuit(left), left.peer, timeout_s=5) == left.peer
        assert (right.relayed(left.peer), left.relayed(right.peer)) == (True, True)
        data = os.urandom(1 << 20)
        assert await echoes(right, left.peer, data)
        assert await echoes(left, right.peer, data)
        # The relay sees one stream, and neither of the two as a peer of anything in it.
        assert relay.connected() == {left.peer, right.peer}
        # A direct connection is better, and the relayed one goes when it is unused.
        assert await right.dial(left.addresses(), left.peer, timeout_s=5) == left.peer
        stream = await right.open(left.peer, ECHO)
        await stream.send(b"direct")
        assert await stream.receive() == b"direct"
        assert not all(link.relayed for link in right.links_of(left.peer))


async def test_a_dialler_connects_to_the_relay_by_itself() -> None:
    relay, left, right = node(relay=True), node(), node()
    async with running(relay, left, right):
        await met(left, relay=relay)
        assert await right.dial(circuit(left), left.peer, timeout_s=5) == left.peer
        assert await echoes(right, left.peer)


async def test_the_circuit_ends_with_the_relay_and_the_address_too() -> None:
    left, right = node(), node()
    watched = Watched(right)
    async with running(left, right):
        async with running(relay := node(relay=True)):
            await met(left, right, relay=relay)
            await right.dial(circuit(left), left.peer, timeout_s=5)
            await watched.until("connected", 2)
        await watched.until("disconnected", 2)
        assert circuit(left) == ()


async def test_a_reservation_is_made_again_after_a_reconnection_and_when_it_is_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    relay, left = node(relay=True), node()
    async with running(relay, left):
        await met(left, relay=relay)
        await left.disconnect(relay.peer)
        assert circuit(left) == ()
        await left.dial(relay.addresses(), relay.peer, timeout_s=5)
        await trio.sleep(3)
        assert circuit(left)
        relay._relay._reserved[left.peer] = soon = trio.current_time() + 1
        left._relay._carried[relay.peer] = left._relay._carried[relay.peer][0], trio.current_time() - RENEW_S
        await trio.sleep(3)
        assert relay._relay._reserved[left.peer] > soon


async def test_what_a_relay_refuses() -> None:
    relay, plain, left, right = node(relay=True), node(), node(), node()
    async with running(relay, plain, left, right):
        for other in (relay, plain):
            await left.dial(other.addresses(), other.peer, timeout_s=5)
            await right.dial(other.addresses(), other.peer, timeout_s=5)
        with pytest.raises(PeerGone, match="does not serve"):
            await left.reserve(plain.peer)
        address = f"{relay.addresses()[0]}/p2p/{relay.peer}/p2p-circuit"
        with pytest.raises(PeerGone, match="NO_RESERVATION"):
            await right.dial((address,), left.peer, timeout_s=5)
        relay.trust(lambda peer: peer == left.peer)
        await left.reserve(relay.peer)
        with pytest.raises(PeerGone, match="PERMISSION_DENIED"):
            await right.reserve(relay.peer)
        with pytest.raises(PeerGone, match="PERMISSION_DENIED"):
            await right.dial((address,), left.peer, timeout_s=5)
        relay.trust(lambda _: True)
        relay._relay._circuits[right.peer] = MAX_CIRCUITS_PER_PEER
        with pytest.raises(PeerGone, match="RESOURCE_LIMIT"):
            await right.dial((address,), left.peer, timeout_s=5)
        with pytest.raises(PeerGone, match="whose id is known"):
            await right.dial((address,), None, timeout_s=5)


@pytest.mark.parametrize("message", [b"", b"\xff\xff\xff\xff", b"\x03abc", b"\x02\x08\x02", b"\x05\x08\x01\x12\x01"])
async def test_a_relay_survives_what_is_no_message(message: bytes) -> None:
    relay, left = node(relay=True), node()
    async with running(relay, left):
        await left.dial(relay.addresses(), relay.peer, timeout_s=5)
        stream = await left.open(relay.peer, HOP)
        await stream.send(message)
        await stream.close_write()
        try:
            while await stream.receive():
                pass
        except PeerGone:
            pass
        await left.reserve(relay.peer)
        assert not relay._relay._circuits


# Two hosts with no route but through a third.

HOSTS = {"left": "10.117.1.2", "right": "10.117.2.2"}
PREFIX = f"mesh{os.getpid() % 10000}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def two_networks() -> Iterator[dict[str, str]]:
    """Namespaces `left` and `right`, each with a cable to this one, which does not forward between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("NOT TESTED: circuit relay between separate networks needs root and iproute2")
    names = {side: f"{PREFIX}{side}" for side in HOSTS}
    try:
        for side, name in names.items():
            near, far = f"{PREFIX[:8]}{side[0]}0", f"{PREFIX[:8]}{side[0]}1"
            try:
                _ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"NOT TESTED: no network namespaces here: {error.stderr.decode().strip()}")
            _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
            _ip("address", "add", HOSTS[side][:-1] + "1/24", "dev", near)
            _ip("link", "set", near, "up")
            _ip("-n", name, "address", "add", f"{HOSTS[side]}/24", "dev", far)
            _ip("-n", name, "link", "set", far, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


CODE = """
import sys, trio
from tests.mesh.nodes import Watched, echoes, node
async def main(relay_address, relay, mine, peer, peer_address, carried):
    each = node(listen=(f"/ip4/{mine}/tcp/4001",))
    watched = Watched(each)
    async with trio.open_nursery() as nursery:
        await nursery.start(each.run)
        await each.dial((relay_address,), relay, timeout_s=10)
        if not peer:
            await each.reserve(relay)
            print(each.peer, " ".join(each.addresses()), flush=True)
            await trio.sleep_forever()
        try:
            await each.dial((peer_address,), peer, timeout_s=2)
        except Exception as error:
            print("direct:", type(error).__name__, flush=True)
        await each.dial((peer_address, *carried.split(",")), peer, timeout_s=10)
        print("relayed:", each.relayed(peer), await echoes(each, peer, bytes(300_000)), flush=True)
        nursery.cancel_scope.cancel()
trio.run(main, *sys.argv[1:])
"""


async def test_peers_without_a_route_are_carried(two_networks: dict[str, str]) -> None:
    relay = node(listen=("/ip4/0.0.0.0/tcp/0",), relay=True)

    def start(side: str, *more: str) -> subprocess.Popen[str]:
        gateway = HOSTS[side][:-1] + "1"
        port = relay.addresses()[0].rsplit("/", 1)[1]
        arguments = [f"/ip4/{gateway}/tcp/{port}", relay.peer, HOSTS[side], *(more or ("", "", ""))]
        command = ["ip", "netns", "exec", two_networks[side], sys.executable, "-c", CODE, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    async with running(relay):
        with start("left") as left:
            assert left.stdout is not None
            try:
                peer, direct, *carried = (await trio.to_thread.run_sync(left.stdout.readline)).split()
                # The relay told `left` all its addresses, that of the other cable too.
                with start("right", peer, direct, ",".join(carried)) as right:
                    assert right.stdout is not None
                    said = await trio.to_thread.run_sync(right.stdout.read)
                    assert said == "direct: PeerGone\nrelayed: True True\n"
            finally:
                left.kill()
