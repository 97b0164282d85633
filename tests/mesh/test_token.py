"""The join token: every way to mistype, cut or dress it up, and the keys that come from it."""

from __future__ import annotations

import hmac
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TokenError
from mesh.token import MAX_ADDRESSES, MAX_TEXT_CHARS, JoinToken, _to_base32

SECRET = bytes(range(32))
PLAIN = JoinToken(SECRET, ("/ip4/192.168.1.5/tcp/4001",))
ADDRESSES = (
    "/ip4/192.168.1.5/tcp/4001",
    "/ip6/2001:db8::1/tcp/65535",
    "/dns4/node.example.org/tcp/443",
    "/dns/a/tcp/0",
    "/dns6/b/tcp/1",
    "/ip4/192.168.1.5/tcp/04001",
    "/ip6/2001:DB8:0::1/tcp/1",
    "/ip4/999.1.1.1/tcp/1",
    "/ip4/1.2.3.4/tcp/4001/ws",
    "/ip4/1.2.3.4/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit",
)
# What is read as the same character.
ALIKE = {"0": "oO", "1": "iIlL"}

addresses = st.lists(
    st.one_of(
        st.builds("/ip4/{}/tcp/{}".format, st.ip_addresses(v=4), st.integers(0, 65535)),
        st.builds("/ip6/{}/tcp/{}".format, st.ip_addresses(v=6), st.integers(0, 65535)),
        st.builds("/dns4/{}/tcp/{}".format, st.from_regex(r"\A[a-z0-9.-]{1,40}\Z"), st.integers(0, 99999)),
        st.from_regex(r"\A/[!-~]{1,50}\Z"),
    ),
    max_size=12,
).map(tuple)


def test_golden() -> None:
    """Pinned: another string, or other keys, would be another protocol and split every swarm."""
    text = "mesh1003g00820c20a1g7104gm2rc1m70y40h289h858p2wc1j6gv3gehw7r1r2m0218fm7x6zchy"
    assert PLAIN.encode() == text
    assert JoinToken.parse(text) == PLAIN
    keys = PLAIN.keys()
    assert keys.network == "c64056da1229e583783bf4b1635139ed0e5967b9d9024f40780fa43ad0308b88"
    assert keys.membership.hex() == "fab9885c847affd54aff541702ae4e8d27b58a46a322e74f5ed90caeb844e676"
    assert keys.fingerprint == "ca53ecf732832115"
    assert keys.namespace == "12330c4a93e8871d9572f89e74af0e80"


def test_keys_are_rfc_5869() -> None:
    """Section 2 by hand: extract with a salt of zeros, expand one block."""
    extracted = hmac.digest(bytes(32), SECRET, "sha256")
    assert PLAIN.keys().membership == hmac.digest(extracted, b"mesh/1 membership" + b"\x01", "sha256")


@settings(max_examples=500)
@given(st.binary(min_size=32, max_size=32), addresses)
def test_there_and_back(secret: bytes, given_addresses: tuple[str, ...]) -> None:
    """500 tokens; addresses in the usual forms and in any other come back as they were."""
    token = JoinToken(secret, given_addresses)
    text = token.encode()
    assert JoinToken.parse(text) == token
    assert text.isascii()
    assert text.isalnum()


@pytest.mark.parametrize("address", ADDRESSES)
def test_each_form_of_address_comes_back(address: str) -> None:
    assert JoinToken.parse(JoinToken(SECRET, (address,)).encode()).addresses == (address,)


def test_it_is_short() -> None:
    assert len(JoinToken(SECRET).encode()) == 66
    assert len(PLAIN.encode()) == 77


@pytest.mark.parametrize(
    "dressed",
    [
        str.upper,
        str.capitalize,
        lambda text: f"  {text}\r\n",
        lambda text: "\n".join(text[at : at + 20] for at in range(0, len(text), 20)),
        lambda text: " \t".join(text),
        lambda text: f"`{text}`",
        lambda text: f"<{text}>",
        lambda text: f"“{text}”",
        lambda text: f"\ufeff{text[:9]}\u200b{text[9:]}\u00a0",
        lambda text: text[:5] + text[5:].replace("0", "O").replace("1", "l"),
        lambda text: text.replace("1", "I"),
    ],
)
def test_it_survives_being_pasted(dressed: object) -> None:
    assert callable(dressed)
    assert JoinToken.parse(dressed(PLAIN.encode())) == PLAIN


def test_one_wrong_character_at_each_position_is_found() -> None:
    """77 positions by all letters, digits and some others: 5,000 tokens, none accepted, none shown in the error."""
    text = PLAIN.encode()
    tried = 0
    for at, right in enumerate(text):
        for wrong in "abcdefghijklmnopqrstuvwxyz0123456789-_=+/.,éß€ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            if wrong.lower() == right or wrong in ALIKE.get(right, ""):
                continue
            tried += 1
            with pytest.raises(TokenError) as caught:
                JoinToken.parse(text[:at] + wrong + text[at + 1 :])
            _shows_nothing(caught.value, text)
    assert tried > 5000


