"""multistream-select 1.0, sans-IO: one line each way names the protocol of what follows.

A line is its length (unsigned LEB128), its text and a newline. Both sides start with the name of this protocol itself;
then one proposes and the other repeats the proposal, or says `na`. A proposal goes out with the first line, without
waiting for the other side's: one round trip less than py-libp2p takes.
"""

from __future__ import annotations

from mesh.errors import PeerMisbehaved

MULTISTREAM = "/multistream/1.0.0"
REFUSED = "na"
MAX_LINE_BYTES = 256
"""Longer than any protocol's name; the length of a line fits two bytes."""


def line(text: str) -> bytes:
    """One line, ready to send."""
    body = text.encode() + b"\n"
    if len(body) < 128:
        return bytes((len(body),)) + body
    if len(body) > MAX_LINE_BYTES:
        raise ValueError(f"a protocol's name has at most {MAX_LINE_BYTES - 1} bytes")
    return bytes((len(body) & 0x7F | 0x80, len(body) >> 7)) + body


def read_line(data: bytes | bytearray) -> tuple[str, int] | None:
    """The first line in `data` and the bytes it takes, or None when it is not complete. Raises PeerMisbehaved."""
    if len(data) < 2:
        return None
    length, start = data[0], 1
    if length & 0x80:
        length, start = length & 0x7F | data[1] << 7, 2
    if not 0 < length <= MAX_LINE_BYTES:
        raise PeerMisbehaved("The peer sent no multistream-select line.")
    if len(data) < start + length:
        return None
    body = bytes(data[start : start + length])
    if body[-1:] != b"\n":
        raise PeerMisbehaved("The peer sent no multistream-select line.")
    return body[:-1].decode(errors="replace"), start + length


PREAMBLE = line(MULTISTREAM)
"""The first thing that either side sends."""
