"""Dialling: all addresses of a peer, one after the other and soon all at once, until the first answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from mesh.errors import NotAMember, PeerError, PeerGone, PeerMisbehaved
from mesh.libp2p.addresses import Endpoint, parse
from mesh.libp2p.link import Link
from mesh.transport import Address, PeerId

if TYPE_CHECKING:
    from mesh.libp2p.secure import Secured, Security  # it imports py-libp2p

STAGGER_S = 0.15
"""The head start of an address before the next one is tried as well."""
CIRCUIT_DELAY_S = 0.4
"""The head start of all direct addresses before a relay is asked."""
HANDSHAKE_S = 4.5
"""How long a peer that accepted the connection may take to prove itself."""
MAX_ADDRESSES = 16

Relayed = Callable[[Endpoint, PeerId], Awaitable[trio.abc.Stream]]
"""A bare connection to a peer through a relay."""


class Dialler:
    """Makes outbound connections; holds no state between two dials (py-libp2p refuses a peer for 60 s after one that
    failed: facts, trap 5)."""

    def __init__(self, security: Security, relayed: Relayed) -> None:
        self._security, self._relayed = security, relayed

    async def dial(
        self, addresses: tuple[Address, ...], expect: PeerId | None, *, timeout_s: float, direct_only: bool = False
    ) -> Link:
        """The first connection that stands. Raises NotAMember, PeerMisbehaved or PeerGone, the one that says most."""
        endpoints: list[tuple[Address, Endpoint]] = []
        failures: list[PeerError] = []
        for address in dict.fromkeys(addresses[:MAX_ADDRESSES]):
            try:
                endpoint = parse(address)
            except ValueError as error:
                failures.append(PeerGone(f"It cannot be dialled: {error}."))
            else:
                if not (direct_only and endpoint.relay):
                    endpoints.append((address, endpoint))
        endpoints.sort(key=lambda each: each[1].relay is not None)
        found: list[Link] = []

        with trio.move_on_after(timeout_s) as scope:
            async with trio.open_nursery() as nursery:
                for address, endpoint in endpoints:
                    failed = trio.Event()
                    nursery.start_soon(
                        self._attempt, address, endpoint, expect, found, failures, failed, nursery.cancel_scope
                    )
                    with trio.move_on_after(CIRCUIT_DELAY_S if _relay_next(endpoints, address) else STAGGER_S):
                        await failed.wait()
        if found:
            return found[0]
        if scope.cancelled_caught or not failures:
            failures.append(PeerGone(f"Nobody answers at {', '.join(addresses) or 'no address'}."))
        raise min(failures, key=_says_less)

    async def _attempt(
        self,
        address: Address,
        endpoint: Endpoint,
        expect: PeerId | None,
        found: list[Link],
        failures: list[PeerError],
        failed: trio.Event,
        others: trio.CancelScope,
    ) -> None:
        try:
            secured = await self._connect(address, endpoint, expect)
        except PeerError as error:
            failures.append(error)
            failed.set()
            return
        if found:
            await trio.aclose_forcefully(secured.channel.stream)
            return
        found.append(Link(secured, dialled=True, relayed=endpoint.relay is not None, address=address))
        others.cancel()

    async def _connect(self, address: Address, endpoint: Endpoint, expect: PeerId | None) -> Secured:
        if endpoint.relay is not None:
            if expect is None:
                raise PeerGone("Through a relay, only a peer whose id is known can be dialled.")
            stream = await self._relayed(endpoint, expect)
        else:
            try:
                stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
            except OSError as error:
                raise PeerGone(f"{address} refuses connections or is unknown ({_reason(error)}).") from error
        secured: Secured | None = None
        try:
            with trio.move_on_after(HANDSHAKE_S):
                secured = await self._security.connect(stream, expect)
        finally:
            if secured is None:
                await trio.aclose_forcefully(stream)
        if secured is None:
            raise PeerGone(f"{address} accepts connections and says nothing.")
        return secured


def _relay_next(endpoints: list[tuple[Address, Endpoint]], address: Address) -> bool:
    position = [each[0] for each in endpoints].index(address) + 1
    return position < len(endpoints) and endpoints[position][1].relay is not None


def _says_less(error: PeerError) -> int:
    return 0 if isinstance(error, NotAMember) else 1 if isinstance(error, PeerMisbehaved) else 2


def _reason(error: OSError) -> str:
    # trio wraps the errors of all of a name's addresses in one OSError.
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return (cause if isinstance(cause, OSError) else error).strerror or str(error)
