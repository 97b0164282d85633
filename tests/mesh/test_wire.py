"""Messages and frames: any split, any garbage, and no more memory than announced."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import PeerMisbehaved
from mesh.wire import HEADER, MAX_FRAME_BYTES, MAX_KIND, MAX_MESSAGE_BYTES, MORE, Decoder, Message, encode

messages = st.lists(st.tuples(st.integers(0, MAX_KIND), st.binary(max_size=200)), max_size=8)


@settings(max_examples=300)
@given(messages, st.data())
def test_any_split_gives_the_same_messages(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """300 streams, each cut at up to ten places."""
    stream = b"".join(encode(*message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = Decoder()
    got: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == [Message(*message) for message in sent]
    assert decoder.at_boundary
    assert decoder.pending_bytes == 0


def test_each_byte_of_a_stream_is_a_place_to_cut() -> None:
    parts = [encode(1, b"abc"), encode(2), encode(3, bytes(20))]
    stream = b"".join(parts)
    ends = {0, len(parts[0]), len(parts[0] + parts[1]), len(stream)}
    for size in range(len(stream) + 1):
        decoder = Decoder()
        got = decoder.feed(stream[:size])
        assert decoder.at_boundary == (size in ends)
        assert decoder.pending_bytes == size - max(end for end in ends if end <= size)
        got += decoder.feed(stream[size:])
        assert got == [(1, b"abc"), (2, b""), (3, bytes(20))]


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("frames", [1, 3])
def test_large_bodies_travel_in_pieces(frames: int, extra: int) -> None:
    body = bytes(range(256)) * (frames * MAX_FRAME_BYTES // 256) + b"x"
    body = body[: frames * MAX_FRAME_BYTES + extra]
    stream = encode(5, body) + encode(6, b"next")
    assert len(stream) == len(body) + 4 + HEADER.size * (-(-len(body) // MAX_FRAME_BYTES) + 1)
    decoder = Decoder()
    got = []
    for at in range(0, len(stream), 65_537):
        got += decoder.feed(stream[at : at + 65_537])
    assert got == [(5, body), (6, b"next")]


def test_the_end_of_a_piece_is_no_boundary() -> None:
    stream = encode(5, bytes(MAX_FRAME_BYTES + 1))
    decoder = Decoder()
    assert decoder.feed(stream[: HEADER.size + MAX_FRAME_BYTES]) == []
    assert not decoder.at_boundary
    assert decoder.pending_bytes == MAX_FRAME_BYTES


def test_our_own_mistakes_are_value_errors() -> None:
    for kind in (-1, MORE, 256):
        with pytest.raises(ValueError):
            encode(kind)
    with pytest.raises(ValueError):
        encode(1, bytes(MAX_MESSAGE_BYTES + 1))


FULL = HEADER.pack(MAX_FRAME_BYTES, 1 | MORE) + bytes(MAX_FRAME_BYTES)


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (HEADER.pack(MAX_FRAME_BYTES + 1, 1), "1048577"),
        (HEADER.pack(0xFFFFFFFF, 1), "4294967295"),
        (HEADER.pack(0xFFFFFFFF, 1 | MORE), "4294967295"),
        (HEADER.pack(0, 9), "unknown kind 9"),
        (HEADER.pack(0, 9 | MORE), "unknown kind 9"),
        (HEADER.pack(0, 1 | MORE), "in pieces"),
        (HEADER.pack(MAX_FRAME_BYTES - 1, 1 | MORE), "in pieces"),
        (FULL + HEADER.pack(0, 1), "in pieces"),
        (FULL + HEADER.pack(1, 2), "in the middle"),
        (FULL * 3 + HEADER.pack(2, 1), "more than"),
        (FULL * 4, "more than"),
        (b"GET / HTTP/1.1\r\n\r\n", "1195725856"),
        (b"\x16\x03\x01\x02\x00", "announces"),
    ],
)
def test_what_no_peer_sends_is_refused_on_its_header(stream: bytes, says: str) -> None:
    decoder = Decoder(3 * MAX_FRAME_BYTES + 1, kinds=(1, 2))
    with pytest.raises(PeerMisbehaved, match=says):
        decoder.feed(stream)
    assert decoder.pending_bytes == 0
    with pytest.raises(PeerMisbehaved, match=says):
        decoder.feed(encode(1))


def test_any_kind_will_do_without_a_list() -> None:
    assert Decoder().feed(encode(MAX_KIND)) == [(MAX_KIND, b"")]


@settings(max_examples=1000)
@given(st.lists(st.binary(max_size=64), max_size=10))
def test_random_bytes(chunks: list[bytes]) -> None:
    """1,000 streams of random bytes: messages or PeerMisbehaved, and never more held than was fed."""
    decoder = Decoder()
    fed = 0
    try:
        for chunk in chunks:
            fed += len(chunk)
            decoder.feed(chunk)
            assert decoder.pending_bytes <= fed
    except PeerMisbehaved:
        assert decoder.pending_bytes == 0


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=60), st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_gives_the_message_as_sent(body: bytes, at: int, change: int) -> None:
    """300 frames with one byte changed: another message, none yet, or PeerMisbehaved."""
    stream = bytearray(encode(1, body))
    stream[at % len(stream)] ^= change
    try:
        assert Decoder(kinds=(1,)).feed(bytes(stream)) != [(1, body)]
    except PeerMisbehaved:
        return


def test_an_announced_size_takes_no_memory() -> None:
    """A thousand strangers who announce 1 MiB each and send ten bytes of it."""
    tracemalloc.start()
    try:
        decoders = [Decoder() for _ in range(1000)]
        for decoder in decoders:
            decoder.feed(HEADER.pack(MAX_FRAME_BYTES, 1) + bytes(10))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_the_longest_message_is_held_twice_at_most() -> None:
    size = 16 << 20
    stream = memoryview(encode(1, bytes(size)))
    decoder = Decoder(size)
    tracemalloc.start()
    try:
        got = []
        for at in range(0, len(stream), 1 << 16):
            got += decoder.feed(bytes(stream[at : at + (1 << 16)]))
        assert len(got[0].body) == size
        assert tracemalloc.get_traced_memory()[1] < 2 * size + (4 << 20)
    finally:
        tracemalloc.stop()
