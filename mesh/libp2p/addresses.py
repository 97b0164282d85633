"""Multiaddrs, as far as this project speaks them: TCP on an IP address or a name, and through a relay."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from mesh.transport import Address, PeerId

_CIRCUIT = "/p2p-circuit"


@dataclass(frozen=True)
class Endpoint:
    """Where to connect to."""

    host: str
    port: int
    relay: PeerId | None = None
    """Not to the peer itself: to this relay, which carries the connection to the peer."""


def parse(address: Address) -> Endpoint:
    """`/ip4/192.168.1.5/tcp/4001`, `/ip6/…`, `/dns/NAME/…`, and any of them with `/p2p/RELAY/p2p-circuit` after it.

    A peer's id at the end is let pass: `/ip4/…/tcp/…/p2p/PEER`. Raises ValueError.
    """
    parts = address.split("/")
    if len(parts) < 5 or parts[0] or parts[3] != "tcp" or not parts[4].isdecimal() or int(parts[4]) > 65_535:
        raise ValueError(f"{address!r} is not an address of the form /ip4/192.168.1.5/tcp/4001")
    kind, host, port, rest = parts[1], parts[2], int(parts[4]), parts[5:]
    if kind in ("ip4", "ip6"):
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            raise ValueError(f"{address!r} holds no IP address") from None
        if kind != f"ip{version}":
            raise ValueError(f"{address!r} holds an address of another IP version")
    elif kind not in ("dns", "dns4", "dns6") or not host:
        raise ValueError(f"{address!r} is not an address of a kind that this node can dial")
    if rest[2:] == ["p2p-circuit"] and rest[0] == "p2p":
        return Endpoint(host, port, rest[1])
    if rest and (len(rest) != 2 or rest[0] != "p2p"):
        raise ValueError(f"{address!r} is not an address of a kind that this node can dial")
    return Endpoint(host, port)


def render(host: str, port: int) -> Address:
    """The address of a TCP port on an IP address."""
    return f"/ip{ipaddress.ip_address(host).version}/{host}/tcp/{port}"


def through(relay_address: Address, relay: PeerId) -> Address:
    """The address of a peer that `relay` carries."""
    return f"{relay_address}/p2p/{relay}{_CIRCUIT}"


def direct_hosts(addresses: Iterable[Address]) -> list[str]:
    """The machines that these addresses lead to without a relay, each once."""
    hosts: list[str] = []
    for address in addresses:
        try:
            endpoint = parse(address)
        except ValueError:
            continue
        if endpoint.relay is None and endpoint.host not in hosts:
            hosts.append(endpoint.host)
    return hosts


def dialable(host: str, port: int) -> tuple[Address, ...]:
    """Addresses at which a listener on `host` can be reached from other machines, most likely ones first.

    A listener on all interfaces is reached at each interface's own address; where there is none but loopback, at that.
    """
    bound = ipaddress.ip_address(host)
    if not bound.is_unspecified:
        return (render(host, port),)
    family = socket.AF_INET if bound.version == 4 else socket.AF_INET6
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [
        ipaddress.ip_address(entry.address.partition("%")[0])
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family == family
    ]
    useful = [ip for ip in found if not (ip.is_loopback or ip.is_link_local)]
    return tuple(render(str(ip), port) for ip in useful or [ip for ip in found if ip.is_loopback])
