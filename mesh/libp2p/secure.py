"""From a bare connection to an authenticated, encrypted one: the network key (libp2p's pnet), then Noise XX.

    dialler                                   listener
    nonce, preamble, /noise        <->        nonce, preamble        under the network key from here on
                                              /noise
    Noise XX, three messages, which prove both identities
    preamble, /yamux/1.0.0                    preamble, /yamux/1.0.0 | na

The listener's first line tells the dialler whether both hold the same network key: under another key it decrypts to
noise. So a wrong key is known after one round trip; py-libp2p takes 31 s and more (facts, trap 10). Noise is the only
security that is offered or taken (trap 6). A listener that does not want this peer says `na` in the last line, when it
knows who it is.

Everything is as py-libp2p speaks it: its hosts and ours connect both ways (tests/mesh/test_libp2p.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import trio
from Crypto.Cipher import Salsa20
from cryptography.exceptions import InvalidTag
from libp2p.abc import IRawConnection
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from noise.exceptions import NoiseInvalidMessage

from mesh.errors import NotAMember, PeerError, PeerGone, PeerMisbehaved
from mesh.libp2p.link import READ_BYTES
from mesh.libp2p.negotiation import MULTISTREAM, PREAMBLE, REFUSED, line, read_line
from mesh.transport import PeerId

NOISE = str(PROTOCOL_ID)
YAMUX = "/yamux/1.0.0"
NONCE_BYTES = 8
MAX_SEALED_BYTES = 65_535
MAX_PLAIN_BYTES = MAX_SEALED_BYTES - 16

_OTHER_KEY = "The other side does not hold this swarm's network key: it belongs to another swarm, or is no node at all."


class Wire:
    """Bytes both ways under the network key, and what Noise's handshake needs of a connection."""

    is_initiator = True

    def __init__(self, stream: trio.abc.Stream, network_key: bytes) -> None:
        self.stream = stream
        self._key = network_key
        self._nonce = os.urandom(NONCE_BYTES)
        self._out = Salsa20.new(key=network_key, nonce=self._nonce)
        self._in: Any = None
        self._started = False
        self.buffer = bytearray()
        """Received, decrypted, not yet read."""

    def seal(self, data: bytes) -> bytes:
        """What to send for `data`."""
        sealed: bytes = self._out.encrypt(data)
        if self._started:
            return sealed
        self._started = True
        return self._nonce + sealed

    def unseal(self, data: bytes | bytearray) -> bytes:
        """What was meant by received `data`."""
        plain: bytes = self._in.decrypt(data)
        return plain

    async def write(self, data: bytes) -> None:
        """Send all of it."""
        await self.stream.send_all(self.seal(data))

    async def read(self, n: int | None = None) -> bytes:
        """Exactly `n` bytes (all there is for None). Raises PeerGone at the end."""
        wanted = 1 if n is None else n
        while len(self.buffer) < wanted:
            await self.fill()
        count = len(self.buffer) if n is None else n
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def fill(self) -> None:
        """Wait for some more bytes."""
        data = await self.stream.receive_some(READ_BYTES)
        if not data:
            raise PeerGone("The other side closed the connection during the handshake.")
        if self._in is None:
            nonce = bytearray(data)
            while len(nonce) < NONCE_BYTES + len(PREAMBLE):
                data = await self.stream.receive_some(READ_BYTES)
                if not data:
                    raise PeerGone("The other side closed the connection during the handshake.")
                nonce += data
            self._in = Salsa20.new(key=self._key, nonce=bytes(nonce[:NONCE_BYTES]))
            data = bytes(nonce[NONCE_BYTES:])
            plain = self.unseal(data)
            if not plain.startswith(PREAMBLE):
                raise NotAMember(_OTHER_KEY)
            self.buffer += plain
            return
        self.buffer += self.unseal(data)

    async def line(self) -> str:
        """The next multistream-select line."""
        while (found := read_line(self.buffer)) is None:
            await self.fill()
        text, count = found
        del self.buffer[:count]
        return text

    async def close(self) -> None:
        """Close the stream beneath."""
        await self.stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Noise asks for it; nobody uses it here."""
        return None


class Channel:
    """Noise messages over a wire, once the handshake is done."""

    def __init__(self, wire: Wire, noise: Any) -> None:
        self._wire = wire
        # What noise_state.encrypt and .decrypt call in the end, without their checks a message.
        self._encrypt: Callable[[Any, bytes], bytes] = noise.noise_protocol.cipher_state_encrypt.encrypt_with_ad
        self._decrypt: Callable[[Any, bytes], bytes] = noise.noise_protocol.cipher_state_decrypt.decrypt_with_ad
        self._sealed = bytearray(wire.buffer)
        wire.buffer.clear()
        self.stream = wire.stream

    def seal(self, data: bytes) -> bytes:
        """What to send for `data`: as few messages as it fits in."""
        parts: list[bytes] = []
        for start in range(0, len(data), MAX_PLAIN_BYTES):
            sealed = self._encrypt(None, data[start : start + MAX_PLAIN_BYTES])
            parts += (len(sealed).to_bytes(2), sealed)
        return self._wire.seal(b"".join(parts))

    def unseal(self, data: bytes | bytearray) -> Iterator[bytes]:
        """The contents of all messages that `data` completes. Raises PeerMisbehaved for a forged one."""
        self._sealed += self._wire.unseal(data)
        return self.messages()

    def messages(self) -> Iterator[bytes]:
        """The contents of the messages received and not yet read."""
        sealed, position = self._sealed, 0
        try:
            while len(sealed) - position >= 2:
                end = position + 2 + int.from_bytes(sealed[position : position + 2])
                if len(sealed) < end:
                    break
                plain = self._decrypt(None, bytes(sealed[position + 2 : end]))
                position = end
                yield plain
        except (InvalidTag, NoiseInvalidMessage) as error:
            raise PeerMisbehaved("The peer sent a message that fails its authentication.") from error
        finally:
            del sealed[:position]


class Secured:
    """A connection after its handshake."""

    def __init__(self, peer: PeerId, channel: Channel, early: bytes) -> None:
        self.peer = peer
        self.channel = channel
        self.early = early
        """Bytes for the muxer that came with the handshake's last line."""


