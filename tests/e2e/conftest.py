"""One browser and one swarm of three real nodes for all tests here. Tests may kill what they like of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from api.dashboard import files
from tests.e2e.browser import PATIENCE_MS, executable, running_browser
from tests.support.nodes import Swarm, swarm

FAKE = {"backend": "fake", "slots": 4, "engine": {"decode_tokens_per_s": 30, "answer_tokens": 60}}
LONG = FAKE | {"engine": {"decode_tokens_per_s": 30, "answer_tokens": 5000}}
MODELS = {
    "alpha": {"fake": FAKE | {"pinned": True}},
    "bravo": {"fake": FAKE, "far": FAKE, "long": LONG},
    "charlie": {"fake": FAKE, "long": LONG},
}


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The system's Chromium. Not for longer than the tests here: Playwright keeps a loop in this thread."""
    if executable() is None:
        pytest.skip("Chromium is not installed: the dashboard is NOT tested in a browser here")
    if not files.built():
        pytest.skip("the dashboard is not built (`make run` builds it): it is NOT tested in a browser here")
    expect.set_options(timeout=PATIENCE_MS)
    with running_browser() as found:
        yield found


@pytest.fixture(scope="package")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with swarm(tmp_path_factory.mktemp("e2e"), MODELS) as made:
        yield made


@pytest.fixture
def three(browser: Browser, kept: Swarm) -> Swarm:
    """Nodes `alpha`, `bravo` and `charlie`, all there."""
    kept.heal()
    return kept
