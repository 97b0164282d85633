"""Hash chains and the index of who has which conversation cached."""

from __future__ import annotations

import random
from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.prefix import BLOCK_CHARS, FADE_S, MAX_BLOCKS, MAX_PEERS, PrefixIndex, canonical, hash_chain


def text(seed: int, blocks: int) -> str:
    return random.Random(seed).randbytes(blocks * BLOCK_CHARS // 2).hex()


def chain(seed: int, blocks: int) -> tuple[int, ...]:
    return hash_chain(text(seed, blocks), seed="d")


@given(common=st.text(max_size=1000), one=st.text(max_size=500), other=st.text(max_size=500))
@settings(max_examples=300, deadline=None)
def test_chains_share_exactly_the_blocks_that_the_texts_share(common: str, one: str, other: str) -> None:
    """300 cases."""
    first, second = common + one, common + other
    chains = hash_chain(first, seed="d"), hash_chain(second, seed="d")
    shared = 0
    while shared < len(first) and shared < len(second) and first[shared] == second[shared]:
        shared += 1
    same = sum(a == b for a, b in zip(*chains, strict=False))
    assert same == min(shared // BLOCK_CHARS, len(chains[0]), len(chains[1]))


def test_a_block_counts_only_behind_the_same_beginning() -> None:
    tail = text(1, 3)
    assert not set(hash_chain("x" * BLOCK_CHARS + tail, seed="d")) & set(hash_chain("y" * BLOCK_CHARS + tail, seed="d"))
    assert not set(hash_chain(tail, seed="d")) & set(hash_chain(tail, seed="e"))


def test_chains_are_bounded() -> None:
    assert len(hash_chain("a" * BLOCK_CHARS * (MAX_BLOCKS + 5), seed="d")) == MAX_BLOCKS
    assert hash_chain("a" * (BLOCK_CHARS - 1), seed="d") == ()
    assert hash_chain("a" * BLOCK_CHARS, seed="d") == hash_chain("a" * (BLOCK_CHARS + 1), seed="d")
    assert hash_chain("\ud800" * BLOCK_CHARS, seed="d")  # half a surrogate pair, as JSON may hold it


def test_a_conversation_grows_at_its_end_and_cannot_be_cut_elsewhere() -> None:
    turn = [("user", "hello"), ("assistant", "hi")]
    assert canonical([*turn, ("user", "more")]).startswith(canonical(turn))
    assert canonical([("user", "a"), ("user", "b")]) != canonical([("user", "ab")])


def test_a_longer_prompt_is_cached_as_far_as_the_peer_knows_it() -> None:
    index = PrefixIndex()
    whole = chain(1, 10)
    index.note("p", whole[:4], 0.0)
    index.note("q", whole[:8], 0.0)
    index.note("r", chain(2, 10), 0.0)
    cached = index.cached(whole, 1050, 1.0)
    assert cached == {"p": 400, "q": 800}
    assert index.cached(chain(3, 10), 1000, 1.0) == {}
    assert index.cached((), 1000, 1.0) == {}


def test_of_a_prompt_longer_than_its_chain_only_the_chain_counts() -> None:
    index = PrefixIndex()
    whole = tuple(range(MAX_BLOCKS))
    index.note("p", whole, 0.0)
    assert index.cached(whole, 10 * MAX_BLOCKS * BLOCK_CHARS, 1.0) == {"p": MAX_BLOCKS * BLOCK_CHARS // 4}


def test_the_unused_fades_and_the_used_does_not() -> None:
    index = PrefixIndex()
    index.note("p", chain(1, 4), 0.0)
    index.note("q", chain(1, 4), FADE_S - 1)
    assert set(index.cached(chain(1, 4), 100, FADE_S)) == {"q"}


def test_a_peer_that_died_has_nothing() -> None:
    index = PrefixIndex()
    index.note("p", chain(1, 4), 0.0)
    index.note("q", chain(1, 2), 0.0)
    index.forget("p")
    assert set(index.cached(chain(1, 4), 100, 1.0)) == {"q"}
    assert len(index) == 2


def test_of_a_chain_too_long_to_keep_the_beginning_is_kept() -> None:
    index = PrefixIndex(limit=10)
    index.note("p", chain(1, 20), 0.0)
    assert index.cached(chain(1, 20), 2050, 1.0) == {"p": 1000}


@given(notes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 20)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_index_is_bounded_and_keeps_beginnings_before_ends(notes: list[tuple[int, int, int]]) -> None:
    """100 cases."""
    index = PrefixIndex(limit=40)
    for now, (conversation, peer, blocks) in enumerate(notes):
        index.note(f"p{peer}", chain(conversation, 20)[:blocks], float(now))
        assert len(index) <= 40
    if notes and notes[-1][2]:
        conversation, peer, blocks = notes[-1]
        found = index.cached(chain(conversation, 20)[:blocks], 1000, float(len(notes)))
        assert found[f"p{peer}"] == int(1000 * blocks / (blocks + 0.5))
        assert len(found) <= MAX_PEERS


class Cache:
    """What a peer really keeps: so many conversations, the oldest of them goes."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held: OrderedDict[int, int] = OrderedDict()  # conversation -> blocks

    def take(self, conversation: int, blocks: int) -> int:
        """Serve a prompt; returns how many of its blocks were there."""
        there = min(blocks, self.held.pop(conversation, 0))
        self.held[conversation] = blocks
        if len(self.held) > self.slots:
            self.held.popitem(last=False)
        return there


def measure(*, conversations: int, slots: int, learn: bool) -> tuple[float, float]:
    """Of what the index expected of one peer's cache: the share that was not there. And expected over there, in all."""
    rng = random.Random(4)
    index, cache = PrefixIndex(), Cache(slots)
    turns = dict.fromkeys(range(conversations), 0)
    expected = false = there = 0
    for now in range(1500):
        conversation = rng.randrange(conversations)
        # After its tenth turn, somebody starts it again from the top.
        turns[conversation] = turns[conversation] % 10 + 1
        prompt = chain(conversation, 40)[: 4 * turns[conversation]]
        tokens = 32 * len(prompt)
        says = index.cached(prompt, tokens, float(now)).get("p", 0)
        really = 32 * cache.take(conversation, len(prompt))
        index.note("p", prompt, float(now))
        if learn:
            index.observed("p", says, really)
        if now >= 500:
            expected, there, false = expected + says, there + really, false + max(0, says - really)
    return false / expected, expected / there


def test_false_hits_are_rare_while_the_cache_holds_what_is_asked_of_it() -> None:
    """1000 prompts of 8 conversations on 8 slots. What is false: the ends of conversations that began again."""
    false, ratio = measure(conversations=8, slots=8, learn=True)
    assert false < 0.05
    assert 0.9 < ratio < 1.05


def test_of_a_cache_that_is_too_small_no_more_is_expected_than_it_gives() -> None:
    """1000 prompts of 30 conversations on 8 slots: the index alone would expect four times what is there."""
    false, ratio = measure(conversations=30, slots=8, learn=False)
    assert false > 0.6
    assert ratio > 3
    _, ratio = measure(conversations=30, slots=8, learn=True)
    assert 0.5 < ratio < 1.5


def test_the_factor_follows_what_answers_tell_both_ways() -> None:
    index = PrefixIndex()
    whole = chain(1, 10)
    index.note("p", whole, 0.0)

    def says() -> int:
        return index.cached(whole, 1050, 1.0)["p"]

    assert says() == 1000
    for _ in range(50):
        index.observed("p", says(), 0)
    assert says() == 50  # never nothing: or it could not learn the contrary
    for _ in range(50):
        index.observed("p", says(), 1000)
    assert says() >= 950
    index.observed("p", 0, 0)  # nothing was expected: nothing to learn
    assert says() >= 950
