"""Records and loads: signatures, bounds, order, and what strangers send in their place."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import PeerMisbehaved
from mesh.identity import Identity
from mesh.records import (
    MAX_RECORD_BYTES,
    Hardware,
    Load,
    Offer,
    PeerRecord,
    SignedRecord,
    decode,
    newer,
    open_record,
    sign_record,
)

IDENTITY = Identity(b"1" * 32)
OTHER = Identity(b"2" * 32)
DOMAIN = b"mesh-peer-record-1:"
OFFER = Offer("smol", "sha256:00", "llama-cpp", ("chat", "embeddings"), 2048, 8, ("gpt-4",), 1.5, 98 << 20)
RECORD = PeerRecord(
    peer=IDENTITY.peer,
    name="Küche",
    version="0.1.0",
    protocol=1,
    incarnation=3,
    sequence=7,
    addresses=("/ip4/192.168.1.5/tcp/4001",),
    roles=("serve", "relay"),
    hardware=Hardware("Linux", "AMD Ryzen 7", 16, 32 << 30, ("NVIDIA H100",)),
    offers=(OFFER,),
    api_url="http://192.168.1.5:8080",
    exposes=("rpc",),
)
loads = msgspec.msgpack.Decoder(Load)

words = st.text(st.characters(categories=("L", "N", "P")), max_size=64)
counts = st.integers(0, 2**53 - 1)
numbers = st.floats(0, 1e12)
offers = st.builds(
    Offer,
    words,
    words,
    words,
    st.lists(words, max_size=4).map(tuple),
    counts,
    counts,
    st.lists(words, max_size=4).map(tuple),
    numbers,
    counts,
)
records = st.builds(
    PeerRecord,
    st.just(IDENTITY.peer),
    words.filter(bool),
    words,
    counts,
    counts,
    counts,
    st.lists(st.from_regex(r"\A/[!-~]{1,60}\Z"), max_size=4).map(tuple),
    st.lists(words, max_size=4).map(tuple),
    st.builds(Hardware, words, words, counts, counts, st.lists(words, max_size=3).map(tuple)),
    st.lists(offers, max_size=4).map(tuple),
    st.sampled_from(["", "http://h:1", "https://h/x"]),
    st.lists(words, max_size=3).map(tuple),
)


def as_map(record: PeerRecord = RECORD) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(record)
    return built


def signed(value: object, identity: Identity = IDENTITY) -> SignedRecord:
    """Any value, rightly signed: a member that misbehaves."""
    body = msgspec.msgpack.encode(value)
    return SignedRecord(body, identity.sign(DOMAIN + body))


@settings(max_examples=200)
@given(records)
def test_there_and_back(record: PeerRecord) -> None:
    """200 records."""
    assert open_record(sign_record(IDENTITY, record)) == record


def test_a_usual_record_is_small() -> None:
    assert len(sign_record(IDENTITY, RECORD).body) < 600


def test_each_changed_byte_is_found() -> None:
    good = sign_record(IDENTITY, RECORD)
    for at in range(len(good.body)):
        body = bytearray(good.body)
        body[at] ^= 1
        with pytest.raises(PeerMisbehaved):
            open_record(SignedRecord(bytes(body), good.signature))
    for at in range(len(good.signature)):
        signature = bytearray(good.signature)
        signature[at] ^= 1
        with pytest.raises(PeerMisbehaved, match="signature"):
            open_record(SignedRecord(good.body, bytes(signature)))


def test_each_cut_is_found() -> None:
    good = sign_record(IDENTITY, RECORD)
    for size in range(len(good.body)):
        with pytest.raises(PeerMisbehaved):
            open_record(SignedRecord(good.body[:size], IDENTITY.sign(DOMAIN + good.body[:size])))


def test_nobody_signs_for_another() -> None:
    with pytest.raises(PeerMisbehaved, match="signature"):
        open_record(signed(RECORD, OTHER))
    with pytest.raises(ValueError):
        sign_record(OTHER, RECORD)


def test_a_signature_made_for_another_purpose_is_none() -> None:
    body = msgspec.msgpack.encode(RECORD)
    for prefix in (b"", b"noise-libp2p-static-key:"):
        with pytest.raises(PeerMisbehaved, match="signature"):
            open_record(SignedRecord(body, IDENTITY.sign(prefix + body)))


WIDE = {"addresses": 33, "roles": 33, "exposes": 65, "offers": 257}
BAD: list[tuple[str, Any]] = [
    ("peer", ""),
    ("peer", "x" * 52),
    ("peer", IDENTITY.peer + "1"),
    ("peer", None),
    ("name", ""),
    ("name", "x" * 65),
    ("name", "a\x1b[2J"),
    ("name", "a\u202eb"),
    ("name", "a\nb"),
    ("name", 5),
    ("version", "x" * 65),
    ("protocol", -1),
    ("protocol", 2**53),
    ("incarnation", -1),
    ("incarnation", 2**64 - 1),
    ("sequence", -1),
    ("sequence", 1.5),
    ("sequence", "7"),
    ("addresses", ["1.2.3.4"]),
    ("addresses", ["/ip4/1.2.3.4/tcp/1 "]),
    ("addresses", ["/ip4/1.2.3.4/tcp/1\n"]),
    ("addresses", ["/" + "x" * 255]),
    ("addresses", ["/x"] * WIDE["addresses"]),
    ("roles", ["x"] * WIDE["roles"]),
    ("exposes", ["x"] * WIDE["exposes"]),
    ("offers", [msgspec.to_builtins(OFFER)] * WIDE["offers"]),
    ("offers", [msgspec.to_builtins(OFFER) | {"load_s": math.nan}]),
    ("offers", [msgspec.to_builtins(OFFER) | {"load_s": math.inf}]),
    ("offers", [msgspec.to_builtins(OFFER) | {"load_s": -1.0}]),
    ("offers", [msgspec.to_builtins(OFFER) | {"model": "x" * 201}]),
    ("offers", [msgspec.to_builtins(OFFER) | {"aliases": ["a\x00"]}]),
    ("offers", [msgspec.to_builtins(OFFER) | {"slots": -1}]),
    ("api_url", "javascript:alert(1)"),
    ("api_url", "http://x\n"),
    ("api_url", "http://" + "x" * 255),
    ("hardware", None),
    ("hardware", {}),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=[f"{field}-{at}" for at, (field, _) in enumerate(BAD)])
def test_every_field_has_bounds(field: str, value: object) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        open_record(signed(as_map() | {field: value}))
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("field", as_map(msgspec.structs.replace(RECORD, api_url="", exposes=())).keys())
def test_no_field_may_be_missing(field: str) -> None:
    value = as_map()
    del value[field]
    with pytest.raises(PeerMisbehaved):
        open_record(signed(value))


def test_fields_of_a_later_version_are_ignored() -> None:
    assert open_record(signed(as_map() | {"later": {"x": [1, 2, None]}})) == RECORD


def test_our_own_record_is_held_to_the_same_bounds() -> None:
    with pytest.raises(ValueError, match="Our own record"):
        sign_record(IDENTITY, msgspec.structs.replace(RECORD, name="x" * 65))
    many = tuple(msgspec.structs.replace(OFFER, aliases=("x" * 200,) * 64) for _ in range(200))
    with pytest.raises(ValueError, match="limit"):
        sign_record(IDENTITY, msgspec.structs.replace(RECORD, offers=many))


def test_256_models_fit() -> None:
    many = tuple(msgspec.structs.replace(OFFER, model=f"{'m' * 40}-{at}") for at in range(256))
    sign_record(IDENTITY, msgspec.structs.replace(RECORD, offers=many))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81\xa1x" + b"\x91" * 100_000,
        b"\x81\xa1x\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa4name\xdb\xff\xff\xff\xff",
        b"\x81\xa4name\xa1\xff",
        bytes(MAX_RECORD_BYTES + 1),
    ],
    ids=["empty", "reserved", "deep", "wide array", "wide map", "long text", "no utf-8", "over the limit"],
)
def test_hostile_bodies(body: bytes) -> None:
    with pytest.raises(PeerMisbehaved):
        open_record(SignedRecord(body, IDENTITY.sign(DOMAIN + body)))


@settings(max_examples=1000)
@given(st.binary(max_size=300), st.binary(min_size=64, max_size=64))
def test_random_bytes(body: bytes, signature: bytes) -> None:
    """1,000 bodies with random signatures."""
    with pytest.raises(PeerMisbehaved):
        open_record(SignedRecord(body, signature))


def test_only_a_later_start_or_change_is_newer() -> None:
    def at(incarnation: int, sequence: int) -> PeerRecord:
        return msgspec.structs.replace(RECORD, incarnation=incarnation, sequence=sequence)

    order = [at(1, 0), at(1, 1), at(1, 9), at(2, 0), at(2, 5), at(10, 0)]
    for i, record in enumerate(order):
        assert newer(record, None)
        for j, known in enumerate(order):
            assert newer(record, known) == (i > j)


BAD_LOADS: list[dict[str, Any]] = [
    {"state": "on fire"},
    {"state": "\x1b" * 5000},
    {"model": "a\x07"},
    {"model": "x" * 201},
    {"slots_used": -1},
    {"queued": 1e300},
    {"queued_tokens": 2**63},
    {"prefill_tokens_per_s": math.nan},
    {"decode_tokens_per_s": math.inf},
    {"decode_batch": -0.1},
    {"load_s": 1e13},
    {"error_rate": 1.01},
    {"error_rate": math.nan},
]


@pytest.mark.parametrize("change", BAD_LOADS)
def test_a_load_has_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        decode(loads, msgspec.msgpack.encode({"model": "m", "state": "ready"} | change))
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["\x1b", ["\x1b"], {"a": ("b", "\x1b")}, {"\x1b": 1}, {1: {"a": ["\u202e"]}}])
def test_texts_are_found_wherever_they_are(value: object) -> None:
    with pytest.raises(PeerMisbehaved, match="cannot be printed"):
        decode(msgspec.msgpack.Decoder(), msgspec.msgpack.encode(value))


def test_an_idle_load_is_small() -> None:
    load = Load("smollm2-135m", "ready", slots=8)
    body = msgspec.msgpack.encode(load)
    assert decode(loads, body) == load
    assert len(body) < 50
