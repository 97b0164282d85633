"""The swarm's kad-dht, over our transport."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from mesh.errors import PeerGone
from mesh.identity import Identity
from mesh.libp2p import Libp2pTransport, Options
from tests.mesh.nodes import LOOPBACK, NETWORK_KEY, node, running

NAMESPACE = "0123456789abcdef"


def member() -> Libp2pTransport:
    return Libp2pTransport(Identity.generate(), NETWORK_KEY, LOOPBACK, Options(dht=NAMESPACE))


async def meet(left: Libp2pTransport, right: Libp2pTransport) -> None:
    """Each has the other in its routing table."""
    await left.dial(right.addresses(), right.peer, timeout_s=5)
    for one, other in ((left, right), (right, left)):
        assert one.dht is not None
        await one.dht.meet(other.peer, other.addresses())


async def test_members_find_those_who_announced_themselves() -> None:
    """Six in a row know their neighbours only; the last finds the first, and can dial it."""
    members = [member() for _ in range(6)]
    async with running(*members):
        for left, right in pairwise(members):
            await meet(left, right)
        first, last = members[0], members[-1]
        assert first.dht is not None
        assert last.dht is not None
        assert first.peer not in last.connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.dht.provide)
            found: dict[str, tuple[str, ...]] = {}
            with trio.fail_after(60):
                while first.peer not in found:
                    found = await last.dht.find()
            nursery.cancel_scope.cancel()
        assert found == {first.peer: first.addresses()}
        assert await last.dial(found[first.peer], first.peer, timeout_s=5) == first.peer


async def test_it_is_served_to_trusted_peers_under_the_swarms_own_name() -> None:
    one, stranger = member(), node()
    async with running(one, stranger):
        await stranger.dial(one.addresses(), one.peer, timeout_s=5)
        with pytest.raises(PeerGone, match="does not serve"):
            await stranger.open(one.peer, "/ipfs/kad/1.0.0")
        one.trust(lambda _: False)
        with pytest.raises(PeerGone):
            await (await stranger.open(one.peer, f"/mesh/{NAMESPACE}/kad/1.0.0")).receive()


async def test_it_is_off_unless_asked_for() -> None:
    plain = node()
    async with running(plain):
        assert plain.dht is None
