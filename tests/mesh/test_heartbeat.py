"""Beats: the round trip without comparing clocks, loads as deltas, and rubbish that is told from messages."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import heartbeat
from mesh.errors import PeerMisbehaved
from mesh.gossip import Gossip
from mesh.heartbeat import Kind, Link, LoadBook, Pulse
from mesh.membership import State
from mesh.records import Load, SignedRecord, sign_record
from mesh.timing import LAN
from mesh.wire import Message
from tests.sim.swarms import identity, record


def read(frame: bytes) -> Message:
    [message] = heartbeat.decoder().feed(frame)
    return message


def test_a_beat_is_a_few_dozen_bytes() -> None:
    pulse = Pulse(0.0)
    pulse.on_beat(heartbeat.Beat(2**32 - 1, 0, 0, 0, bytes(8)), 0.0)
    pulse._number = 2**32 - 2
    assert len(pulse.beat(4000.0, pace_s=10.0, view=bytes(8))) <= 37


@settings(max_examples=300)
@given(there_s=st.floats(0, 2), back_s=st.floats(0, 2), held_s=st.floats(0, 20), clock_s=st.floats(-1e6, 1e6))
def test_the_round_trip_does_not_depend_on_the_other_clock(
    there_s: float, back_s: float, held_s: float, clock_s: float
) -> None:
    """300 cases; the other side's clock is off by up to eleven days."""
    one, other = Pulse(0.0), Pulse(0.0)
    now = 1000.0
    first = heartbeat.read_beat(read(one.beat(now, pace_s=1.0, view=bytes(8))).body)
    other.on_beat(first, now + there_s + clock_s)
    answer = other.beat(now + there_s + held_s + clock_s, pace_s=1.0, view=bytes(8))
    one.on_beat(heartbeat.read_beat(read(answer).body), now + there_s + held_s + back_s)
    assert one.rtt_s == pytest.approx(there_s + back_s, abs=1e-4)


def test_the_round_trip_is_smoothed_and_never_negative() -> None:
    pulse = Pulse(0.5)
    for number in range(1, 50):
        pulse.beat(float(number), pace_s=1.0, view=bytes(8))
        pulse.on_beat(heartbeat.Beat(number, number, 0, 1000, bytes(8)), number + (0.1 if number % 2 else 0.2))
    assert 0.1 < pulse.rtt_s < 0.2
    pulse.beat(100.0, pace_s=1.0, view=bytes(8))
    pulse.on_beat(heartbeat.Beat(9, 50, 2**32 - 1, 1000, bytes(8)), 100.1)  # held for longer than it was away
    assert pulse.rtt_s >= 0
    before = pulse.rtt_s
    pulse.on_beat(heartbeat.Beat(10, 3, 0, 1000, bytes(8)), 200.0)  # an echo of an older beat says nothing
    assert pulse.rtt_s == before


def loads_in(frame: bytes) -> heartbeat.Loads:
    return heartbeat.read_loads(read(frame).body)


def test_only_what_changed_is_told() -> None:
    book = LoadBook()
    book.publish([Load("a", "ready", slots=4), Load("b", "absent")])
    assert loads_in(book.since(0)) == heartbeat.Loads(
        full=True, changed=(Load("a", "ready", slots=4), Load("b", "absent"))
    )
    version = book.version
    book.publish([Load("a", "ready", slots=4, slots_used=1), Load("b", "absent")])
    assert loads_in(book.since(version)).changed == (Load("a", "ready", slots=4, slots_used=1),)
    assert book.urgent < book.version
    version = book.version
    book.publish([Load("a", "ready", slots=4, slots_used=1)])
    assert loads_in(book.since(version)) == heartbeat.Loads(full=False, changed=(), gone=("b",))
    assert book.urgent == book.version
    assert [load.model for load in book.loads] == ["a"]


