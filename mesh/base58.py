"""Base58 as Bitcoin and libp2p write it (draft-msporny-base58): no 0, O, I, l, and nothing but letters and digits.

Our own twenty lines instead of the package that py-libp2p brings along: peer ids stay readable without py-libp2p, an
input's length is bounded (the conversion is quadratic), and nothing is stripped or guessed before decoding.
"""

from __future__ import annotations

MAX_CHARS = 128
"""Longest text that `decode` reads. A peer id has 52 characters."""

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}


def encode(data: bytes) -> str:
    """`data` as base58; each leading zero byte is one `1`."""
    number = int.from_bytes(data)
    digits: list[str] = []
    while number:
        number, value = divmod(number, 58)
        digits.append(_ALPHABET[value])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return _ALPHABET[0] * zeros + "".join(reversed(digits))


def decode(text: str) -> bytes:
    """The one byte string that `encode` turns into `text`. Raises ValueError."""
    if len(text) > MAX_CHARS:
        raise ValueError("too long for base58 here")
    number = 0
    for character in text:
        value = _VALUES.get(character)
        if value is None:
            raise ValueError("a character that base58 does not have")
        number = number * 58 + value
    zeros = len(text) - len(text.lstrip(_ALPHABET[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8)
