"""Whether an IP address is one of the public internet, so that a stranger may make this node connect to it. Pure.

The lists are IANA's special-purpose registries (RFC 6890 and its successors), written out: the `ipaddress` module's
answers differ between versions of Python. For IPv6 it is the other way round: what is public lies in 2000::/3 and not
in one of the exceptions.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeAlias

_NOT_PUBLIC_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # behind a carrier's NAT
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, and the metadata services of clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: leads to whatever IPv4 address it holds
            "3fff::/20",  # documentation
        ),
    )
)
_HOLD_V4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))  # as IPv6 programs see IPv4; NAT64
_ISATAP = 0x5EFE  # the third quarter of such an address, less a bit; the fourth is an IPv4 address


Address: TypeAlias = IPv4Address | IPv6Address


def stands_for(address: str) -> Address:
    """The address written as `address`; of an IPv6 address that stands for an IPv4 one, that. Raises ValueError."""
    found = ip_address(address.partition("%")[0])  # what follows is an interface of this machine
    if isinstance(found, IPv6Address) and (
        any(found in network for network in _HOLD_V4) or (int(found) >> 32) & 0xFDFF_FFFF == _ISATAP
    ):
        return IPv4Address(int(found) & 0xFFFF_FFFF)
    return found


def is_public(address: str) -> bool:
    """Whether `address`, in digits, is a public unicast one, and what it stands for, too."""
    try:
        found = ip_address(address.partition("%")[0])
        meant = stands_for(address)
    except ValueError:
        return False
    exceptions = _NOT_PUBLIC_V6 if isinstance(meant, IPv6Address) else _NOT_PUBLIC_V4
    if any(meant in network for network in exceptions):
        return False
    return isinstance(found, IPv4Address) or found in _GLOBAL_UNICAST or any(found in network for network in _HOLD_V4)
