"""The membership state machine: the table, the times, and what never happens whatever is thrown at it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.membership import Changed, Dial, Drop, Effect, Forget, Membership, State
from mesh.peerstates import CONTACT, TABLE, Event, diagram
from mesh.records import Hardware, PeerRecord
from mesh.timing import LAN, LOCAL, PRESETS, WAN

OWN, PEER, THIRD = "B", "A", "C"  # the own id is between the two others


def record(peer: str = PEER, *, incarnation: int = 1, sequence: int = 0, reachable: bool = True) -> PeerRecord:
    return PeerRecord(
        peer=peer,
        name=peer,
        version="0",
        protocol=1,
        incarnation=incarnation,
        sequence=sequence,
        addresses=("/ip4/10.0.0.1/tcp/1",) if reachable else (),
        roles=(),
        hardware=Hardware(system="", processor="", cores=1, memory_bytes=0),
        offers=(),
    )


class Watch:
    """A machine, and the time until which it has been ticked."""

    def __init__(self, *, limit: int = 100) -> None:
        self.machine = Membership(OWN, LAN, limit=limit, rng=random.Random(1))
        self.now = 100.0

    def until(self, when: float) -> Iterator[tuple[float, Effect]]:
        """Every effect up to a time, with its own time."""
        while (due := self.machine.next_tick()) <= when:
            self.now = max(self.now, due)
            for effect in self.machine.tick(self.now):
                yield self.now, effect
        self.now = when

    def met(self, peer: str = PEER) -> None:
        self.machine.on_record(record(peer), self.now)
        self.machine.on_admitted(peer, self.now)


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_silence_is_suspect_after_2_2_beats_and_dead_after_3_5(watch: Watch) -> None:
    watch.met()
    watch.now += 0.5
    watch.machine.on_beat(PEER, watch.now, 1.0)
    heard = watch.now
    effects = [(round(at - heard, 3), effect) for at, effect in watch.until(heard + 3.6)]
    assert effects[:3] == [
        (2.2, Changed(PEER, State.ALIVE, State.SUSPECT)),
        (3.5, Changed(PEER, State.SUSPECT, State.DEAD)),
        (3.5, Drop(PEER)),
    ]
    assert effects[3:] == [(3.5, Dial(PEER, record().addresses))]


def test_a_promised_pace_stretches_patience_and_has_a_bound(watch: Watch) -> None:
    watch.met()
    for promised, patience in ((4.0, 8.8), (1e9, 22.0), (0.0, 0.55)):
        watch.machine.on_admitted(PEER, watch.now)
        watch.machine.on_beat(PEER, watch.now, promised)
        heard = watch.now
        suspected = next(at for at, effect in watch.until(heard + 60) if isinstance(effect, Changed))
        # The heap may hold an earlier appointment; what counts is when it is suspected.
        assert suspected - heard == pytest.approx(max(patience, 2.2) if promised == 0.0 else patience)


def test_a_beat_makes_a_suspect_alive_again(watch: Watch) -> None:
    watch.met()
    list(watch.until(watch.now + 3.0))
    assert watch.machine.state(PEER) is State.SUSPECT
    assert watch.machine.on_beat(PEER, watch.now, 1.0) == [Changed(PEER, State.SUSPECT, State.ALIVE)]
    assert not [effect for at, effect in watch.until(watch.now + 2.1)]


def test_a_lost_connection_is_suspect_and_dialled_at_once_and_dead_when_refused(watch: Watch) -> None:
    watch.met()
    effects = watch.machine.on_lost(PEER, watch.now)
    assert effects == [Changed(PEER, State.ALIVE, State.SUSPECT), Dial(PEER, record().addresses)]
    assert watch.machine.on_unreachable(PEER, watch.now + 0.01) == [
        Changed(PEER, State.SUSPECT, State.DEAD),
        Drop(PEER),
    ]


def test_a_lost_connection_without_an_answer_is_dead_within_a_second(watch: Watch) -> None:
    watch.met()
    lost = watch.now
    watch.machine.on_lost(PEER, lost)
    [(at, effect)] = [(at, effect) for at, effect in watch.until(lost + 2) if isinstance(effect, Changed)]
    assert effect.new is State.DEAD
    assert at - lost < 1.0


def test_a_redial_that_succeeds_ends_the_suspicion(watch: Watch) -> None:
    watch.met()
    watch.machine.on_lost(PEER, watch.now)
    watch.now += 0.3
    assert watch.machine.on_admitted(PEER, watch.now) == [Changed(PEER, State.SUSPECT, State.ALIVE)]
    assert not list(watch.until(watch.now + 2.1))


def dials(watch: Watch, until: float) -> list[float]:
    """Times of all dials, each failing at once."""
    times = []
    for at, effect in watch.until(until):
        if isinstance(effect, Dial):
            times.append(at)
            watch.machine.on_unreachable(PEER, at)
    return times


def test_a_dead_peer_is_dialled_every_second_for_a_minute_and_then_less_and_less(watch: Watch) -> None:
    watch.met()
    watch.machine.on_lost(PEER, watch.now)
    watch.machine.on_unreachable(PEER, watch.now)
    died = watch.now
    times = dials(watch, died + 1200)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    minute = [gap for gap, at in zip(gaps, times, strict=False) if at < died + 58]
    assert 0.79 <= min(minute) <= max(minute) <= 1.0
    later = [gap for gap, at in zip(gaps, times, strict=False) if at > died + 400]
    assert 47 <= min(later) <= max(later) <= 60
    assert len(times) < 100


def test_many_dead_peers_are_dialled_no_faster_than_20_a_second() -> None:
    watch = Watch(limit=300)
    peers = [f"A{number}" for number in range(200)]
    for peer in peers:
        watch.met(peer)
    for peer in peers:
        watch.machine.on_lost(peer, watch.now)
        watch.machine.on_unreachable(peer, watch.now)
    start, count = watch.now, 0
    for at, effect in watch.until(start + 50):
        if isinstance(effect, Dial):
            watch.machine.on_unreachable(effect.peer, at)
            count += 1
    assert 50 * 20 * 0.7 <= count <= 50 * 20 * 1.3


def test_of_two_the_one_with_the_lower_id_dials_first(watch: Watch) -> None:
    assert Dial(THIRD, record(THIRD).addresses) in watch.machine.on_record(record(THIRD), watch.now)
    assert watch.machine.on_record(record(PEER), watch.now) == [Changed(PEER, State.UNKNOWN, State.KNOWN)]
    [(at, effect)] = watch.until(watch.now + 1.0)
    assert (effect, at) == (Dial(PEER, record().addresses), 100.0 + LAN.patience_s)


def test_a_peer_without_addresses_is_not_dialled(watch: Watch) -> None:
    effects = watch.machine.on_record(record(THIRD, reachable=False), watch.now)
    assert effects == [Changed(THIRD, State.UNKNOWN, State.KNOWN)]


def test_a_ghost_is_forgotten_and_stays_so_until_it_says_something_new(watch: Watch) -> None:
    watch.machine.on_record(record(), watch.now)
    assert len(dials(watch, watch.now + 59)) < 10
    assert list(watch.until(watch.now + 61))[-2:] == [
        (160.0, Changed(PEER, State.KNOWN, State.UNKNOWN)),
        (160.0, Forget(PEER)),
    ]
    assert watch.machine.on_record(record(), watch.now) == []
    assert watch.machine.on_record(record(sequence=1), watch.now)[0] == Changed(PEER, State.UNKNOWN, State.KNOWN)


def test_word_of_a_dead_peer_brings_the_next_dial_forward_and_nothing_more(watch: Watch) -> None:
    watch.met()
    watch.machine.on_lost(PEER, watch.now)
    watch.machine.on_unreachable(PEER, watch.now)
    dials(watch, watch.now + 600)
    watch.now += 2
    assert watch.machine.on_record(record(), watch.now) == [Dial(PEER, record().addresses)]
    assert watch.machine.on_record(record(), watch.now) == []
    assert watch.machine.state(PEER) is State.DEAD


def test_good_bye_is_final_until_a_later_start(watch: Watch) -> None:
    watch.met()
    assert watch.machine.on_left(PEER, watch.now) == [Changed(PEER, State.ALIVE, State.LEFT)]
    assert watch.machine.on_lost(PEER, watch.now) == []
    assert watch.machine.on_record(record(sequence=9), watch.now) == []
    assert not list(watch.until(watch.now + 3600))
    watch.machine.on_record(record(incarnation=2), watch.now)
    assert watch.machine.state(PEER) is State.KNOWN


@pytest.mark.parametrize("how", ["dead", "left", "remembered"])
def test_who_was_met_is_forgotten_after_a_day(watch: Watch, how: str) -> None:
    if how == "remembered":
        watch.machine.on_record(record(reachable=False), watch.now, remembered=True)
    else:
        watch.met()
        if how == "dead":
            watch.machine.on_lost(PEER, watch.now)
            watch.machine.on_unreachable(PEER, watch.now)
        else:
            watch.machine.on_left(PEER, watch.now)
    dials(watch, watch.now + LAN.forget_s - 10)
    assert list(watch.machine.lasting()) == [PEER]
    dials(watch, watch.now + 20)
    assert watch.machine.state(PEER) is State.UNKNOWN
    assert list(watch.machine.lasting()) == []
    assert watch.machine.next_tick() == math.inf


def test_our_own_stall_is_not_held_against_anybody_once(watch: Watch) -> None:
    watch.met()
    due = watch.now + 2.2
    late = due + 30.0
    assert watch.machine.tick(late, late_s=30.0) == []
    assert watch.machine.state(PEER) is State.ALIVE
    # Nothing was waiting to be read: now it counts.
    [suspected] = watch.machine.tick(late + LAN.stall_s + 0.01)
    assert suspected == Changed(PEER, State.ALIVE, State.SUSPECT)
    # In the same silence a second stall is no excuse: it ends some time.
    died = watch.machine.tick(late + 20.0, late_s=15.0)
    assert Changed(PEER, State.SUSPECT, State.DEAD) in died
    assert LAN.stall_s > 0


def test_a_small_lateness_excuses_nothing(watch: Watch) -> None:
    watch.met()
    due = watch.now + 2.2
    assert watch.machine.tick(due + 0.1, late_s=0.1) == [Changed(PEER, State.ALIVE, State.SUSPECT)]


def test_bans_hold_against_everything_and_are_lifted(watch: Watch) -> None:
    watch.met()
    assert watch.machine.on_banned(PEER, watch.now) == [Changed(PEER, State.ALIVE, State.BANNED), Drop(PEER)]
    assert watch.machine.on_record(record(incarnation=5), watch.now) == []
    assert watch.machine.on_admitted(PEER, watch.now) == [Drop(PEER)]
    assert watch.machine.on_mismatch(PEER, watch.now) == []
    assert watch.machine.state(PEER) is State.BANNED
    assert watch.machine.on_pardoned(PEER, watch.now) == [Changed(PEER, State.BANNED, State.UNKNOWN)]
    assert watch.machine.on_admitted(PEER, watch.now) == [Changed(PEER, State.UNKNOWN, State.ALIVE)]


def test_another_version_is_dialled_once_a_minute_and_welcome_after_its_upgrade(watch: Watch) -> None:
    watch.machine.on_record(record(), watch.now)
    watch.machine.on_mismatch(PEER, watch.now)
    times = []
    for at, effect in watch.until(watch.now + 200):
        assert isinstance(effect, Dial)
        times.append(round(at))
        watch.machine.on_mismatch(PEER, at)
    assert times == [160, 220, 280]
    assert watch.machine.on_admitted(PEER, watch.now) == [Changed(PEER, State.INCOMPATIBLE, State.ALIVE)]


def test_the_limit_gives_way_to_members_and_never_to_hearsay() -> None:
    watch = Watch(limit=3)
    for peer in ("A1", "A2"):
        watch.met(peer)
    watch.machine.on_record(record("A3"), watch.now)
    effects = watch.machine.on_record(record("A4"), watch.now + 1)
    assert Forget("A3") in effects  # the one that we have been without for longest
    assert Changed("A5", State.UNKNOWN, State.ALIVE) in watch.machine.on_admitted("A5", watch.now)
    assert watch.machine.on_record(record("A6"), watch.now) == []
    assert watch.machine.on_admitted("A7", watch.now) == [Drop("A7")]
    assert watch.machine.contacts == {"A1", "A2", "A5"}


def test_every_state_has_a_row_and_every_event_a_place() -> None:
    assert set(TABLE) == set(State)
    used = {event for row in TABLE.values() for event in row}
    assert used == set(Event)
    reachable = {new for row in TABLE.values() for new in row.values()}
    assert reachable == set(State)
    # Nobody comes alive by hearsay, and nobody who is banned comes alive at all.
    assert {event for row in TABLE.values() for event, new in row.items() if new is State.ALIVE} == {
        Event.ADMITTED,
        Event.HEARD,
    }
    assert set(TABLE[State.BANNED]) == {Event.PARDONED}


def test_the_diagram_shows_every_transition() -> None:
    drawn = diagram()
    for state, row in TABLE.items():
        for event, new in row.items():
            assert event.value in drawn
            if event not in (Event.ADMITTED, Event.MISMATCH, Event.BANNED):
                assert f"{state.name} --> {new.name}" in drawn


def test_presets_keep_their_own_promises() -> None:
    assert set(PRESETS.values()) == {LAN, WAN, LOCAL}
    for timing in PRESETS.values():
        assert timing.suspect_beats < timing.dead_beats
        assert timing.dial_timeout_s >= timing.redial_s or timing is not LAN
    assert LAN.dead_beats * LAN.beat_s < 4.0
    assert LAN.lost_s < 1.0
    assert LAN.redial_s + LAN.dial_timeout_s <= 2.0
    with pytest.raises(AttributeError):
        LAN.beat_s = 2.0  # type: ignore[misc]
    assert replace(LAN, beat_s=2.0).beat_s == 2.0


PEERS = st.sampled_from(["A", "B", "C", "D", "E"])  # B is this node itself


class Anything(RuleBasedStateMachine):
    """Any events in any order, at any pace: 200 runs of up to 60 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Membership(OWN, LAN, limit=3, rng=random.Random(1))
        self.now = 0.0
        self.state: dict[str, State] = {}
        self.dialling: set[str] = set()
        self.contacted: set[str] = set()  # admitted since they were last seen not alive

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert effect.peer != OWN or isinstance(effect, Drop)
            if isinstance(effect, Changed):
                assert self.state.get(effect.peer, State.UNKNOWN) is effect.old
                assert effect.new in TABLE[effect.old].values()
                self.state[effect.peer] = effect.new
            elif isinstance(effect, Dial):
                assert effect.addresses
                assert self.machine.state(effect.peer) is not State.ALIVE
                self.dialling.add(effect.peer)

    @rule(peer=PEERS, incarnation=st.integers(1, 3), sequence=st.integers(0, 2), reachable=st.booleans())
    def told(self, peer: str, incarnation: int, sequence: int, reachable: bool) -> None:
        before = self.machine.state(peer)
        new = record(peer, incarnation=incarnation, sequence=sequence, reachable=reachable)
        self.take(self.machine.on_record(new, self.now))
        if before is not State.ALIVE:
            assert self.machine.state(peer) is not State.ALIVE

    @rule(peer=PEERS)
    def admitted(self, peer: str) -> None:
        self.take(self.machine.on_admitted(peer, self.now))

    @rule(peer=PEERS, pace_s=st.none() | st.floats(0, 100))
    def beat(self, peer: str, pace_s: float | None) -> None:
        before = self.machine.state(peer)
        self.take(self.machine.on_beat(peer, self.now, pace_s))
        assert (self.machine.state(peer) in CONTACT) == (before in CONTACT)

    @rule(peer=PEERS, event=st.sampled_from(["on_lost", "on_unreachable", "on_left", "on_mismatch"]))
    def other(self, peer: str, event: str) -> None:
        self.take(getattr(self.machine, event)(peer, self.now))
        assert event != "on_lost" or self.machine.state(peer) is not State.ALIVE

    @rule(peer=PEERS, lifted=st.booleans())
    def banned(self, peer: str, lifted: bool) -> None:
        self.take(self.machine.on_pardoned(peer, self.now) if lifted else self.machine.on_banned(peer, self.now))
        if peer != OWN:
            assert (self.machine.state(peer) is State.BANNED) != lifted

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 4.0, 70.0, 90_000.0]), late=st.booleans())
    def time(self, seconds: float, late: bool) -> None:
        self.now += seconds
        self.take(self.machine.tick(self.now, late_s=seconds if late else 0.0))

    @invariant()
    def in_order(self) -> None:
        assert len(self.machine._peers) <= 3
        assert self.machine.state(OWN) is State.UNKNOWN
        states = {peer: self.machine.state(peer) for peer in ("A", "C", "D", "E")}
        assert {peer: self.state.get(peer, State.UNKNOWN) for peer in states} == states
        assert self.machine.contacts == {peer for peer, state in states.items() if state in CONTACT}
        for peer in self.machine.contacts:  # time alone moves each of them on
            assert self.machine.next_tick() < math.inf, peer


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0.2, 2.0), min_size=1, max_size=30))
def test_a_peer_that_beats_within_two_seconds_is_never_suspected(gaps: list[float]) -> None:
    watch = Watch()
    watch.met()
    for gap in gaps:
        assert not list(watch.until(watch.now + gap))
        watch.machine.on_beat(PEER, watch.now, 1.0)
    assert watch.machine.state(PEER) is State.ALIVE


def test_records_of_this_node_itself_are_ignored(watch: Watch) -> None:
    assert watch.machine.on_record(msgspec.structs.replace(record(), peer=OWN), watch.now) == []
