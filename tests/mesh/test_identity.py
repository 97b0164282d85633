"""Keys and peer ids, held to the RFC's and the specification's vectors and to py-libp2p itself."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from mesh import base58
from mesh.identity import Identity, IdentityError, peer_id, public_bytes, verify

seeds = st.binary(min_size=32, max_size=32)


def test_rfc_8032_vector() -> None:
    """Section 7.1, test 2."""
    identity = Identity(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert public_bytes(identity.peer).hex() == public
    assert identity.sign(b"\x72").hex() == signature
    assert verify(identity.peer, b"\x72", bytes.fromhex(signature))


def test_peer_id_specification_vector() -> None:
    """The key of the specification's test vectors; its multihash is the protobuf key behind 00 24."""
    identity = Identity(bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"))
    protobuf = "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    assert base58.decode(identity.peer).hex() == "0024" + protobuf


@settings(max_examples=100)
@given(seeds)
def test_libp2p_makes_the_same_id_of_the_same_key(seed: bytes) -> None:
    """100 keys."""
    key = create_new_key_pair(seed)
    identity = Identity(seed)
    assert identity.peer == ID.from_pubkey(key.public_key).to_base58()
    assert identity.private_bytes == seed
    assert key.public_key.verify(b"data", identity.sign(b"data"))


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_base58_both_ways(data: bytes) -> None:
    """300 byte strings, leading zeros among them."""
    assert base58.decode(base58.encode(data)) == data


@pytest.mark.parametrize(("data", "text"), [(b"", ""), (b"\0\0", "11"), (b"Hello World!", "2NEpo7TZRRrLZSi2U")])
def test_base58_vectors(data: bytes, text: str) -> None:
    assert base58.encode(data) == text


@pytest.mark.parametrize("text", ["0", "O", "I", "l", " 1", "1\n", "é", "2" * 129])
def test_base58_refuses_what_it_never_writes(text: str) -> None:
    with pytest.raises(ValueError):
        base58.decode(text)


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=60), st.binary(min_size=38, max_size=38).map(base58.encode)), st.binary(max_size=70))
def test_a_stranger_s_id_and_signature_never_raise(peer: str, signature: bytes) -> None:
    """500 pairs: any text, and ids that are well-formed but for their prefix or key."""
    assert verify(peer, b"data", signature) is False


def test_a_signature_is_good_for_one_peer_and_one_text() -> None:
    identity, other = Identity.generate(), Identity.generate()
    signature = identity.sign(b"data")
    assert verify(identity.peer, b"data", signature)
    assert not verify(other.peer, b"data", signature)
    assert not verify(identity.peer, b"date", signature)
    assert not verify(identity.peer + "1", b"data", signature)
    assert not verify(identity.peer, b"data", signature[:-1])
    for at in range(len(signature)):
        changed = bytearray(signature)
        changed[at] ^= 1
        assert not verify(identity.peer, b"data", bytes(changed)), f"byte {at}"


def test_ids_are_of_ed25519_keys_alone() -> None:
    secp256k1 = base58.encode(bytes.fromhex("002508021221") + bytes(33))
    another_type = base58.encode(bytes.fromhex("002408021220") + bytes(32))
    another_hash = base58.encode(bytes.fromhex("002308011220") + bytes(32))
    rsa = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
    assert len(another_type) == len(another_hash) == 52
    for text in (secp256k1, another_type, another_hash, rsa, "", "12D3KooW"):
        with pytest.raises(ValueError):
            public_bytes(text)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_keys_of_another_size(size: int) -> None:
    with pytest.raises(ValueError):
        Identity(bytes(size))
    with pytest.raises(ValueError):
        peer_id(bytes(size))


def test_the_identity_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data" / "node.key"
    first = Identity.load_or_create(path)
    again = Identity.load_or_create(path)
    assert again.peer == first.peer
    assert again.private_bytes == first.private_bytes
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path], "no draft is left"


def test_a_generous_umask_opens_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "data" / "node.key"
        Identity.load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o666])
def test_a_key_that_others_could_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match=r"chmod 600"):
        Identity.load_or_create(path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, *, exists: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    if exists:
        Identity.load_or_create(folder / "node.key")
    folder.chmod(0o770)
    with pytest.raises(IdentityError, match=r"chmod go-w"):
        Identity.load_or_create(folder / "node.key")


def _pem_of_another_kind() -> bytes:
    return X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    "contents",
    [b"", b"\xff" * 32, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", _pem_of_another_kind()],
    ids=["empty", "raw", "damaged", "x25519"],
)
def test_a_key_that_cannot_be_read_is_kept(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(contents)
    path.chmod(0o600)
    with pytest.raises(IdentityError):
        Identity.load_or_create(path)
    assert path.read_bytes() == contents


def test_a_cut_key_file_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    Identity.load_or_create(path)
    whole = path.read_bytes()
    body = whole.splitlines()[1].decode()
    for size in range(len(whole) - 1):  # without its last line break it is whole
        path.write_bytes(whole[:size])
        with pytest.raises(IdentityError) as caught:
            Identity.load_or_create(path)
        assert body[:8] not in str(caught.value)
        assert caught.value.__cause__ is None


def test_the_secret_is_in_no_repr_and_no_pickle() -> None:
    identity = Identity(bytes(range(32)))
    for text in (repr(identity), str(identity), f"{identity}"):
        assert text == f"Identity(peer={identity.peer!r})"
    with pytest.raises(TypeError):
        pickle.dumps(identity)
