"""What the node and its pump process say to each other: lines of JSON on a socket pair, and counters in shared memory.

Imported by the process, which is to be small: nothing here but the standard library.

    node -> process                                             process -> node
    invite  way, certificate, ticket                            open    way, port
    dial    way, hosts, port, certificate, ticket               up      way   (dialled, or the ticket was shown)
    carry   way, slot; and with it the socket on this machine   failed  way, why
    drop    way                                                 over    way, whole

Whatever is on its way to be a tunnel, or is one, has a number given by the node: a way. When the node's end of the
socket closes, the process ends, and with it all connections.
"""

from __future__ import annotations

import json
import struct
from typing import Any

WAYS = 256
"""At a time, in one process."""
COUNTERS = struct.Struct("=QQQ")
"""Of one tunnel, as the socket on this machine sees it: bytes out, bytes in, round trips. By slot, one after the
other."""
TICKET_S = 6.0
"""How long a ticket is good, and a connection that is up waits to be used."""
DIAL_S = 2.5
"""In which a connection has to be dialled, authenticated and accepted; all addresses together. Whoever opened the
tunnel waits for that, and then for the mesh's stream."""
CONNECT_S = 1.0
"""For one address to answer at all: one that a firewall hides is not waited for."""
MAX_HOSTS = 4
MAX_LINE_BYTES = 64 << 10


def encode(**fields: Any) -> bytes:
    """One line."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


class Lines:
    """Cuts what comes into lines, and reads them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """What is complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]
