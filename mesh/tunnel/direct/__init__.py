"""Tunnels over TLS 1.3 connections of their own, straight between two machines, pumped by a process beside the node.

Two reasons: a round trip through two Python event loops, Yamux and Noise costs milliseconds, where a loop that does
nothing else and OpenSSL take a tenth of one; and a gigabyte of weights through the node's own loop would keep all its
other work waiting.

    carrier.py   the node's side: starts the process, tells it what to do, and hands it sockets
    orders.py    what the two say to each other
    process.py   the process: its loop, its listener, its tickets
    setup.py     connections until they are agreed on: dialled or accepted, authenticated, their tickets shown
    pipe.py      one tunnel in it: bytes from a socket into a TLS connection and back
"""

from mesh.tunnel.direct.carrier import Carrier, Way

__all__ = ["Carrier", "Way"]
