"""Members on the same LAN, by multicast DNS (zeroconf), with nothing configured.

Each node announces a service whose name is its peer id, with its port, its addresses and the swarm's fingerprint: a
digest that only tells members apart from others, and proves nothing. zeroconf's synchronous API runs in threads of its
own; what it finds comes back through trio's token.

A node that listens on loopback only is announced on loopback only: to other machines its address means their own.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import psutil
import trio
from zeroconf import InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from mesh.discovery.finder import Found
from mesh.transport import Address, PeerId

SERVICE = "_mesh-ai._tcp.local."
ASK_MS = 3000
"""How long a service that was seen may take to tell its address."""
CHECK_S = 10.0
"""How often this machine's interfaces and addresses are looked at; a cable may be plugged in later."""
REPEAT_S = 30.0
"""How often what is known is reported again: the first dial may have come too early."""
MAX_SEEN = 1024
MAX_ADDRESSES = 8
STOP_S = 3.0


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
        self._fingerprint, self._peer, self._addresses, self._interfaces = fingerprint, peer, addresses, interfaces
        self._seen: dict[str, Found] = {}
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why nothing can be found at present; empty when all is well."""
        return self._problem

    async def run(
        self, found: Callable[[Found], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Announce and look until cancelled. Started before the first sighting."""
        task_status.started()
        while True:
            endpoints = _endpoints(self._addresses())
            interfaces = self._usable(endpoints)
            if not endpoints:
                self._problem = "This node listens on no IPv4 address that others could be told of."
                await trio.sleep(CHECK_S)
            elif not interfaces:
                self._problem = "This machine has no network interface with an IPv4 address that is up."
                await trio.sleep(CHECK_S)
            else:
                await self._announce(endpoints, interfaces, found)

    def _usable(self, endpoints: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
        return self._interfaces or usable_interfaces(loopback_only=all(_is_loopback(host) for host, _ in endpoints))

    async def _announce(
        self, endpoints: tuple[tuple[str, int], ...], interfaces: tuple[str, ...], found: Callable[[Found], None]
    ) -> None:
        """One zeroconf session: until the machine's addresses change, or it cannot be started."""
        token = trio.lowlevel.current_trio_token()
        session = _Session(self._fingerprint, self._peer, endpoints, interfaces)

        def saw(name: str, sighting: Found | None) -> None:
            if sighting is None:
                self._seen.pop(name, None)
            elif name in self._seen or len(self._seen) < MAX_SEEN:
                self._seen[name] = sighting
                found(sighting)

        def saw_in_thread(name: str, sighting: Found | None) -> None:
            try:
                trio.from_thread.run_sync(saw, name, sighting, trio_token=token)
            except trio.RunFinishedError:
                return

        try:
            try:
                await trio.to_thread.run_sync(session.start, saw_in_thread)
                self._problem = ""
            except (OSError, RuntimeError) as error:
                self._problem = explain(error)
                await trio.sleep(CHECK_S)
                return
            reported = trio.current_time()
            while True:
                await trio.sleep(CHECK_S)
                now = _endpoints(self._addresses())
                if now != endpoints or self._usable(now) != interfaces:
                    return
                if trio.current_time() > reported + REPEAT_S:
                    reported = trio.current_time()
                    for sighting in list(self._seen.values()):
                        found(sighting)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_S):
                await trio.to_thread.run_sync(session.stop, abandon_on_cancel=True)


class _Session:
    """zeroconf, from start to stop. Its methods block, and run in threads."""

    def __init__(
        self, fingerprint: str, peer: PeerId, endpoints: tuple[tuple[str, int], ...], interfaces: tuple[str, ...]
    ) -> None:
        self._fingerprint, self._peer, self._endpoints, self._interfaces = fingerprint, peer, endpoints, interfaces
        self._zeroconf: Zeroconf | None = None
        self._browser: ServiceBrowser | None = None
        self._saw: Callable[[str, Found | None], None] = lambda _, __: None

    def start(self, saw: Callable[[str, Found | None], None]) -> None:
        self._saw = saw
        interfaces = list(self._interfaces) or InterfaceChoice.All
        self._zeroconf = Zeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
        # Its first port is the one announced; a node that listens on several is reached at that one.
        port = self._endpoints[0][1]
        info = ServiceInfo(
            SERVICE,
            f"{self._peer}.{SERVICE}",
            port=port,
            addresses=[socket.inet_aton(host) for host, other in self._endpoints if other == port][:MAX_ADDRESSES],
            properties={"fingerprint": self._fingerprint, "peer": self._peer},
            server=f"{self._peer}.local.",
        )
        self._browser = ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._changed])
        # Names are peer ids, which nobody else has: the second that probing for conflicts takes is saved.
        self._zeroconf.register_service(info, cooperating_responders=True, strict=False)

    def stop(self) -> None:
        if self._browser is not None:
            self._browser.cancel()
        if self._zeroconf is not None:
            self._zeroconf.close()  # says goodbye for the service

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:  # in the browser's thread; zeroconf passes these by name
        if state_change is ServiceStateChange.Removed:
            self._saw(name, None)
            return
        if name == f"{self._peer}.{SERVICE}":
            return
        info = ServiceInfo(service_type, name)
        if not info.request(zeroconf, ASK_MS):
            return
        text = {key: value or b"" for key, value in info.properties.items()}
        peer = text.get(b"peer", b"").decode(errors="replace")
        if text.get(b"fingerprint", b"") != self._fingerprint.encode() or name != f"{peer}.{SERVICE}" or not info.port:
            return
        hosts = info.parsed_addresses(IPVersion.V4Only)[:MAX_ADDRESSES]
        self._saw(name, Found(peer, tuple(f"/ip4/{host}/tcp/{info.port}" for host in hosts), "lan"))


def usable_interfaces(*, loopback_only: bool) -> tuple[str, ...]:
    """IPv4 addresses of the interfaces that are up: loopback, and all others too if wanted."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    hosts = {
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family == socket.AF_INET
    }
    return tuple(sorted(host for host in hosts if _is_loopback(host) or not loopback_only))


def explain(error: BaseException) -> str:
    """A sentence for what went wrong at the start of zeroconf."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"Multicast DNS could not be started: {reason}."


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _endpoints(addresses: tuple[Address, ...]) -> tuple[tuple[str, int], ...]:
    """The plain IPv4 addresses among `addresses`."""
    split = [address.split("/") for address in addresses]
    return tuple((parts[2], int(parts[4])) for parts in split if parts[1:2] == ["ip4"] and len(parts) == 5)
