"""Members on the same LAN, by zeroconf (multicast DNS)."""

from __future__ import annotations

from collections.abc import Callable

import trio

from mesh.discovery.finder import Check, Found
from mesh.transport import Address, PeerId

SERVICE = "_mesh-ai._tcp.local."


class LanFinder:
    """Announces this node and reports others that carry the same fingerprint."""

    def __init__(
        self,
        fingerprint: str,
        peer: PeerId,
        addresses: Callable[[], tuple[Address, ...]],
        *,
        interfaces: tuple[str, ...] = (),
    ) -> None:
        """`fingerprint`: `SwarmKeys.fingerprint`. `addresses`: `transport.addresses`. `interfaces`: IPv4 addresses of
        the interfaces to use; all that are up when empty."""

    @property
    def problem(self) -> str:
        """Why nothing can be found at present; empty when all is well."""
        raise NotImplementedError

    async def run(
        self, found: Callable[[Found], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Announce and look until cancelled. Started before the first sighting."""
        raise NotImplementedError


async def diagnose(interfaces: tuple[str, ...] = ()) -> tuple[Check, ...]:
    """Whether discovery on the LAN can work here, one finding after the other, for `mesh doctor`."""
    raise NotImplementedError
