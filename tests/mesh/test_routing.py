"""The estimate and the decision, rule by rule."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.estimate import BATCH_GAIN, DECODE_TOKENS_PER_S, PREFILL_TOKENS_PER_S, PROBES, RETRY_S
from mesh.faults import HALF_LIFE_S, Faults
from mesh.records import Load, Offer
from mesh.reservations import Reservation
from mesh.routing import POLICIES, Decision, Need, Replica, estimate, explain, pick, variants

NEED = Need(model="m", capability="chat", prompt_tokens=100, output_tokens=50)


def make(
    name: str, *, model: str = "m", prefill: float = 100.0, decode: float = 10.0, slots: int = 4, **changes: Any
) -> Replica:
    """A loaded replica; `changes` go to where they have a field: the offer, the load, or the replica."""
    offer = Offer(
        model=model, digest="d", backend="fake", capabilities=("chat", "embed"), context_tokens=4096, slots=slots
    )
    load = Load(
        model=model,
        state="ready",
        slots=slots,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        decode_batch=1 if decode else 0,
    )

    def part(struct: type[msgspec.Struct]) -> dict[str, Any]:
        return {key: changes.pop(key) for key in list(changes) if key in struct.__struct_fields__}

    if "error_rate" in changes:
        load = msgspec.structs.replace(load, error_rate=changes.pop("error_rate"))
    load = msgspec.structs.replace(load, **part(Load))
    offer = msgspec.structs.replace(offer, **part(Offer))
    return Replica(peer=name, name=name, offer=offer, load=load, **changes)


def choose(*replicas: Replica, need: Need = NEED, policy: str = "ect", seed: int = 1, turn: int = 0) -> Decision:
    return pick(replicas, need, policy, rng=random.Random(seed), turn=turn)


def chosen(*replicas: Replica, need: Need = NEED, policy: str = "ect", seed: int = 1, turn: int = 0) -> str:
    decision = choose(*replicas, need=need, policy=policy, seed=seed, turn=turn)
    assert decision.chosen is not None, decision.reason
    return decision.chosen.replica.name


def reason_of(decision: Decision, name: str) -> str:
    (reason,) = [one.reason for one in decision.candidates if one.replica.name == name]
    return reason


# -- the estimate, term by term --


def test_an_idle_replica_prefills_and_decodes_at_its_rates() -> None:
    terms = estimate(make("a", rtt_s=0.02), NEED).terms
    assert (terms.queue_s, terms.load_s, terms.penalty_s) == (0, 0, 0)
    assert terms.prefill_s == pytest.approx(1.0)
    assert terms.decode_s == pytest.approx(5.0)
    assert terms.round_trip_s == 0.02
    assert terms.total_s == pytest.approx(6.02)


def test_a_batch_shares_the_decode_rate() -> None:
    """Ours would be the third; measured at two, 30 tokens/s in all."""
    busy = make("a", decode=30.0, decode_batch=2.0, slots_used=2)
    assert estimate(busy, NEED).terms.decode_s == pytest.approx(50 * 3 / (30 * 1.5**BATCH_GAIN))
    at_its_batch = make("a", decode=30.0, decode_batch=2.0, slots_used=1)
    assert estimate(at_its_batch, NEED).terms.decode_s == pytest.approx(50 / 15)


def test_a_batch_costs_what_the_replica_has_measured_that_it_costs() -> None:
    """One whose sequences do not slow each other (a GPU): as fast for the third as for the second, or for one alone."""
    wide = make("a", decode=30.0, decode_batch=2.0, decode_gain=1.0, slots_used=2)
    assert estimate(wide, NEED).terms.decode_s == pytest.approx(50 / 15)
    idle = make("a", decode=30.0, decode_batch=2.0, decode_gain=1.0)
    assert estimate(idle, NEED).terms.decode_s == pytest.approx(50 / 15)
    narrow = make("a", decode=30.0, decode_batch=2.0, decode_gain=0.01, slots_used=2)
    assert estimate(narrow, NEED).terms.decode_s == pytest.approx(50 / 10, rel=0.01)


def test_who_stands_in_lends_its_gain_too() -> None:
    newcomer = make("a", decode=0, slots_used=1)
    wide = make("b", decode=40.0, decode_batch=4.0, decode_gain=1.0)
    assert estimate(newcomer, NEED, (wide,)).terms.decode_s == pytest.approx(50 / 10)


def test_work_ahead_is_prompts_not_prefilled_and_calls_without_a_slot() -> None:
    assert estimate(make("a", slots_used=1, queued_tokens=300), NEED).terms.queue_s == pytest.approx(3.0)
    full = estimate(make("a", slots_used=4, queued=1, queued_tokens=300), NEED)
    assert full.terms.queue_s == pytest.approx(3.0 + 2 * 50 / (10 * 4**BATCH_GAIN))
    assert full.slots_free == 0
    silent = estimate(make("a", slots_used=4, queued=2), NEED)
    assert silent.terms.queue_s == pytest.approx(2.0 + 3 * 50 / (10 * 4**BATCH_GAIN))


def test_reservations_correct_the_report() -> None:
    sent = make("a", slots_used=1, reserved=Reservation(calls=2, prompt_tokens=400, output_tokens=10, running=2))
    candidate = estimate(sent, NEED)
    assert (candidate.active, candidate.slots_free) == (3, 1)
    assert candidate.terms.queue_s == pytest.approx(4.0)
    assert estimate(make("a", slots_used=3, reserved=Reservation(ended=2)), NEED).active == 1
    assert estimate(make("a", slots_used=1, reserved=Reservation(ended=2)), NEED).active == 0


def test_the_cached_beginning_is_not_prefilled() -> None:
    assert estimate(make("a", cached_tokens=60), NEED).terms.prefill_s == pytest.approx(0.4)
    assert estimate(make("a", cached_tokens=999), NEED).terms.prefill_s == pytest.approx(0.01)
    assert estimate(make("a", cached_tokens=60, state="absent"), NEED).terms.prefill_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"state": "ready", "load_s": 8.0}, 0.0),
        ({"state": "absent", "load_s": 8.0}, 8.0),
        ({"state": "loading", "load_s": 8.0}, 4.0),
        ({"state": "absent", "memory_bytes": 500_000_000}, 2.0),
        ({"state": "absent"}, 1.0),
    ],
)
def test_a_model_that_is_not_loaded_costs_its_load(changes: dict[str, Any], seconds: float) -> None:
    assert estimate(make("a", **changes), NEED).terms.load_s == pytest.approx(seconds)


def test_an_offer_says_what_a_load_takes_until_one_was_measured() -> None:
    replica = make("a", state="absent")
    offered = replace(replica, offer=msgspec.structs.replace(replica.offer, load_s=3.0))
    assert estimate(offered, NEED).terms.load_s == 3.0


def test_errors_cost_the_tries_they_waste() -> None:
    clean = estimate(make("a"), NEED).terms.total_s
    assert estimate(make("a", error_rate=0.5), NEED).terms.penalty_s == pytest.approx(clean + RETRY_S)
    seen_here = replace(make("a"), error_rate=0.5)
    assert estimate(seen_here, NEED).terms.penalty_s == pytest.approx(clean + RETRY_S)
    assert math.isfinite(estimate(make("a", error_rate=1.0), NEED).terms.total_s)


def test_this_node_itself_is_no_round_trip_away() -> None:
    assert estimate(make("a", rtt_s=1.0, local=True), NEED).terms.round_trip_s == 0


def test_several_choices_decode_in_one_batch() -> None:
    candidate = estimate(make("a"), replace(NEED, weight=3))
    assert candidate.batch == 3
    assert estimate(make("a"), replace(NEED, weight=9)).batch == 4


def test_the_unmeasured_goes_by_the_fastest_of_its_digest_then_by_the_slowest() -> None:
    fast, slow = make("f", prefill=400, decode=40), make("s", prefill=50, decode=5)
    other = make("o", prefill=9000, decode=900, digest="other")
    siblings = (fast, slow, other)

    def rates(active: int) -> tuple[float, float]:
        found = estimate(make("new", prefill=0, decode=0, slots_used=active), NEED, siblings).rates
        assert not found.measured
        return found.prefill_tokens_per_s, found.single_tokens_per_s

    assert rates(0) == rates(PROBES - 1) == (400, 40)
    assert rates(PROBES) == (50, 5)
    alone = estimate(make("new", prefill=0, decode=0), NEED, (other,)).rates
    assert (alone.prefill_tokens_per_s, alone.single_tokens_per_s) == (PREFILL_TOKENS_PER_S, DECODE_TOKENS_PER_S)


def test_without_output_the_prefill_rate_is_all_that_has_to_be_measured() -> None:
    need = Need(model="m", capability="embed", prompt_tokens=100)
    candidate = estimate(make("a", decode=0), need, (make("b", prefill=900),))
    assert candidate.rates.measured
    assert candidate.terms.total_s == pytest.approx(1.0)


_replicas = st.builds(
    lambda used, queued, backlog, prefill, decode, batch, gain, cached, errors, reserved, ended, rtt: make(
        "a",
        prefill=prefill,
        decode=decode,
        slots_used=used,
        queued=queued,
        queued_tokens=backlog,
        decode_batch=batch,
        decode_gain=gain,
        cached_tokens=cached,
        error_rate=errors,
        reserved=Reservation(calls=reserved, prompt_tokens=10 * reserved, ended=ended, running=reserved),
        rtt_s=rtt,
    ),
    st.integers(0, 4),
    st.integers(0, 50),
    st.integers(0, 10_000),
    st.one_of(st.just(0.0), st.floats(0.1, 1e5)),
    st.one_of(st.just(0.0), st.floats(0.1, 1e5)),
    st.floats(0, 4),
    st.floats(0, 1),
    st.integers(0, 200),
    st.floats(0, 1),
    st.integers(0, 20),
    st.integers(0, 8),
    st.floats(0, 2),
)


@given(replica=_replicas, more=st.integers(1, 20))
@settings(max_examples=500, deadline=None)
def test_more_work_slower_rates_and_more_errors_never_look_quicker(replica: Replica, more: int) -> None:
    """500 cases. Measured replicas: an unmeasured one changes its stand-in with its third call."""
    load, before = replica.load, estimate(replica, NEED)
    assert all(seconds >= 0 and math.isfinite(seconds) for seconds in _seconds(before.terms))

    def after(changed: Replica = replica, need: Need = NEED, **changes: Any) -> float:
        return estimate(replace(changed, load=msgspec.structs.replace(load, **changes)), need).terms.total_s * 1.000001

    total = before.terms.total_s
    if load.decode_tokens_per_s:
        assert after(queued=load.queued + more) >= total
        assert after(decode_tokens_per_s=load.decode_tokens_per_s / (1 + more)) >= total
        assert after(replace(replica, reserved=replace(replica.reserved, calls=replica.reserved.calls + more))) >= total
    if load.prefill_tokens_per_s:
        assert after(prefill_tokens_per_s=load.prefill_tokens_per_s / (1 + more)) >= total
    if load.queued_tokens or not load.queued:
        assert after(queued_tokens=load.queued_tokens + more) >= total
    assert after(error_rate=min(1.0, load.error_rate + more / 20)) >= total
    assert after(state="absent") >= total
    assert after(replace(replica, rtt_s=replica.rtt_s + more)) >= total
    assert after(replace(replica, cached_tokens=max(0, replica.cached_tokens - more))) >= total
    assert after(need=replace(NEED, output_tokens=NEED.output_tokens + more)) >= total
    assert after(need=replace(NEED, prompt_tokens=NEED.prompt_tokens + more)) >= total


def _seconds(terms: Any) -> tuple[float, ...]:
    return tuple(getattr(terms, name) for name in terms.__slots__)


# -- who is out --


@pytest.mark.parametrize(
    ("replica", "need", "reason"),
    [
        (make("x", model="other"), NEED, "it does not offer m"),
        (make("x"), replace(NEED, capability="image"), "its m cannot do image"),
        (make("x"), replace(NEED, digest="e"), "it has another file under this name"),
        (make("x"), replace(NEED, exclude=frozenset("x")), "this call has failed there"),
        (make("x"), replace(NEED, pinned="y"), "the request is pinned to another node"),
    ],
)
def test_who_cannot_take_it_is_out_and_says_why(replica: Replica, need: Need, reason: str) -> None:
    decision = choose(replica, need=need)
    assert decision.chosen is None
    assert not decision.hold
    assert reason_of(decision, "x") == reason
    assert decision.reason == f"no node can take it (x: {reason})"


def test_too_short_a_context_is_out_only_beside_another() -> None:
    long = replace(NEED, prompt_tokens=4097)  # an estimate: the tokens are counted where the call runs
    assert chosen(make("x"), need=long) == "x"
    roomy = make("roomy")
    roomy = replace(roomy, offer=msgspec.structs.replace(roomy.offer, context_tokens=8192))
    decision = choose(make("x"), roomy, need=long)
    assert decision.chosen is not None
    assert decision.chosen.replica.peer == "roomy"
    assert reason_of(decision, "x") == "its context of 4096 tokens is too short"


def test_nobody_at_all() -> None:
    decision = choose()
    assert (decision.chosen, decision.hold, decision.reason) == (None, False, "no node offers m")


def test_an_alias_is_as_good_as_the_name() -> None:
    assert chosen(make("a", aliases=("nick",)), make("b"), need=replace(NEED, model="nick")) == "a"


def test_a_pin_goes_before_speed() -> None:
    assert chosen(make("fast", decode=100), make("slow", decode=1), need=replace(NEED, pinned="slow")) == "slow"


def test_a_failed_load_is_the_last_resort() -> None:
    broken = make("broken", state="failed", decode=1000)
    decision = choose(broken, make("works"))
    assert decision.chosen is not None
    assert decision.chosen.replica.name == "works"
    assert reason_of(decision, "broken") == "its last load failed"
    assert chosen(broken) == "broken"


def test_variants_of_one_name_are_reported_and_not_mixed() -> None:
    replicas = [make("a", decode=50), make("b", decode=40), make("c", decode=30, digest="e")]
    assert variants(replicas) == {"m": frozenset("de")}
    assert variants(replicas[:2]) == {}
    decision = choose(*replicas, policy="random")
    assert reason_of(decision, "c") == "it has another file under this name"
    assert chosen(*replicas, need=replace(NEED, digest="e")) == "c"
    assert {chosen(*replicas, policy="random", seed=seed) for seed in range(30)} == {"a", "b"}


# -- which one --


def test_the_one_that_finishes_first() -> None:
    decision = choose(make("slow", decode=10), make("busy", decode=20, slots_used=3), make("fast", decode=20))
    assert decision.chosen is not None
    assert [one.replica.name for one in decision.candidates] == ["fast", "slow", "busy"]
    assert decision.reason == "fast finishes first"


def test_time_decides_and_not_the_count() -> None:
    """Two calls on a node of 60 tokens/s are quicker than none on one of 10."""
    replicas = (make("fast", decode=60, slots_used=2), make("slow", decode=10))
    assert chosen(*replicas) == "fast"
    assert chosen(*replicas, policy="least-loaded") == "slow"


def test_waiting_for_a_fast_one_may_be_quicker_than_a_free_slow_one() -> None:
    fast = make("fast", decode=200, slots_used=4)
    assert chosen(fast, make("slow", decode=1)) == "fast"
    assert chosen(fast, make("slow", decode=60)) == "slow"


def test_loading_pays_where_the_others_are_slow_enough() -> None:
    cold = make("cold", decode=100, state="absent", load_s=4.0)
    assert chosen(cold, make("warm", decode=20)) == "warm"
    assert chosen(cold, make("warm", decode=5)) == "cold"


def test_ties_go_to_the_emptiest_and_then_by_lot() -> None:
    assert {chosen(make("a"), make("b"), make("c"), seed=seed) for seed in range(40)} == {"a", "b", "c"}
    # One call more makes no difference where the prompt is all; the count of slots does.
    need = Need(model="m", capability="embed", prompt_tokens=100)
    assert {chosen(make("a", slots_used=1), make("b"), need=need, seed=seed) for seed in range(20)} == {"b"}


def test_a_conversation_stays_with_its_cache_unless_that_is_clearly_slower() -> None:
    need = replace(NEED, prompt_tokens=200, output_tokens=20)
    home = make("home", cached_tokens=150, slots_used=1)
    assert estimate(home, need).terms.total_s > estimate(make("away", prefill=300), need).terms.total_s
    decision = choose(home, make("away", prefill=300), need=need)
    assert decision.chosen is not None
    assert decision.chosen.replica.name == "home"
    assert decision.reason == "home has the conversation in its cache"
    assert chosen(replace(home, cached_tokens=80), make("away", prefill=300), need=need) == "away"
    assert chosen(replace(home, error_rate=0.5), make("away", prefill=300), need=need) == "away"


def test_a_conversation_does_not_queue_for_its_cache_where_others_are_as_quick() -> None:
    need = replace(NEED, prompt_tokens=200, output_tokens=2)
    full, free = make("home", cached_tokens=150, slots_used=4), make("home", cached_tokens=150, slots_used=3)
    away = make("away", prefill=250)
    assert estimate(full, need).terms.total_s < 1.5 * estimate(away, need).terms.total_s + 0.25
    assert chosen(full, away, need=need) == "away"
    assert chosen(free, away, need=need) == "home"


def test_a_beginning_that_all_share_binds_nobody() -> None:
    replicas = [make(name, cached_tokens=90) for name in "abc"]
    assert {chosen(*replicas, seed=seed) for seed in range(40)} == {"a", "b", "c"}


def test_round_robin_takes_turns_and_random_takes_any() -> None:
    replicas = [make(name, slots_used=used) for used, name in enumerate("abc")]
    assert "".join(chosen(*replicas, policy="round-robin", turn=turn) for turn in range(6)) == "abcabc"
    assert {chosen(*replicas, policy="random", seed=seed) for seed in range(40)} == {"a", "b", "c"}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_to_who_can_take_it(policy: str) -> None:
    able = [make("a"), make("b", slots_used=2)]
    unable = [make("c", model="other"), make("d", state="failed"), make("e", capabilities=("embed",))]
    for seed in range(20):
        assert chosen(*unable, *able, policy=policy, seed=seed, turn=seed) in {"a", "b"}


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(KeyError):
        choose(make("a"), policy="fastest")


# -- all slots busy --


def ours(name: str, count: int, **changes: Any) -> Replica:
    return make(name, slots_used=4, reserved=Reservation(running=count), **changes)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_our_own_calls_on_all_slots_the_request_is_held(policy: str) -> None:
    decision = choose(ours("a", 4), ours("b", 4), policy=policy)
    assert decision.hold
    assert decision.chosen is None
    assert len(decision.candidates) == 2


def test_unreported_reservations_fill_slots_too() -> None:
    sent = make("a", reserved=Reservation(calls=4, running=4))
    assert choose(sent).hold


def test_others_calls_end_without_our_knowing_so_a_short_queue_is_better() -> None:
    decision = choose(ours("a", 0), ours("b", 0, queued=1))
    assert decision.chosen is not None
    assert decision.chosen.replica.name == "a"
    assert not decision.hold


def test_but_no_queue_gets_longer_than_the_slots() -> None:
    assert choose(ours("a", 0, queued=4), ours("b", 0, queued=4)).hold


def test_of_this_nodes_own_engine_every_end_is_heard() -> None:
    assert choose(ours("a", 0), ours("here", 0, local=True)).hold


def test_a_wide_request_waits_for_as_many_slots_as_it_needs() -> None:
    busy = make("a", slots_used=2, reserved=Reservation(running=2))
    assert choose(busy, need=replace(NEED, weight=3)).hold
    assert chosen(busy, need=replace(NEED, weight=2)) == "a"
    assert chosen(make("a"), need=replace(NEED, weight=99)) == "a"


# -- the bounce --


def test_a_call_takes_along_from_when_on_it_does_better_elsewhere() -> None:
    first, second = make("first", decode=20), make("second", decode=10)
    decision = choose(first, second)
    runner_up = estimate(second, NEED).terms.total_s
    assert runner_up < decision.bounce_above_s < 1.5 * runner_up
    assert estimate(first, NEED).terms.total_s < decision.bounce_above_s
    crowded = make("first", decode=20, slots_used=4, queued=9, queued_tokens=900)
    assert estimate(crowded, NEED).terms.total_s > decision.bounce_above_s
    assert choose(first).bounce_above_s == math.inf


# -- errors fade --


def test_failures_are_forgiven_with_time_alone() -> None:
    faults = Faults()
    assert faults.rate(0.0) == 0.0
    for _ in range(20):
        faults.record(failed=True, now=10.0)
    assert faults.rate(10.0) > 0.9
    assert faults.rate(10.0 + 8 * HALF_LIFE_S) < 0.1
    assert faults.rate(5.0) <= faults.rate(10.0)  # a time that goes back is no time


def test_one_failure_is_not_a_broken_node() -> None:
    faults = Faults()
    faults.record(failed=True, now=0.0)
    assert faults.rate(0.0) == 0.5
    for _ in range(18):
        faults.record(failed=False, now=0.0)
    assert faults.rate(0.0) == 0.05


# -- explained --


def test_every_term_is_explained_in_numbers_and_in_words() -> None:
    need = replace(NEED, pinned=None)
    loaded = make(
        "a",
        slots_used=4,
        cached_tokens=60,
        rtt_s=0.02,
        error_rate=0.1,
        reserved=Reservation(calls=1, prompt_tokens=40, ended=2, running=1),
        queued_tokens=100,
    )
    rows = explain(choose(loaded, make("b", state="absent", decode=0, load_s=90.0), make("c", model="z"), need=need))
    assert json.loads(json.dumps(rows)) == rows
    first, second, third = rows
    assert first["chosen"] is True
    assert first["total_s"] == pytest.approx(
        sum(float(value) for key, value in first.items() if key.endswith("_s") and key != "total_s")
    )
    words = str(first["words"])
    for part in (
        "3 calls on 4 slots",
        "this node sent 1 since the last report, and 2 have ended",
        "work ahead of it: 1.4 s",
        "60 of 100 prompt tokens cached, the rest at 100/s: 0.400 s",
        "50 new tokens at ",
        "in a batch of 4: ",
        "round trip: 0.020 s",
        "10% of its calls failed lately: ",
    ):
        assert part in words
    assert "the model has to be loaded: 90.0 s" in str(second["words"])
    assert "not measured there yet" in str(second["words"])
    assert (third["usable"], third["reason"]) == (False, "it does not offer m")


@given(replicas=st.lists(_replicas, max_size=8), policy=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_a_decision_is_whole_and_repeatable(replicas: list[Replica], policy: str, seed: int) -> None:
    """300 cases: chosen or held, never both; all candidates shown; the same seed decides the same."""
    named = [replace(replica, peer=f"p{number}", name=f"n{number}") for number, replica in enumerate(replicas)]
    decision = choose(*named, policy=policy, seed=seed)
    assert decision == choose(*named, policy=policy, seed=seed)
    assert {one.replica.peer for one in decision.candidates} == {one.peer for one in named}
    assert (decision.chosen is not None) + decision.hold == (1 if named else 0)
    assert decision.chosen is None or decision.chosen in decision.candidates
    assert decision.reason
    explain(decision)
