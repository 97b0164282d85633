"""The system's Chromium, driven by Playwright, and what every page of it is held to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.support.nodes import RunningNode

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_MACOS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
PATIENCE_MS = 30_000
"""Of an expectation. Generous: it only bounds a test that would hang."""


def executable() -> str | None:
    """Where Chromium is; None on a machine without one."""
    found = (path for name in _NAMES if (path := shutil.which(name)))
    return next(found, None) or next((path for path in _MACOS if Path(path).exists()), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A Chromium that ends with the block."""
    path = executable()
    assert path is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """What a page must never do: fail, break its own rules, or ask anybody but its node."""

    def __init__(self, page: Page, node: RunningNode) -> None:
        self._url = node.url
        self.failures: list[str] = []
        page.on("pageerror", lambda error: self.failures.append(f"error: {error}"))
        page.on("console", self._on_console)
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        # Chromium reports answers of 4xx and lost connections by itself: those are the page's to handle.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.failures.append(f"console: {message.text}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self._url, "blob:", "data:")):
            self.failures.append(f"asked elsewhere: {request.url}")


@contextmanager
def open_page(browser: Browser, node: RunningNode, path: str = "#/swarm", **options: Any) -> Iterator[Page]:
    """The dashboard of `node` in a fresh profile, with `options` of the context; at the end, that it has behaved."""
    context = browser.new_context(base_url=node.url, **options)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    watched = Watched(page, node)
    try:
        page.goto(f"/{path}")
        yield page
        assert watched.failures == []
    finally:
        context.close()
