"""The `engine:` tables that only a backend reads: a mistake is named before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from backends import fake, llama_cpp
from backends.fake.settings import read_settings as read_fake
from backends.llama_cpp.needs import _KV_ELEMENT_BYTES
from backends.llama_cpp.settings import CACHE_TYPES
from backends.llama_cpp.settings import read_settings as read_llama
from backends.types import LoadFailed, LoadSpec
from tests.support.models import smollm2


def test_defaults() -> None:
    assert read_llama({}).cache_type is None
    assert read_fake({}).decode_tokens_per_s == 0


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_every_cache_type_is_known_to_both_who_need_it(name: str) -> None:
    assert read_llama({"cache_type": name}).cache_type == name
    assert name in _KV_ELEMENT_BYTES


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"cache_type": "f8"}, "cache_type"),
        ({"cache_type": 7}, "cache_type"),
        ({"threads_batch": "many"}, "threads_batch"),
        ({"threads_batch": 0}, "threads_batch"),
        ({"thread_batch": 2}, "thread_batch"),
        ({"fault": {}}, "fault"),
    ],
)
def test_a_mistake_in_llama_cpps(table: dict[str, Any], complaint: str) -> None:
    load = LoadSpec(name="m", path=str(smollm2()), engine=table)
    with pytest.raises(LoadFailed, match=rf"`engine:` table of a llama-cpp model is wrong: .*{complaint}"):
        llama_cpp.backend.needs(load)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"load_s": "long"}, "load_s"),
        ({"decode_tokens_per_s": None}, "decode_tokens_per_s"),
        ({"fault": 7}, "fault"),
        ({"fault": {"crash_after_tokens": 1.5}}, r"fault\.crash_after_tokens"),
        ({"fault": {"crash": 1}}, "crash"),
        ({"speed": 1}, "speed"),
    ],
)
def test_a_mistake_in_the_fakes(table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LoadFailed, match=rf"`engine:` table of a fake model is wrong: .*{complaint}"):
        fake.backend.needs(LoadSpec(name="m", engine=table))


def test_a_model_without_a_file() -> None:
    with pytest.raises(LoadFailed, match=r"parameters\.model"):
        llama_cpp.backend.needs(LoadSpec(name="m"))
