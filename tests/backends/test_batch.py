"""What goes into the next batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.batch import (
    ECHO_TOKENS,
    EXACT_CHUNK_TOKENS,
    MIN_PROMPT_TOKENS,
    STALL_S,
    Pending,
    Share,
    plan,
    plan_exact,
)

BATCH = 64


def decoding(slot: int) -> Pending:
    return Pending(slot, 1, decoding=True)


def prompt(slot: int, tokens: int, *, every_logit: bool = False) -> Pending:
    return Pending(slot, tokens, decoding=False, every_logit=every_logit)


def planned(*pending: Pending, rate: float = 0.0) -> list[Share]:
    return plan(pending, batch_tokens=BATCH, prefill_tokens_per_s=rate)


def test_a_prompt_alone_fills_the_batch() -> None:
    assert planned(prompt(0, 1000), rate=10.0) == [(0, BATCH)]


def test_those_who_decode_go_first_and_come_in_order_of_slots() -> None:
    assert planned(prompt(3, 1000), decoding(5), decoding(1)) == [(1, 1), (3, BATCH - 2), (5, 1)]


def test_a_prompt_in_company_is_held_to_what_the_pause_allows() -> None:
    rate = 100.0
    assert planned(decoding(0), prompt(1, 1000), rate=rate) == [(0, 1), (1, int(rate * STALL_S))]
    assert planned(decoding(0), prompt(1, 1000), rate=1.0) == [(0, 1), (1, MIN_PROMPT_TOKENS)], "but it gets on"


def test_prompts_come_in_order_of_arrival() -> None:
    assert planned(prompt(2, 50), prompt(0, 50), prompt(1, 50)) == [(0, 14), (2, 50)]


def test_one_prompt_with_all_its_logits_a_step() -> None:
    assert planned(prompt(0, 50, every_logit=True), prompt(1, 5)) == [(0, ECHO_TOKENS)]
    assert planned(prompt(1, 5), prompt(0, 50, every_logit=True)) == [(0, ECHO_TOKENS), (1, 5)]


PENDING = st.lists(
    st.builds(
        lambda tokens, decodes, every: (1 if decodes else tokens, decodes, every and not decodes),
        st.integers(1, 300),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(PENDING, st.permutations(range(40)), st.floats(0, 1e5))
def test_any_batch(items: list[tuple[int, bool, bool]], slots: list[int], rate: float) -> None:
    pending = [Pending(slot, *item) for slot, item in zip(slots, items, strict=False)]
    shares = planned(*pending, rate=rate)
    by_slot = {item.slot: item for item in pending}
    assert shares, "something always gets on"
    assert [share.slot for share in shares] == sorted({share.slot for share in shares})
    assert sum(share.tokens for share in shares) <= BATCH
    assert all(1 <= share.tokens <= by_slot[share.slot].tokens for share in shares)
    served = {share.slot for share in shares}
    assert all(item.slot in served for item in pending if item.decoding), "nobody's answer is passed over"
    logits = sum(share.tokens for share in shares if by_slot[share.slot].every_logit)
    assert logits <= ECHO_TOKENS


@given(st.integers(1, 400), st.integers(0, 400), st.booleans())
def test_exact_steps_depend_on_the_position_alone(length: int, cached_chunks: int, every_logit: bool) -> None:
    """However a prompt has come to a position, its chunks end where they would have ended anyway."""
    position = min(cached_chunks * EXACT_CHUNK_TOKENS, (length - 1) // EXACT_CHUNK_TOKENS * EXACT_CHUNK_TOKENS)
    ends = []
    while position < length + 3:
        pending = [Pending(9, length + 3 - position, decoding=position >= length, every_logit=every_logit)]
        share = plan_exact(pending, last=0, position=position, prompt_tokens=length)
        assert share.slot == 9
        position += share.tokens
        ends.append(position)
    assert ends[-3:] == [length + 1, length + 2, length + 3], "the answer is processed token by token"
    step = ECHO_TOKENS if every_logit else EXACT_CHUNK_TOKENS
    assert all(end % step == 0 for end in ends[:-4])
    assert ends[-4] == length
