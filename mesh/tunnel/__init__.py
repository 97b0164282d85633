"""Raw bytes over a mesh stream, to a target that the other side exposes by name, and to nothing else.

    tunnels = Tunnels(); tunnels.expose("rpc", connect)      # the side that has the target
    swarm.handle(PROTOCOL, tunnels.handle)

    async with lease(swarm.open, peer, "rpc") as end:         # the side that uses it
        ... a program connects to 127.0.0.1:{end.port}, and finds itself at the target ...

A caller names a target, never an address: what a name leads to is the other side's alone to know. A target is lent to
one caller at a time. The lease is a stream of its own, on which nothing is said: it ends when either side ends it, and
takes all tunnels that were opened under it along. So a caller may connect as often as it likes in between, and one that
is killed gives back what it had as soon as its connection is noticed to be gone.

The first message each way is two bytes of length and a msgpack map; after that nothing is framed. Each direction ends
on its own (half-close), neither side reads faster than the other takes it, and a break on one side is a break, never a
clean end, on the other.

Where both sides can, the bytes do not go over the stream but over a TLS 1.3 connection of their own between the two
machines, which a process beside the node pumps (`mesh/tunnel/direct`). The stream is where that is agreed on:

    caller                                        the side that has the target
    wish: target, lease, its certificate  ----->
                                          <-----  verdict: port, its certificate, ticket
    (dials the port by TLS, each side checks the other's certificate against the one it was told, and shows the ticket)
    choice: direct, or not                ----->
    direct: the stream ends, and the bytes go by TLS; not: they follow here, as they would have without

Both have authenticated each other on the stream, as members; so have the certificates, which each node makes anew at
every start. A ticket is good once, for seconds, from the holder of that certificate; the port is open only while one is
out. On the TLS connection goes, each way:

    4 bytes  length of what follows, big-endian, at most 64 KiB; 0: the end of this direction

so that an end is told from a break.
"""

from mesh.tunnel.leasing import LocalEnd, lease
from mesh.tunnel.lending import MAX_TUNNELS, Connect, Tunnels
from mesh.tunnel.pump import PIECE_BYTES, Meter, Traffic, break_off, pump
from mesh.tunnel.wire import MAX_HEAD_BYTES, PROTOCOL, TunnelRefused

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_TUNNELS",
    "PIECE_BYTES",
    "PROTOCOL",
    "Connect",
    "LocalEnd",
    "Meter",
    "Traffic",
    "TunnelRefused",
    "Tunnels",
    "break_off",
    "lease",
    "pump",
]
