"""The frames between a node and a worker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.frames import HEADER, MAX_BODY_BYTES, Decoder, Frame, FrameError, Kind, encode

frames = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=200)), max_size=8)


@given(frames, st.data())
def test_any_split_gives_the_same_frames(sent: list[tuple[Kind, int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode(*frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = Decoder()
    got: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == [Frame(*frame) for frame in sent]
    assert decoder.pending_bytes == 0


def test_an_incomplete_frame_is_kept() -> None:
    decoder = Decoder()
    assert decoder.feed(encode(Kind.CHUNK, 1, b"abc")[:-1]) == []
    assert decoder.pending_bytes == HEADER.size + 2


@pytest.mark.parametrize(
    "header", [HEADER.pack(MAX_BODY_BYTES + 1, Kind.CHUNK, 1), HEADER.pack(0, 99, 1)], ids=["huge", "unknown"]
)
def test_foreign_bytes_are_refused(header: bytes) -> None:
    with pytest.raises(FrameError):
        Decoder().feed(header)


def test_an_oversized_body_is_not_sent() -> None:
    with pytest.raises(FrameError):
        encode(Kind.CHUNK, 1, bytes(MAX_BODY_BYTES + 1))
