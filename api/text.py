"""JSON that stays on one line, for streams."""

from __future__ import annotations

# Valid in JSON, but line ends to Python's str.splitlines, with which some clients cut a stream into its lines.
_LINE_ENDS = {line_end.encode(): b"\\u%04x" % ord(line_end) for line_end in "\x85\u2028\u2029"}


def one_line(encoded: bytes) -> bytes:
    """`encoded` JSON without characters that anybody takes for the end of a line."""
    if encoded.isascii():
        return encoded
    for line_end, escape in _LINE_ENDS.items():
        encoded = encoded.replace(line_end, escape)
    return encoded