def test_what_did_not_change_is_not_told() -> None:
    book = LoadBook()
    rates = {"prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 10.0}
    book.publish([Load("a", "ready", **rates)])  # type: ignore[arg-type]
    version = book.version
    for factor in (1.0, 1.05, 0.95):
        book.publish([Load("a", "ready", **{name: rate * factor for name, rate in rates.items()})])  # type: ignore[arg-type]
    assert book.version == version
    # Small steps add up: what counts is the distance from what was told.
    book.publish([Load("a", "ready", prefill_tokens_per_s=115.0, decode_tokens_per_s=10.0)])
    assert book.version == version + 1


def test_models_that_come_and_go_do_not_pile_up() -> None:
    book = LoadBook()
    for number in range(1000):
        book.publish([Load(f"m{number}", "ready")])
    assert len(book._loads) <= 257
    assert len(loads_in(book.since(1)).gone) <= heartbeat.MAX_LOADS


@settings(max_examples=200)
@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True), min_size=1, max_size=12), st.data())
def test_deltas_add_up_whenever_they_are_taken(history: list[list[str]], data: st.DataObject) -> None:
    """200 histories: a reader that takes a delta now and then ends where one ends that took every one."""
    book, held, version = LoadBook(), dict[str, Load](), 0
    for number, models in enumerate(history):
        book.publish([Load(model, "ready", queued=data.draw(st.integers(0, 2)) + number) for model in models])
        taken = number == len(history) - 1 or data.draw(st.booleans())
        if taken and version < book.version:
            news = loads_in(book.since(version))
            held = {} if news.full else held
            held |= {load.model: load for load in news.changed}
            for model in news.gone:
                held.pop(model, None)
            version = book.version
    assert held == {load.model: load for load in book.loads}


def test_views_are_equal_for_equal_sets_in_any_order() -> None:
    peers = [identity(number).peer for number in range(20)]
    shuffled = random.Random(1).sample(peers, 20)
    assert heartbeat.view(peers) == heartbeat.view(shuffled) != heartbeat.view(peers[1:])
    assert heartbeat.view([peers[0]], heartbeat.view(peers)) == heartbeat.view(peers[1:])
    assert heartbeat.read_ask(read(heartbeat.ask_frame(peers)).body) == set(map(heartbeat.tag, peers))


def test_records_travel_in_batches() -> None:
    records = [
        sign_record(identity(number), record(identity(number).peer, "x" * 60, exposes=("y" * 200,) * 64))
        for number in range(60)
    ]
    left, batches = list(records), 0
    got: list[SignedRecord] = []
    while left:
        frame = heartbeat.records_frame(left)
        assert len(frame) < heartbeat.MAX_MESSAGE_BYTES
        got += heartbeat.read_records(read(frame).body)
        batches += 1
    assert batches > 1
    assert set(got) == set(records)


def test_the_longest_messages_fit() -> None:
    counts, rates = (2**53 - 1,) * 4, (1e11 / 3, 1e11 / 3, 1e11 / 3, 1 / 3, 1e11 / 3, 1 / 3)
    book = LoadBook()
    book.publish([Load(f"{number:0200}", "loading", *counts, *rates) for number in range(300)])
    assert len(loads_in(book.since(0)).changed) == heartbeat.MAX_LOADS


@settings(max_examples=1500, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=60) | st.just(b"")), max_size=6), st.booleans()
)
def test_no_message_does_anything_but_count_or_be_refused(messages: list[tuple[Kind, bytes]], confirmed: bool) -> None:
    """1,500 short conversations of rubbish in every kind."""
    who, other = identity(1), identity(2)
    gossip = Gossip(who, record(who.peer, "me"), LAN, limit=10, relayed=lambda _: False, rng=random.Random(1))
    link = Link(other.peer, Pulse(0.0), since=0.0)
    if confirmed:
        frame = heartbeat.record_frame(sign_record(other, record(other.peer, "other")))
        gossip.heard(link, read(frame), 0.0)
        assert gossip.membership.state(other.peer) is State.ALIVE
    for number, (kind, body) in enumerate(messages):
        try:
            gossip.heard(link, Message(kind, body), float(number))
        except PeerMisbehaved:
            break
        assert confirmed or kind is Kind.RECORD
        gossip.outgoing(link, float(number))
    assert len(gossip.roster.members) == confirmed
    assert not gossip.bans.banned
