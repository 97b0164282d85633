"""Which sequence of the KV cache a prompt gets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.llama_cpp.slots import Slots, Taken, common_prefix

WORDS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def answered(slots: Slots, prompt: list[int], answer: list[int] | None = None) -> Taken:
    """A whole call."""
    taken = slots.take(prompt)
    assert taken is not None
    slots.release(taken.slot, [*prompt, *(answer or [])], aligned=len(prompt) - len(prompt) % 8)
    return taken


def test_the_next_turn_finds_its_conversation() -> None:
    slots = Slots(3)
    first, other = list(range(100)), list(range(500, 600))
    answered(slots, first, [7, 8])
    answered(slots, other)
    assert answered(slots, [*first, 7, 8, 9]) == (0, 102)
    assert answered(slots, [*other, 1]) == (1, 100)


def test_the_last_token_is_always_processed() -> None:
    slots = Slots(1)
    prompt = list(range(20))
    answered(slots, prompt)
    assert answered(slots, prompt) == (0, 19)


def test_a_short_common_beginning_does_not_take_a_long_conversation() -> None:
    slots = Slots(2)
    conversation = [1, 2, *range(100, 200)]
    answered(slots, conversation)
    assert answered(slots, [1, 2, *range(300, 350)]).slot == 1
    assert answered(slots, [*conversation, 5]) == (0, 102)


def test_the_longest_unused_is_given_up_first() -> None:
    slots = Slots(2)
    answered(slots, [1] * 10)
    answered(slots, [2] * 10)
    answered(slots, [1] * 11)
    assert answered(slots, [3] * 10).slot == 1


def test_all_taken() -> None:
    slots = Slots(1)
    taken = slots.take([1])
    assert taken is not None
    assert (slots.used, slots.count) == (1, 1)
    assert slots.take([1]) is None
    assert slots.reserve() is None
    slots.release(taken.slot, [1])
    assert slots.reserve() == 0


def test_an_unused_reservation_loses_nothing() -> None:
    slots = Slots(1)
    answered(slots, [1, 2, 3, 4])
    reserved = slots.reserve()
    assert reserved == 0
    slots.release(reserved, None)
    assert answered(slots, [1, 2, 3, 4, 5]) == (0, 4)


def test_a_lost_cache_is_not_found_again() -> None:
    slots = Slots(1)
    taken = answered(slots, [1, 2, 3])
    slots.lost(taken.slot)
    assert answered(slots, [1, 2, 3, 4]) == (0, 0)


def test_without_reuse_nothing_is_taken_over() -> None:
    slots = Slots(1)
    answered(slots, [1, 2, 3])
    assert slots.take([1, 2, 3, 4], reuse=False) == (0, 0)


def test_in_exact_mode_only_whole_chunks_of_a_prompt() -> None:
    slots = Slots(1, chunk=8)
    prompt = list(range(20))
    answered(slots, prompt, list(range(100, 120)))  # the answer was processed token by token
    assert answered(slots, [*prompt, *range(100, 120), 1]) == (0, 16)
    assert answered(slots, prompt[:16]) == (0, 8), "its last token must be processed, and with it its chunk"


@given(WORDS, WORDS)
def test_common_prefix(left: list[int], right: list[int]) -> None:
    size = common_prefix(left, right)
    assert left[:size] == right[:size]
    assert size == min(len(left), len(right)) or left[size] != right[size]


class SlotsMachine(RuleBasedStateMachine):
    """Keeps the books on what is really in each sequence's cache."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3)
        self.cache: dict[int, list[int]] = {}
        self.taken: dict[int, list[int]] = {}

    @rule(prompt=WORDS, reuse=st.booleans())
    def take(self, prompt: list[int], reuse: bool) -> None:
        taken = self.slots.take(prompt, reuse=reuse)
        assert (taken is None) == (len(self.taken) == 3)
        if taken is None:
            return
        assert taken.slot not in self.taken
        assert 0 <= taken.cached < len(prompt)
        assert reuse or not taken.cached
        assert self.cache.get(taken.slot, [])[: taken.cached] == prompt[: taken.cached], "what is said to be there is"
        self.cache[taken.slot] = prompt[: taken.cached]
        self.taken[taken.slot] = prompt

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), answer=WORDS)
    def release(self, data: st.DataObject, answer: list[int]) -> None:
        slot = data.draw(st.sampled_from(sorted(self.taken)))
        tokens = [*self.taken.pop(slot), *answer]
        processed = data.draw(st.integers(0, len(tokens)))  # a cancelled call stops anywhere
        self.cache[slot] = tokens[:processed]
        self.slots.release(slot, tokens[:processed])

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.taken)))
        self.cache[slot] = []
        self.slots.lost(slot)

    @rule()
    def reserve_in_vain(self) -> None:
        slot = self.slots.reserve()
        assert (slot is None) == (len(self.taken) == 3)
        if slot is not None:
            assert slot not in self.taken
            self.slots.release(slot, None)

    @invariant()
    def counts(self) -> None:
        assert self.slots.used == len(self.taken)


TestSlotsMachine = SlotsMachine.TestCase
