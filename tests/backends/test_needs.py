"""What a model will take, from its header alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llama_cpp.gguf import Header
from backends.llama_cpp.needs import MAX_AUTO_CONTEXT_TOKENS, MAX_SLOTS, capabilities, estimate
from backends.types import Capability, LoadFailed, LoadSpec, OutOfMemory

GIB = 1 << 30
SMALL: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 2048,
    "llama.embedding_length": 576,
    "llama.block_count": 30,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "tokenizer.chat_template": "{{ messages }}",
}
KV_BYTES = 30 * 3 * (64 + 64) * 2  # layers, KV heads, key and value of a head, f16
BERT = {"general.architecture": "bert", "bert.pooling_type": 1, "bert.context_length": 512}


def header(metadata: dict[str, Any] | None = None, *, file_bytes: int = 100 << 20) -> Header:
    return Header(SMALL if metadata is None else metadata, {}, 1, 32, file_bytes)


def load(**options: Any) -> LoadSpec:
    return LoadSpec(name="m", **options)


def test_unasked_it_is_generous_within_bounds() -> None:
    needs = estimate(header(), load())
    assert (needs.slots, needs.context_tokens) == (8, 2048)
    assert needs.memory_bytes == pytest.approx((100 << 20) + KV_BYTES * 2048 * 9, rel=0.5)


def test_a_long_context_costs_slots() -> None:
    needs = estimate(header(SMALL | {"llama.context_length": 131072}), load())
    assert needs.context_tokens == MAX_AUTO_CONTEXT_TOKENS
    assert needs.slots == 4


def test_what_is_asked_for_is_kept() -> None:
    needs = estimate(header(), load(slots=3, context_tokens=1000))
    assert (needs.slots, needs.context_tokens) == (3, 1024), "llama.cpp pads a sequence's context"
    assert estimate(header(), load(slots=999, context_tokens=16)).slots == MAX_SLOTS


def test_a_smaller_cache_is_counted() -> None:
    plain, small = (
        estimate(header(), load(slots=8, context_tokens=2048, engine=engine)).memory_bytes
        for engine in ({}, {"cache_type": "q8_0"})
    )
    assert plain - small == pytest.approx(KV_BYTES * 2048 * 9 * (1 - 17 / 32), rel=0.01)


def test_it_shrinks_to_the_budget() -> None:
    free = estimate(header(), load())
    tight = estimate(header(), load(memory_bytes=free.memory_bytes * 2 // 3))
    assert tight.memory_bytes <= free.memory_bytes * 2 // 3
    assert tight.slots < free.slots


def test_too_large_even_so() -> None:
    with pytest.raises(OutOfMemory, match=r"Model m needs .* GiB .* the memory budget is 0\.05 GiB") as caught:
        estimate(header(), load(memory_bytes=50 << 20))
    assert "smaller quantisation" in caught.value.message


@pytest.mark.parametrize(
    ("metadata", "template", "can"),
    [
        (SMALL, None, {"chat", "completion", "embedding", "tokenize"}),
        ({"general.architecture": "llama"}, None, {"completion", "embedding", "tokenize"}),
        ({"general.architecture": "llama"}, "{{ messages }}", {"chat", "completion", "embedding", "tokenize"}),
        (BERT, None, {"embedding", "tokenize"}),
        ({"general.architecture": "bert", "bert.attention.causal": False}, None, {"embedding", "tokenize"}),
    ],
)
def test_capabilities(metadata: dict[str, Any], template: str | None, can: set[str]) -> None:
    assert set(capabilities(header(metadata), load(chat_template=template))) == {Capability(name) for name in can}


def test_eyes_are_a_capability_and_cost_memory(tmp_path: Path) -> None:
    mmproj = tmp_path / "mmproj.gguf"
    with mmproj.open("wb") as file:
        file.truncate(64 << 20)
    blind, seeing = (estimate(header(), load(slots=1, mmproj=path)) for path in ("", str(mmproj)))
    assert Capability.VISION in seeing.capabilities
    assert Capability.VISION not in blind.capabilities
    assert seeing.memory_bytes > blind.memory_bytes + (64 << 20)
    with pytest.raises(LoadFailed, match="mmproj"):
        estimate(header(), load(mmproj=str(tmp_path / "none")))


def test_an_encoder_has_no_cache() -> None:
    small, large = (estimate(header(BERT), load(slots=slots)).memory_bytes for slots in (1, 8))
    assert small == large


NUMBERS = st.one_of(
    st.integers(0, 4096), st.sampled_from([-(2**63), -1, 0, 2**31, 2**64 - 1]), st.booleans(), st.floats(), st.just("x")
)
KEYS = [*SMALL, "llama.attention.key_length", "llama.attention.causal", "llama.pooling_type"]


@given(
    lies=st.dictionaries(
        st.sampled_from([key for key in KEYS if key.startswith("llama.")]),
        NUMBERS | st.lists(st.integers(-(2**31), 2**31), max_size=4).map(tuple),
    ),
    budget=st.none() | st.integers(0, 64 * GIB),
    slots=st.none() | st.integers(1, 300),
    context=st.none() | st.integers(16, 1 << 20),
)
def test_no_header_makes_it_underestimate(
    lies: dict[str, Any], budget: int | None, slots: int | None, context: int | None
) -> None:
    """Whatever a file says: more than its own size, some slots of some context, and never over the budget."""
    try:
        needs = estimate(header(SMALL | lies), load(memory_bytes=budget, slots=slots, context_tokens=context))
    except OutOfMemory:
        assert budget is not None
        return
    assert needs.memory_bytes > 100 << 20
    assert budget is None or needs.memory_bytes <= budget
    assert 1 <= needs.slots <= MAX_SLOTS
    assert needs.context_tokens >= 1
    assert math.isfinite(needs.memory_bytes)
