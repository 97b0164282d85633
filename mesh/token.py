"""The join token: one short string that lets a machine into a swarm.

    mesh1 <base32>      version 1: the five characters "mesh1", then base32 (Crockford's alphabet, lower case) of

     2 bytes  length of the addresses, big-endian
    32 bytes  the swarm's secret
     n bytes  addresses, each a tag and its fields (`_pack`); one IPv4 address and port take 7
     4 bytes  CRC-32 of "mesh1" and all before, little-endian

With one address it has 77 characters, letters and digits only, so that no terminal or chat client breaks it and a
double click selects all of it. Crockford's base32 rather than base58: case does not matter (a phone may capitalise, a
QR code is smaller in capitals), it is read out without doubt (o and 0, i, l and 1 are the same), and a token that was
cut is the beginning of the right one and can be told from a mistyped one. CRC-32 rather than a cut hash: it finds not
most but ALL changes within five neighbouring characters (four bytes, in the order in which the CRC takes their bits).
Against forgers it has no work to do: they lack the secret.

Keys come from the secret by HKDF-SHA256 (RFC 5869), each with an `info` of its own, so that none tells anything of
another: the fingerprint goes over the LAN in the clear. The addresses have no part in them: tokens of one swarm that
name other addresses are as good as each other.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mesh.errors import TokenError
from mesh.records import ADDRESS_PATTERN
from mesh.transport import Address

SECRET_BYTES = 32
MAX_ADDRESSES = 16
MAX_ADDRESSES_BYTES = 1023
MAX_TEXT_CHARS = 4096
"""Longest text that is looked at, blanks included. The longest token has 1,703 characters."""

_NAME = "mesh"
_VERSION = 1
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_ALIKE = str.maketrans("oil", "011")

_LENGTH = struct.Struct("!H")
_PORT = struct.Struct("!H")
_CHECKSUM = struct.Struct("<I")  # a reflected CRC: this end first, or bursts over the seam would not be found
_FIXED_BYTES = _LENGTH.size + SECRET_BYTES + _CHECKSUM.size

_TEXT, _IP4, _IP6, _DNS, _DNS4, _DNS6 = range(6)
_DNS_TAGS = {"dns": _DNS, "dns4": _DNS4, "dns6": _DNS6}
_DNS_NAMES = {tag: name for name, tag in _DNS_TAGS.items()}


@dataclass(frozen=True, slots=True)
class SwarmKeys:
    """What is derived from a swarm's secret. The repr shows what is public."""

    network: str = field(repr=False)
    """libp2p's private-network key, 64 hex characters."""
    membership: bytes = field(repr=False)
    """32 bytes; `mesh/admission.py` proves it without showing it."""
    fingerprint: str
    """16 hex characters by which the members find each other on a LAN. Public."""
    namespace: str
    """32 hex characters: the swarm's own prefix in a shared discovery service. Public there."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A swarm's secret and where some of its peers may be reached. The repr hides the secret."""

    secret: bytes = field(repr=False)
    addresses: tuple[Address, ...] = ()

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise TokenError(f"A join token's secret has {SECRET_BYTES} bytes.")
        if len(self.addresses) > MAX_ADDRESSES:
            raise TokenError(f"A join token holds at most {MAX_ADDRESSES} addresses.")
        for address in self.addresses:
            if not re.search(ADDRESS_PATTERN, address):
                raise TokenError("An address in a join token is a multiaddr, such as /ip4/192.168.1.5/tcp/4001.")
        if sum(len(_pack(address)) for address in self.addresses) > MAX_ADDRESSES_BYTES:
            raise TokenError(f"A join token's addresses take at most {MAX_ADDRESSES_BYTES} bytes.")

    @classmethod
    def generate(cls, addresses: tuple[Address, ...] = ()) -> JoinToken:
        """The token of a new swarm."""
        return cls(secrets.token_bytes(SECRET_BYTES), addresses)

    def encode(self) -> str:
        """The token as text. Whoever has it can join: it goes to files with mode 600 and to people, never to a log."""
        packed = b"".join(_pack(address) for address in self.addresses)
        payload = _LENGTH.pack(len(packed)) + self.secret + packed
        return _head(_VERSION) + _to_base32(payload + _CHECKSUM.pack(_checksum(payload)))

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """The token in `text`, in any case, with blanks, line breaks, quotes or invisible characters in or around it.

        Raises TokenError, which says what is wrong and holds nothing of the token.
        """
        payload = _payload(_tidy(text))
        secret = payload[_LENGTH.size : _LENGTH.size + SECRET_BYTES]
        return cls(secret, tuple(_unpack(payload[_LENGTH.size + SECRET_BYTES :])))

    def keys(self) -> SwarmKeys:
        """The swarm's keys. The `info` strings are part of the protocol: another string is another swarm."""
        return SwarmKeys(
            network=_derive(self.secret, b"mesh/1 libp2p private network", 32).hex(),
            membership=_derive(self.secret, b"mesh/1 membership", 32),
            fingerprint=_derive(self.secret, b"mesh/1 lan fingerprint", 8).hex(),
            namespace=_derive(self.secret, b"mesh/1 discovery namespace", 16).hex(),
        )


