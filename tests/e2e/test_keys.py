"""API keys: asked for when the node wants one, and again when it is revoked, without losing the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.e2e.browser import open_page
from tests.e2e.conftest import FAKE
from tests.support.nodes import RunningNode, swarm

KEY, OTHER = "first-key", "second-key"


@pytest.fixture(scope="module")
def locked(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that wants a key."""
    folder = tmp_path_factory.mktemp("locked")
    with swarm(folder, {"locked": {"fake": FAKE}}, api_keys=f"{KEY},{OTHER}") as made:
        yield made["locked"]


def give(page: Page, key: str, *, keep: bool = False) -> None:
    """Answer the prompt."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key", exact=True).fill(key)
    if keep:
        dialog.get_by_role("checkbox").check()
    dialog.get_by_role("button", name="Use key").click()


def test_the_key_is_asked_for_and_kept_for_the_tab(browser: Browser, locked: RunningNode) -> None:
    with open_page(browser, locked) as page:
        expect(page.get_by_role("dialog")).to_contain_text("asks for an API key")
        give(page, "wrong")
        expect(page.get_by_role("dialog")).to_contain_text("no longer, accepted")
        give(page, KEY)
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.locator(".topology a.dot")).to_have_count(1)
        page.reload()
        expect(page.locator(".topology a.dot")).to_have_count(1)
        assert page.evaluate("localStorage.length") == 0
        assert KEY not in page.content()


def test_a_key_that_is_to_be_kept(browser: Browser, locked: RunningNode) -> None:
    with open_page(browser, locked) as page:
        give(page, KEY, keep=True)
        expect(page.locator(".topology a.dot")).to_have_count(1)
        with page.context.expect_page() as opened:
            page.evaluate("open(location.href, '_blank', 'noopener')")
        expect(opened.value.locator(".topology a.dot")).to_have_count(1)
        page.get_by_role("button", name="Forget the API key").click()
        page.reload()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_without_a_key_the_page_says_so_and_waits(browser: Browser, locked: RunningNode) -> None:
    with open_page(browser, locked) as page:
        page.get_by_role("button", name="Not now").click()
        expect(page.get_by_role("alert")).to_contain_text("asks for an API key")
        page.get_by_role("button", name="Enter key").click()
        give(page, KEY)
        expect(page.locator(".topology a.dot")).to_have_count(1)
        expect(page.get_by_role("alert")).to_have_count(0)


def test_a_key_revoked_in_mid_session(browser: Browser, locked: RunningNode) -> None:
    revoked = False

    def forward(route: Route) -> None:
        """As if the node had been started anew without the first key."""
        headers = dict(route.request.headers)
        if revoked and headers.get("authorization") == f"Bearer {KEY}":
            headers["authorization"] = "Bearer revoked"
        route.continue_(headers=headers)

    with open_page(browser, locked) as page:
        page.route("**/api/**", forward)
        give(page, KEY)
        expect(page.locator(".topology a.dot")).to_have_count(1)
        page.get_by_role("link", name="Add", exact=True).click()
        page.get_by_role("button", name="This machine").click()
        revoked = True
        page.get_by_role("button", name="Show token").click()
        expect(page.get_by_role("dialog")).to_contain_text("no longer, accepted")
        give(page, OTHER)
        expect(page.get_by_role("button", name="Hide token")).to_be_visible()
        expect(page.locator(".steps")).to_contain_text("--port 8081")  # the page is where it was
