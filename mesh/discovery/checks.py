"""Whether multicast DNS can work here: what `mesh doctor` says about discovery on the LAN."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
import struct
import time

import trio

from mesh.discovery.finder import Check
from mesh.discovery.lan import usable_interfaces

GROUP, PORT = "224.0.0.251", 5353
ECHO_S = 1.0
"""How long a multicast packet of our own may take to come back."""


async def diagnose(interfaces: tuple[str, ...] = ()) -> tuple[Check, ...]:
    """Whether discovery on the LAN can work here, one finding after the other."""
    return await trio.to_thread.run_sync(_diagnose, interfaces, abandon_on_cancel=True)


def _diagnose(interfaces: tuple[str, ...]) -> tuple[Check, ...]:
    usable = interfaces or tuple(each for each in usable_interfaces(loopback_only=False) if not _is_loopback(each))
    if not usable:
        return (
            Check(
                "interfaces",
                ok=False,
                finding="No network interface with an IPv4 address is up; other machines cannot be found.",
                advice="Connect this machine to a network, or start the other nodes on this machine.",
            ),
        )
    found = Check("interfaces", ok=True, finding=f"Looking for members on {', '.join(usable)}.")
    return (found, _port(), *(_multicast(each) for each in usable))


def _port() -> Check:
    """Multicast DNS shares its port among all that ask for sharing; one program that does not locks out the others."""
    with _socket() as each:
        try:
            each.bind(("", PORT))
        except OSError as error:
            return Check(
                "mdns port",
                ok=False,
                finding=f"UDP port {PORT} cannot be shared ({error.strerror}); nobody on the LAN can be found.",
                advice="Another program holds the port for itself: stop it, or give `mesh join` an address.",
            )
    return Check("mdns port", ok=True, finding=f"UDP port {PORT} can be used.")


def _multicast(interface: str) -> Check:
    """Send a packet to a group of our own choice on the interface, and hear it."""
    name = f"multicast on {interface}"
    advice = "Allow multicast (UDP, 224.0.0.251, port 5353) in the firewall, or give `mesh join` an address."
    mark = secrets.token_bytes(16)
    try:
        with _socket() as receiver, _socket() as sender:
            # Not the port of mDNS: what is sent here is no DNS, and would disturb others.
            receiver.bind(("", 0))
            group = socket.inet_aton(GROUP) + socket.inet_aton(interface)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, struct.pack("B", 1))
            sender.sendto(mark, (GROUP, receiver.getsockname()[1]))
            deadline = time.monotonic() + ECHO_S
            while (left := deadline - time.monotonic()) > 0:
                receiver.settimeout(left)
                if receiver.recv(64) == mark:
                    return Check(name, ok=True, finding=f"Multicast works on {interface}.")
    except TimeoutError:
        pass
    except OSError as error:
        return Check(name, ok=False, finding=_why(interface, error), advice=advice)
    return Check(name, ok=False, finding=f"Multicast on {interface} is blocked: nothing comes back.", advice=advice)


def _why(interface: str, error: OSError) -> str:
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return f"There is no route for multicast on {interface}."
    if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        return f"No interface has the address {interface}."
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"Sending multicast on {interface} is forbidden, probably by a firewall."
    return f"Multicast on {interface} fails: {error.strerror}."


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _socket() -> socket.socket:
    each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return each
