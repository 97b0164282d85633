"""Text that may be shown: whole characters, no stop strings nor their beginnings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.textstream import TextStream


def feed(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, str | None]:
    """All that is ever shown of `pieces`, and the stop string that was met."""
    stream = TextStream(stops)
    text = ""
    for piece in pieces:
        shown = stream.push(piece)
        text += shown.text
        if shown.stop is not None:
            return text, shown.stop
    last = stream.finish()
    return text + last.text, last.stop


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(st.text(max_size=50), st.lists(st.integers(0, 300), max_size=20))
def test_any_split_shows_the_same_text(text: str, cuts: list[int]) -> None:
    encodable = text.encode("utf-8", "replace").decode()
    assert feed(split(encodable.encode(), cuts)) == (encodable, None)


@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 100), max_size=20),
)
def test_the_earliest_stop_ends_the_text_wherever_tokens_end(text: str, stops: list[str], cuts: list[int]) -> None:
    """A stop is found in the piece that completes it; pieces of one character make "earliest" unambiguous."""
    shown, stop = feed([character.encode() for character in text], tuple(stops))
    found = [at + len(item) for item in stops if (at := text.find(item)) >= 0]
    if not found:
        assert (shown, stop) == (text, None)
        assert feed(split(text.encode(), cuts), tuple(stops)) == (text, None)
        return
    assert stop in stops
    assert not any(item in shown for item in stops)
    assert text.startswith(shown + (stop or ""))
    assert len(shown) + len(stop or "") == min(found)


def test_a_beginning_of_a_stop_is_held_and_released_when_it_comes_to_nothing() -> None:
    stream = TextStream(("STOP",))
    assert stream.push(b"go ST") == ("go ", None)
    assert stream.push(b"ONE") == ("STONE", None)
    assert stream.push(b" S") == (" ", None)
    assert stream.finish() == ("S", None)


def test_a_character_is_never_cut() -> None:
    stream = TextStream()
    euro = "€".encode()
    assert stream.push(euro[:1]) == ("", None)
    assert stream.push(euro[1:2]) == ("", None)
    assert stream.push(euro[2:]) == ("€", None)
    assert stream.push(euro[:2]) == ("", None)
    assert stream.finish() == ("�", None)


def test_after_a_stop_nothing_more_is_shown() -> None:
    stream = TextStream(("end",))
    assert stream.push(b"the end and") == ("the ", "end")
    assert stream.stop == "end"
    assert stream.push(b" more, to the end") == ("", "end")
    assert stream.finish() == ("", "end")
