"""One swarm of three real nodes for all tests here: starting it costs seconds. Tests may kill what they like of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.models import smollm2
from tests.support.nodes import Swarm, swarm

SLOTS = 14  # of `fake`
FAKE = {"backend": "fake", "slots": 8}
PACE = {"decode_tokens_per_s": 25, "answer_tokens": 40}
FAULTY = {"fault": {"crash_after_tokens": 5}}
LONG = {"decode_tokens_per_s": 25, "answer_tokens": 60}
SHARED = {
    "fake": FAKE | {"slots": SLOTS, "pinned": True, "engine": LONG},
    "smol": {"parameters": {"model": os.fspath(smollm2())}, "slots": 4, "context_size": 512, "threads": 1},
}
MODELS = {
    "a": SHARED
    | {
        "near": FAKE,
        "quick": FAKE | {"slots": 64, "engine": {"answer_tokens": 40}},  # what the slow ones say, at once
        "endless": FAKE | {"engine": {"answer_tokens": 5000}},
        "undisturbed": FAKE | {"slots": 64, "engine": {"answer_tokens": LONG["answer_tokens"]}},  # what `fake` says
    },
    "b": SHARED
    | {
        "far": FAKE | {"aliases": ["afar"]},
        "slow": FAKE | {"engine": PACE},
        "single": FAKE | {"slots": 1, "engine": {"decode_tokens_per_s": 50, "answer_tokens": 5000}},
        "pair": FAKE | {"slots": 1, "engine": {"decode_tokens_per_s": 50, "answer_tokens": 5000}},
        "frail": FAKE | {"engine": PACE | FAULTY},
        "doomed": FAKE | {"engine": FAULTY},
        "twin": FAKE | {"engine": PACE | {"says": "b" * 80}},
        "unlucky": FAKE | {"engine": {"fault": {"refuse_load": "out of luck"}}},
        "broken": FAKE | {"engine": {"fault": {"refuse_load": "no such luck"}}},
    },
    "c": SHARED
    | {
        "slow": FAKE | {"engine": PACE},
        "pair": FAKE | {"slots": 1, "engine": {"decode_tokens_per_s": 50, "answer_tokens": 5000}},
        "frail": FAKE | {"engine": PACE},
        "twin": FAKE | {"engine": PACE | {"says": "c" * 80}, "stopwords": ["other weights, as it were"]},
        "unlucky": FAKE | {"engine": {"memory_bytes": 4 << 30}},  # it loads longer: the other is asked first
        "rare": FAKE,
    },
}


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    folder = tmp_path_factory.mktemp("swarm")
    settings = {"memory_budget_bytes": str(64 << 30), "log_level": "debug"}
    with swarm(folder, MODELS, **settings) as made:
        yield made


@pytest.fixture
def three(kept: Swarm) -> Swarm:
    """Nodes `a`, `b` and `c`, all there."""
    kept.heal()
    return kept
