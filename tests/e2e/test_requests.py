"""The page Requests: the list, its filter, and why a request went where it went."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import open_page
from tests.support.nodes import RunningNode, Swarm

MARKUP = "<img src=x onerror=pwned=1>"


def ask(node: RunningNode, model: str, identity: str, **headers: str) -> None:
    """A short chat, to its end."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    with node.http as client:
        client.post(
            "/v1/chat/completions", json=body, headers={"X-Correlation-ID": identity, **headers}
        ).raise_for_status()


def rows(page: Page) -> Any:
    return page.locator("table.requests tbody tr")


def test_a_requests_explanation_opens(browser: Browser, three: Swarm) -> None:
    ask(three["alpha"], "fake", "why/that one?")
    with open_page(browser, three["alpha"], "#/requests") as page:
        row = rows(page).filter(has=page.get_by_title("why/that one?"))
        expect(row).to_contain_text("answered")
        row.get_by_role("link").click()
        expect(page.get_by_role("heading", name="Why there")).to_be_visible()
        candidates = page.locator("table.candidates tbody tr")
        expect(candidates).to_have_count(3)
        expect(candidates.filter(has_text="chosen")).to_have_count(1)
        for name in ("alpha", "bravo", "charlie"):
            expect(candidates.filter(has_text=name).locator(".bar span")).not_to_have_count(0)
        expect(page.get_by_role("heading", name="On the way")).to_be_visible()
        page.get_by_text("events in words").click()
        words = page.get_by_role("region", name="Events")
        expect(words).to_contain_text("first chunk")
        page.reload()  # the address is the request's
        expect(page.locator("code").filter(has_text="why/that one?")).to_be_visible()
        page.get_by_role("link", name="All requests").click()
        expect(rows(page).first).to_be_visible()


def test_new_requests_appear_and_the_filter_finds_them(browser: Browser, three: Swarm) -> None:
    ask(three["alpha"], "fake", "before")
    with open_page(browser, three["alpha"], "#/requests") as page:
        expect(rows(page).filter(has=page.get_by_title("before"))).to_be_visible()
        ask(three["alpha"], "far", "after")
        expect(rows(page).first).to_contain_text("far")
        page.get_by_role("searchbox").fill("after")
        expect(rows(page)).to_have_count(1)
        page.get_by_label("Filter by outcome").select_option("failed")
        expect(page.get_by_role("heading", name="No request is like that")).to_be_visible()


def test_a_request_that_nobody_remembers(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/requests/no-such-request") as page:
        expect(page.get_by_role("alert")).to_contain_text("does not remember")


def test_markup_in_a_models_name_stays_text(browser: Browser, three: Swarm) -> None:
    """No catalog takes such a name, but a client may ask for it, and a foreign node say it."""
    body = {"model": MARKUP, "messages": [{"role": "user", "content": "Hello"}]}
    with three["alpha"].http as client:
        headers = {"X-Correlation-ID": "<b>marked</b>"}
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 404
    with open_page(browser, three["alpha"], "#/requests") as page:
        row = rows(page).filter(has_text=MARKUP)
        expect(row).to_contain_text("model missing")
        row.get_by_role("link").click()
        expect(page.get_by_text("<b>marked</b>")).to_be_visible()
        expect(page.get_by_text(MARKUP, exact=True).first).to_be_visible()
        assert page.evaluate("typeof pwned") == "undefined"
        assert page.locator("main img").count() == 0


def test_an_answer_that_is_an_error_is_told(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/swarm") as page:
        expect(page.locator(".topology a.dot")).to_have_count(3)  # connected: nothing else is read again by itself
        page.route("**/api/mesh/requests?*", lambda route: route.fulfill(status=500, body="<h1>no</h1>"))
        page.goto("/#/requests")
        expect(page.get_by_role("alert").filter(has_text="status 500")).to_be_visible()
        page.unroute("**/api/mesh/requests?*")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("alert").filter(has_text="status 500")).to_have_count(0)
