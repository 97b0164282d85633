"""Moving averages of what batches took."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.chat.gain import Gain
from backends.llama_cpp.rates import Rates


def note(rates: Rates, *, prompt: int = 0, decoding: int = 0, seconds: float = 1.0, times: int = 1) -> Rates:
    for _ in range(times):
        rates.note(prompt_tokens=prompt, decoding=decoding, seconds=seconds)
    return rates


def test_nothing_measured_is_zero() -> None:
    rates = Rates()
    assert (rates.prefill_tokens_per_s, rates.decode_tokens_per_s, rates.decode_batch) == (0, 0, 0)


def test_the_first_measurement_counts_whole_and_later_ones_move_it() -> None:
    rates = note(Rates(), decoding=4, seconds=0.1)
    assert (rates.decode_tokens_per_s, rates.decode_batch) == pytest.approx((40, 4))
    note(rates, decoding=8, seconds=0.1)
    assert 40 < rates.decode_tokens_per_s < 50
    note(rates, decoding=8, seconds=0.1, times=200)
    assert (rates.decode_tokens_per_s, rates.decode_batch) == pytest.approx((80, 8))


def test_prompts_alone() -> None:
    rates = note(Rates(), prompt=500, seconds=0.5)
    assert rates.prefill_tokens_per_s == pytest.approx(1000)
    assert rates.decode_tokens_per_s == 0


def test_in_a_mixed_batch_the_decoding_part_is_not_the_prompts() -> None:
    rates = note(Rates(), decoding=4, seconds=0.2)
    note(rates, prompt=100, decoding=4, seconds=1.2)
    assert rates.prefill_tokens_per_s == pytest.approx(100)
    assert rates.decode_tokens_per_s == pytest.approx(20), "a mixed batch says nothing of decoding"


def test_what_says_nothing_is_left_out() -> None:
    rates = note(Rates(), decoding=4, seconds=1.0)
    note(rates, prompt=3, seconds=1.0)  # fixed costs
    note(rates, prompt=100, decoding=4, seconds=1.0)  # as long as the decoding alone
    note(rates, prompt=100, seconds=0.0)  # a clock that did not move
    note(rates, seconds=1.0)
    assert rates.prefill_tokens_per_s == 0
    assert rates.decode_tokens_per_s == 4


def test_the_gain_of_a_batch_is_known_once_two_sizes_were_seen_often_enough() -> None:
    rates = note(Rates(), decoding=2, seconds=0.1, times=50)
    assert rates.decode_gain == 0, "one size says nothing of the slope"
    note(rates, decoding=3, seconds=0.1, times=50)
    assert rates.decode_gain == 0, "nor do two that hardly differ"
    note(rates, decoding=8, seconds=0.2, times=5)
    assert rates.decode_gain == 0, "nor a handful of steps"


@pytest.mark.parametrize("gain", [0.0, 0.2, 0.8, 1.0, 1.3])
def test_the_gain_is_that_of_the_steps(gain: float) -> None:
    """Noise of a tenth, sizes in any order, the first step of each ten times as slow."""
    rates, rng = Rates(), random.Random(1)
    for batch in (1, 4, 8, 2):
        step_s = 0.02 * batch ** (1 - gain)
        note(rates, decoding=batch, seconds=10 * step_s)
        for _ in range(60):
            note(rates, decoding=batch, seconds=step_s * rng.uniform(0.9, 1.1))
    assert rates.decode_gain == pytest.approx(min(1.0, max(0.01, gain)), abs=0.06)


def test_the_gain_follows_an_engine_that_changes() -> None:
    rates = Rates()
    for slower in (1, 4):
        for batch in (1, 8):
            note(rates, decoding=batch, seconds=0.02 * slower ** (batch > 1), times=100)
    assert rates.decode_gain == pytest.approx(1 - math.log(4) / math.log(8), abs=0.02)


def test_the_sizes_that_are_kept_are_bounded() -> None:
    gain = Gain()
    for batch in range(1, 2000):
        gain.note(batch, 0.1)
    assert gain.sizes == 256


SECONDS = st.floats(1e-9, 100) | st.sampled_from([-1.0, 0.0])


@given(st.lists(st.tuples(st.integers(0, 512), st.integers(0, 256), SECONDS), max_size=30))
def test_rates_are_never_negative_nor_endless(batches: list[tuple[int, int, float]]) -> None:
    rates = Rates()
    for prompt, decoding, seconds in batches:
        rates.note(prompt_tokens=prompt, decoding=decoding, seconds=seconds)
        for rate in (rates.prefill_tokens_per_s, rates.decode_tokens_per_s, rates.decode_batch, rates.decode_gain):
            assert rate >= 0