def _derive(secret: bytes, info: bytes, length: int) -> bytes:
    # No salt (RFC 5869, 3.1): the secret is uniformly random already, and nothing else is known to all members.
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


def _head(version: int) -> str:
    return f"{_NAME}{version}"


def _checksum(payload: bytes) -> int:
    return zlib.crc32(_head(_VERSION).encode() + payload)


def _tidy(text: str) -> str:
    """Without what terminals, chat clients and people put in or around it."""
    if len(text) > MAX_TEXT_CHARS:
        raise TokenError("This is too long for a join token.")
    kept = "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc"))
    return kept.strip("\"'`<>“”‘’").lower()


def _payload(text: str) -> bytes:
    """From tidy text to length, secret and addresses, their checksum tested and cut off."""
    if not text.startswith(_NAME):
        raise TokenError(f'This is not a join token: one begins with "{_head(_VERSION)}".')
    version, digits = text[len(_NAME) :][:1].translate(_ALIKE), text[len(_NAME) + 1 :].translate(_ALIKE)
    if version != str(_VERSION):
        if version in tuple("23456789"):
            raise TokenError(
                f"This join token has version {version}, which a newer mesh made; this one reads version {_VERSION}. "
                "Update this machine's mesh, or look for a typo in the token's fifth character."
            )
        if not version:
            raise TokenError("This join token is cut off: it ends right after its first word.")
        raise TokenError(f'This is not a join token: one begins with "{_head(_VERSION)}".')
    raw, exact = _from_base32(digits)
    if len(raw) < _FIXED_BYTES:
        raise TokenError("This join token is cut off: copy all of it.")
    (length,) = _LENGTH.unpack_from(raw)
    if len(raw) < _FIXED_BYTES + length:
        raise TokenError("This join token is cut off, or one of its first characters is wrong: copy it again.")
    if len(raw) > _FIXED_BYTES + length:
        raise TokenError("This join token has too many characters, or a wrong one among its first: copy it again.")
    payload = raw[: -_CHECKSUM.size]
    if not exact or _CHECKSUM.unpack(raw[-_CHECKSUM.size :]) != (_checksum(payload),):
        raise TokenError("This join token has a typo in it (its checksum does not fit): copy it again.")
    return payload


def _to_base32(data: bytes) -> str:
    bits = len(data) * 8
    padding = -bits % 5
    number = int.from_bytes(data) << padding
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(bits + padding - 5, -1, -5))


def _from_base32(digits: str) -> tuple[bytes, bool]:
    """The bytes, and whether this is how `_to_base32` writes them: no bit is set in what is left over."""
    number = 0
    for position, digit in enumerate(digits, len(_NAME) + 2):
        value = _VALUES.get(digit)
        if value is None:
            raise TokenError(f"This join token has a character in it that no token has, at position {position}.")
        number = number << 5 | value
    size, spare = divmod(len(digits) * 5, 8)
    return (number >> spare).to_bytes(size), spare < 5 and not number & ((1 << spare) - 1)


def _pack(address: Address) -> bytes:
    """A tag and the fields: numbers for the usual forms, the text itself for all others (a relay's, a websocket)."""
    packed = _pack_usual(address)
    # 010.0.0.1 or a long form of an IPv6 address: what would not come back as it was goes as text.
    if packed is not None and next(_unpack(packed)) == address:
        return packed
    text = address.encode()
    return bytes((_TEXT, len(text))) + text


def _pack_usual(address: Address) -> bytes | None:
    match address.split("/"):
        case ["", family, host, "tcp", port] if re.fullmatch("[0-9]{1,5}", port) and int(port) <= 0xFFFF:
            end = _PORT.pack(int(port))
        case _:
            return None
    try:
        if family == "ip4":
            return bytes((_IP4,)) + ipaddress.IPv4Address(host).packed + end
        if family == "ip6":
            return bytes((_IP6,)) + ipaddress.IPv6Address(host).packed + end
    except ValueError:
        return None
    if family in _DNS_TAGS and host:
        return bytes((_DNS_TAGS[family], len(host))) + host.encode() + end
    return None


def _unpack(packed: bytes) -> Iterator[Address]:
    """The addresses, from bytes whose checksum fits but which anyone may have made. Raises TokenError."""
    rest = memoryview(packed)

    def take(size: int) -> bytes:
        nonlocal rest
        if len(rest) < size:
            raise TokenError("This join token's addresses cannot be read.")
        taken, rest = bytes(rest[:size]), rest[size:]
        return taken

    def text() -> str:
        try:
            return take(take(1)[0]).decode("ascii")
        except UnicodeDecodeError:
            raise TokenError("This join token's addresses cannot be read.") from None

    def port() -> int:
        return int.from_bytes(take(_PORT.size))

    while rest:
        tag = take(1)[0]
        if tag == _TEXT:
            yield text()
        elif tag == _IP4:
            yield f"/ip4/{ipaddress.IPv4Address(take(4))}/tcp/{port()}"
        elif tag == _IP6:
            yield f"/ip6/{ipaddress.IPv6Address(take(16))}/tcp/{port()}"
        elif tag in _DNS_NAMES:
            yield f"/{_DNS_NAMES[tag]}/{text()}/tcp/{port()}"
        else:
            raise TokenError("This join token's addresses cannot be read.")
