"""The book of reservations: every call of ours is counted once, by the report or by us."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.reservations import MARGIN_S, MAX_ENDED, NOTHING, Reservation, Reservations


def test_a_call_counts_from_its_reservation_to_its_release() -> None:
    book = Reservations()
    handle = book.reserve("p", "m", 10.0, prompt_tokens=100, output_tokens=50, weight=2)
    assert book.on("p", "m") == Reservation(calls=2, prompt_tokens=100, output_tokens=50, running=2)
    assert book.on("p", "other") == book.on("q", "m") == NOTHING
    book.release(handle, 11.0)
    assert book.on("p", "m") == NOTHING


def test_a_report_that_counts_the_call_takes_its_place() -> None:
    book = Reservations()
    book.reserve("p", "m", 10.0, prompt_tokens=100, output_tokens=50)
    book.seen("p", 10.5)
    assert book.on("p", "m") == Reservation(running=1)


def test_a_report_written_before_the_call_arrived_does_not_count_it() -> None:
    book = Reservations()
    book.reserve("p", "m", 10.0)
    book.seen("p", 10.2, rtt_s=0.3)
    assert book.on("p", "m").calls == 1
    book.seen("p", 10.2 + 1, rtt_s=0.3)
    assert book.on("p", "m").calls == 0


def test_a_slot_that_the_report_calls_busy_is_known_to_be_free_once_our_call_there_has_ended() -> None:
    book = Reservations()
    handle = book.reserve("p", "m", 10.0, weight=3)
    book.seen("p", 10.5)
    book.release(handle, 10.7)
    assert book.on("p", "m") == Reservation(ended=3)
    book.seen("p", 11.5)  # this report does not count it any more
    assert book.on("p", "m") == NOTHING


def test_a_report_taken_note_of_late_counts_as_of_its_own_time() -> None:
    book = Reservations()
    early = book.reserve("p", "m", 10.0)
    late = book.reserve("p", "m", 10.6)
    book.release(early, 10.7)
    book.seen("p", 10.5)
    assert book.on("p", "m") == Reservation(calls=1, ended=1, running=1)
    book.release(late, 10.8)
    book.seen("p", 10.5)
    assert book.on("p", "m") == Reservation(ended=1)


def test_a_second_release_and_one_after_the_peers_death_change_nothing() -> None:
    book = Reservations()
    handle = book.reserve("p", "m", 10.0)
    other = book.reserve("q", "m", 10.0)
    book.release(handle, 11.0)
    book.release(handle, 11.0)
    book.forget("q")
    book.release(other, 11.0)
    assert book.on("p", "m") == book.on("q", "m") == NOTHING


def test_it_stays_bounded_without_reports() -> None:
    book = Reservations()
    for turn in range(MAX_ENDED + 10):
        book.release(book.reserve("p", "m", float(turn)), turn + 0.5)
    book.seen("p", 5.2)  # a report of long ago: only what is remembered can be counted
    assert book.on("p", "m").ended == 0
    book.seen("p", 20.2)
    assert book.on("p", "m").ended == 1
    book.seen("p", MAX_ENDED + 100.0)
    assert book.on("p", "m") == NOTHING


@dataclass(frozen=True)
class _Span:
    made_at: float
    seconds: float
    weight: int


_spans = st.builds(
    _Span,
    made_at=st.integers(0, 400).map(lambda tick: tick / 100),
    seconds=st.integers(1, 300).map(lambda tick: tick / 100),
    weight=st.integers(1, 4),
)


@given(spans=st.lists(_spans, max_size=20), lazy=st.booleans())
@settings(max_examples=300, deadline=None)
def test_with_a_report_a_second_the_sum_is_what_runs_there(spans: list[_Span], lazy: bool) -> None:
    """300 cases: report - ended + calls is the number of our slots there, at any time."""
    book = Reservations()
    events: list[tuple[float, int, _Span | None]] = [(span.made_at, 1, span) for span in spans]
    events += [(span.made_at + span.seconds, 2, span) for span in spans]
    events += [(second + 0.505, 0, None) for second in range(8)]  # between the hundredths of the calls
    handles = {}
    running: dict[int, _Span] = {}
    reported, heard_at = 0, -1.0
    for at, kind, span in sorted(events, key=lambda event: event[:2]):
        if span is None:
            # A call that was sent a moment ago has not arrived there.
            reported = sum(one.weight for one in running.values() if one.made_at + MARGIN_S <= at)
            heard_at = at
            if not lazy:
                book.seen("p", heard_at)
        elif kind == 1:
            running[id(span)] = span
            handles[id(span)] = book.reserve("p", "m", at, weight=span.weight)
        else:
            del running[id(span)]
            book.release(handles[id(span)], at)
        if lazy:
            book.seen("p", heard_at)
        on = book.on("p", "m")
        assert on.running == sum(one.weight for one in running.values())
        assert reported - on.ended + on.calls == on.running