class Security:
    """This node's side of all handshakes."""

    def __init__(self, private_key: bytes, network_key: str) -> None:
        key = Ed25519PrivateKey.from_bytes(private_key)
        self._network_key = bytes.fromhex(network_key)
        if len(self._network_key) != 32:
            raise ValueError("a network key has 64 hex characters")
        pair = KeyPair(key, key.get_public_key())
        self._noise = Transport(pair, create_new_key_pair().private_key)
        self.peer: PeerId = ID.from_pubkey(pair.public_key).to_base58()

    async def connect(self, stream: trio.abc.Stream, expect: PeerId | None) -> Secured:
        """The dialler's side. Raises NotAMember, PeerGone, and PeerMisbehaved for another peer than `expect`."""
        wire = Wire(stream, self._network_key)
        with _foreign_errors():
            await wire.write(PREAMBLE + line(NOISE))
            await _expect(wire, MULTISTREAM)
            if await wire.line() != NOISE:
                raise PeerMisbehaved("The other side does not offer Noise.")
            session = await self._noise.secure_outbound(cast(IRawConnection, wire), cast(ID, None))
            peer = session.get_remote_peer().to_base58()
            if peer == self.peer:
                raise PeerGone("This node itself answers there.")
            if expect is not None and peer != expect:
                raise PeerMisbehaved(f"Another peer answers there: {peer} instead of {expect}.")
            channel, buffer = Channel(wire, cast(Any, session).conn.noise_state), bytearray()
            await stream.send_all(channel.seal(PREAMBLE + line(YAMUX)))
            if await _channel_line(channel, buffer) != MULTISTREAM:
                raise PeerMisbehaved("The peer does not speak multistream-select.")
            if await _channel_line(channel, buffer) != YAMUX:
                raise NotAMember(f"{peer} does not let this node in.")
        return Secured(peer, channel, bytes(buffer))

    async def accept(self, stream: trio.abc.Stream, gate: Callable[[PeerId], bool]) -> Secured:
        """The listener's side; `gate` says whether it wants that peer. Raises NotAMember, PeerGone, PeerMisbehaved."""
        wire = Wire(stream, self._network_key)
        with _foreign_errors():
            await wire.write(PREAMBLE)
            await _expect(wire, MULTISTREAM)
            while (proposed := await wire.line()) != NOISE:
                await wire.write(line(REFUSED))
                if proposed in ("", REFUSED):
                    raise PeerMisbehaved("The peer does not offer Noise.")
            await wire.write(line(NOISE))
            session = await self._noise.secure_inbound(cast(IRawConnection, wire))
            peer = session.get_remote_peer().to_base58()
            channel, buffer = Channel(wire, cast(Any, session).conn.noise_state), bytearray()
            wanted = gate(peer)
            await stream.send_all(channel.seal(PREAMBLE))
            if await _channel_line(channel, buffer) != MULTISTREAM:
                raise PeerMisbehaved("The peer does not speak multistream-select.")
            while (proposed := await _channel_line(channel, buffer)) != YAMUX or not wanted:
                await stream.send_all(channel.seal(line(REFUSED)))
                if not wanted or proposed in ("", REFUSED):
                    raise NotAMember(f"{peer} was not let in.")
            await stream.send_all(channel.seal(line(YAMUX)))
        return Secured(peer, channel, bytes(buffer))


async def _expect(wire: Wire, text: str) -> None:
    if await wire.line() != text:
        raise PeerMisbehaved("The peer does not speak multistream-select.")


async def _channel_line(channel: Channel, buffer: bytearray) -> str:
    for plain in channel.messages():
        buffer += plain
    while (found := read_line(buffer)) is None:
        data = await channel.stream.receive_some(READ_BYTES)
        if not data:
            raise PeerGone("The other side closed the connection during the handshake.")
        for plain in channel.unseal(data):
            buffer += plain
    text, count = found
    del buffer[:count]
    return text


@contextmanager
def _foreign_errors() -> Iterator[None]:
    """Errors of sockets, of Noise and of py-libp2p, as ours."""
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise PeerGone("The connection broke during the handshake.") from error
    except PeerError:
        raise
    except Exception as error:
        # Noise's parsers meet a stranger's bytes: py-libp2p, protobuf and cryptography raise what they like.
        raise PeerMisbehaved("The peer broke the handshake.") from error
