"""Images, made here."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable

Colour = tuple[int, int, int]


def png(width: int = 4, height: int = 4, at: Callable[[int, int], Colour] = lambda x, y: (x, y, 0)) -> bytes:
    """A PNG whose pixel (x, y) has the colour `at(x, y)`."""
    rows = b"".join(b"\0" + bytes(part for x in range(width) for part in at(x, y)) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def data_url(image: bytes, media_type: str = "image/png") -> str:
    """The image in its own address."""
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


def flat(colour: Colour, size: int = 32) -> bytes:
    """A PNG of one colour."""
    return png(size, size, lambda x, y: colour)


PNG = png()