def test_each_cut_is_called_a_cut() -> None:
    text = JoinToken(SECRET, ADDRESSES[:3]).encode()
    for size in range(len(text)):
        with pytest.raises(TokenError, match="not a join token" if size < 4 else "cut off"):
            JoinToken.parse(text[:size])
        with pytest.raises(TokenError):
            JoinToken.parse(text[size + 1 :])


@settings(max_examples=1000)
@given(st.integers(5, 72), st.lists(st.integers(0, 31), min_size=5, max_size=5))
def test_up_to_five_neighbouring_characters_are_found(at: int, values: list[int]) -> None:
    """1,000 bursts. The CRC finds all of them, not nearly all."""
    text = PLAIN.encode()
    changed = text[:at] + "".join("0123456789abcdefghjkmnpqrstvwxyz"[value] for value in values) + text[at + 5 :]
    if changed != text:
        with pytest.raises(TokenError):
            JoinToken.parse(changed)


def test_swapped_neighbours_and_doubled_characters_are_found() -> None:
    text = PLAIN.encode()
    for at in range(len(text)):
        swapped = text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
        for wrong in {swapped, text[: at + 1] + text[at:], text[:at] + text[at + 1 :]} - {text}:
            with pytest.raises(TokenError):
                JoinToken.parse(wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a join token"),
        ("hello", "not a join token"),
        ("https://example.org/mesh1abc", "not a join token"),
        ("meshes are nice", "not a join token"),
        ("mesh0" + "0" * 72, "not a join token"),
        ("mesh2" + "0" * 72, "newer mesh"),
        ("mesh9", "newer mesh"),
        ("mesh", "cut off"),
        ("mesh1", "cut off"),
        ("mesh1" + "u" * 72, "position 6"),
        (PLAIN.encode() + "0", "typo|too many"),
        (PLAIN.encode() * 2, "too many"),
        ("mesh1" + "0" * MAX_TEXT_CHARS, "too long"),
        (" " * 10_000_000, "too long"),
    ],
)
def test_it_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(TokenError, match=says):
        JoinToken.parse(text)


@settings(max_examples=1000)
@given(st.one_of(st.text(max_size=120), st.text(max_size=120).map("mesh1".__add__)))
def test_any_text_gives_a_token_error(text: str) -> None:
    """1,000 texts of any characters, half of them with the right beginning."""
    with pytest.raises(TokenError):
        JoinToken.parse(text)


@settings(max_examples=1000)
@given(st.binary(max_size=200))
def test_hostile_addresses_behind_a_right_checksum(packed: bytes) -> None:
    """1,000 tokens that fit in all but their addresses: whoever reads one gets addresses or a TokenError."""
    payload = struct.pack("!H", len(packed)) + SECRET + packed
    text = "mesh1" + _to_base32(payload + struct.pack("<I", zlib.crc32(b"mesh1" + payload)))
    try:
        token = JoinToken.parse(text)
    except TokenError as error:
        _shows_nothing(error, text)
    else:
        assert all(address.isprintable() and address.startswith("/") for address in token.addresses)


@pytest.mark.parametrize(
    ("secret", "given_addresses"),
    [
        (b"short", ()),
        (SECRET, ("/ip4/1.2.3.4/tcp/1",) * (MAX_ADDRESSES + 1)),
        (SECRET, ("/" + "a" * 254,) * 4),
        (SECRET, ("1.2.3.4:4001",)),
        (SECRET, ("/dns4/" + "a" * 300,)),
        (SECRET, ("/dns4/a b/tcp/1",)),
        (SECRET, ("/dns4/a\n",)),
        (SECRET, ("/dns4/é/tcp/1",)),
    ],
)
def test_bounds(secret: bytes, given_addresses: tuple[str, ...]) -> None:
    with pytest.raises(TokenError):
        JoinToken(secret, given_addresses)


def test_the_longest_token_is_read() -> None:
    token = JoinToken(SECRET, ("/" + "a" * 200,) * 5)
    assert JoinToken.parse(token.encode()) == token


def test_generated_secrets_differ() -> None:
    assert JoinToken.generate().secret != JoinToken.generate().secret


def test_keys_come_from_the_secret_alone_and_differ() -> None:
    keys = PLAIN.keys()
    assert keys == JoinToken(SECRET).keys()
    other = JoinToken(SECRET[:-1] + b"\0").keys()
    values = [keys.network, keys.membership.hex(), keys.fingerprint, keys.namespace]
    others = [other.network, other.membership.hex(), other.fingerprint, other.namespace]
    assert not set(values) & set(others)
    for value in values:
        assert not any(value[:16] in another for another in [*values, SECRET.hex()] if another is not value)


def test_the_secret_is_in_no_repr() -> None:
    for text in (repr(PLAIN), str(PLAIN), f"{PLAIN}"):
        assert text == f"JoinToken(addresses={PLAIN.addresses!r})"
    keys = PLAIN.keys()
    assert keys.network not in repr(keys)
    assert repr(keys.membership) not in repr(keys)
    assert keys.membership.hex() not in repr(keys)


def _shows_nothing(error: TokenError, text: str) -> None:
    said = str(error)
    assert not any(text[at : at + 8] in said for at in range(5, len(text) - 8))
    assert error.__cause__ is None
