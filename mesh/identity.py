"""Who a node is: an ed25519 key (RFC 8032), and the peer id that is made from it.

The id follows libp2p's peer-id specification (specs/peer-ids), so that ours equals the one that py-libp2p shows for the
same key, and is computed here so that the sans-IO half of this room needs no libp2p:

    protobuf   08 01            field 1, key type: 1 is Ed25519
               12 20 <32 bytes> field 2, the public key
    multihash  00 24 <36 bytes> "identity" hash, its length: a key this short is its own hash
    text       base58btc, no multibase prefix: 12D3KooW…

So the key is inside the id: whoever knows a peer's id can check its signatures. The same key signs libp2p's Noise
handshake, so whoever signs something here puts a prefix of its own before it (`mesh/records.py`): no signature made
for one purpose is then good for another.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh import base58
from mesh.secretfile import SecretFileError, read_secret, write_secret
from mesh.transport import PeerId

KEY_BYTES = 32
SIGNATURE_BYTES = 64
PEER_ID_CHARS = 52
"""All ids of this kind have the same length: their first bytes are constant."""

_ID_PREFIX = bytes.fromhex("002408011220")


class IdentityError(Exception):
    """The key file cannot be used: one sentence for a person, never the key."""


class Identity:
    """A private key and the peer id it gives. Its repr shows the id alone."""

    __slots__ = ("_key", "_peer")

    def __init__(self, private_bytes: bytes) -> None:
        """From the 32 bytes of the private key, RFC 8032's seed. Raises ValueError on any other number of bytes."""
        if len(private_bytes) != KEY_BYTES:
            raise ValueError(f"an ed25519 key has {KEY_BYTES} bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(private_bytes)
        self._peer = peer_id(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Identity:
        """A new one, from the system's random numbers."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """The key in `path` (PKCS#8 in PEM, mode 600); the first call makes it, and its folder (mode 700).

        A file that is there and cannot be read is never replaced: the node's name in the swarm would be lost with it.
        Nobody but the node that holds the data folder's lock calls this. Raises IdentityError.
        """
        try:
            stored = read_secret(path)
            if stored is None:
                identity = cls.generate()
                write_secret(path, identity._pem())
                return identity
        except SecretFileError as error:
            raise IdentityError(str(error)) from error
        try:
            key = serialization.load_pem_private_key(stored, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # No chaining: what the parser says of a damaged key could hold parts of it.
            raise IdentityError(
                f"{path} holds no key that can be read. Restore it, or move it away to start as a new node."
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"{path} holds a key of another kind than ed25519.")
        return cls(key.private_bytes_raw())

    @property
    def peer(self) -> PeerId:
        """The id by which others know this node."""
        return self._peer

    @property
    def private_bytes(self) -> bytes:
        """The 32 bytes of the private key, for a transport to make its own key of. Never log or send them."""
        return self._key.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """64 bytes that `verify` accepts for this peer and exactly this data."""
        return self._key.sign(data)

    def _pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def __repr__(self) -> str:
        return f"Identity(peer={self._peer!r})"

    def __reduce__(self) -> str:
        raise TypeError("an Identity is not pickled: it is a secret")


def peer_id(public_bytes: bytes) -> PeerId:
    """The id of the peer with this ed25519 public key (32 bytes)."""
    if len(public_bytes) != KEY_BYTES:
        raise ValueError(f"an ed25519 key has {KEY_BYTES} bytes")
    return base58.encode(_ID_PREFIX + public_bytes)


def public_bytes(peer: PeerId) -> bytes:
    """The ed25519 public key inside an id. Raises ValueError on anything that is not such an id."""
    if len(peer) != PEER_ID_CHARS:
        raise ValueError("no peer id of an ed25519 key")
    raw = base58.decode(peer)
    if len(raw) != len(_ID_PREFIX) + KEY_BYTES or not raw.startswith(_ID_PREFIX):
        raise ValueError("no peer id of an ed25519 key")
    return raw[len(_ID_PREFIX) :]


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether `peer` signed `data`. False too when `peer` is no id at all: both may come from a stranger."""
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes(peer)).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
