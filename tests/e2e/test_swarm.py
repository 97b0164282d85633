"""The page Swarm and the frame around it, when nodes come, go, fall silent, or are called strange names."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.e2e.browser import open_page
from tests.support.nodes import Swarm, write_model

STRANGE = "<img src=x onerror=pwned=1><b>&amp;"
Record = Callable[[str, object], None]


def dot(page: Page, name: str) -> Locator:
    """A node in the picture."""
    return page.locator(".topology a.dot").filter(has_text=name)


def row(page: Page, name: str) -> Locator:
    """A node in the table."""
    return page.locator("table tbody tr").filter(has=page.get_by_role("link", name=name, exact=True))


@contextmanager
def fourth(three: Swarm, name: str) -> Iterator[None]:
    """Another node, which nobody remembers afterwards."""
    three.start(name)
    try:
        yield
    finally:
        if three[name].running:
            three.kill(name)
        del three.nodes[name]


def test_the_topology_shows_three(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"]) as page:
        expect(page.locator(".topology a.dot")).to_have_count(3)
        for name in ("alpha", "bravo", "charlie"):
            expect(dot(page, name)).to_be_visible()
            expect(row(page, name)).to_contain_text("alive")
        expect(dot(page, "alpha")).to_have_class("dot good own")
        expect(page.locator(".topology line.edge")).to_have_count(2)
        expect(page).to_have_title("Swarm · mesh")


def test_a_fourth_joins_and_dies(browser: Browser, three: Swarm, record_property: Record) -> None:
    with open_page(browser, three["alpha"]) as page:
        expect(dot(page, "charlie")).to_be_visible()
        with fourth(three, "delta"):
            began = time.monotonic()  # it answers, and so has joined
            expect(dot(page, "delta")).to_be_visible()
            record_property("appeared_s", round(time.monotonic() - began, 2))
            expect(row(page, "delta")).to_contain_text("alive")
            three.kill("delta")
            began = time.monotonic()
            expect(row(page, "delta")).not_to_contain_text("alive")
            record_property("marked_s", round(time.monotonic() - began, 2))
            expect(row(page, "delta")).to_contain_text("dead")
            expect(dot(page, "delta")).to_contain_text("×")


def test_requests_are_seen_on_their_way(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"]) as page, three["alpha"].http as client:
        expect(dot(page, "bravo")).to_be_visible()
        body = {"model": "long", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
        headers = {"X-Mesh-Node": "bravo"}
        with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            lines = answer.iter_lines()  # kept: httpx ends the call with it
            next(lines)
            expect(page.locator(".flow")).to_have_count(1)
            expect(row(page, "bravo").locator("td[data-name=Slots]")).to_contain_text("1 of")
        expect(page.locator(".flow")).to_have_count(0)


def test_a_node_in_detail_by_keyboard_alone(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"]) as page:
        dot(page, "bravo").focus()
        page.keyboard.press("Enter")
        panel = page.get_by_role("complementary", name="Node bravo")
        expect(panel).to_be_focused()
        for fact in ("Slots used", "Round trip", "Last heard", "Version", "Processor", "First token", "Up for"):
            expect(panel).to_contain_text(fact)
        expect(panel).to_contain_text("far")
        expect(panel.locator("dt:text-is('Up for') + dd")).to_contain_text("s", timeout=30_000)
        page.keyboard.press("Escape")
        expect(panel).to_have_count(0)


def test_a_node_that_dies_and_is_banned_while_its_panel_is_open(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"]) as page, fourth(three, STRANGE):
        row(page, STRANGE).get_by_role("link").click()
        panel = page.get_by_role("complementary")
        expect(panel).to_contain_text(STRANGE)
        expect(panel).to_contain_text("alive")
        three.kill(STRANGE)
        expect(panel).to_contain_text("dead")
        panel.get_by_role("button", name="Ban this node").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(STRANGE)
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_have_count(0)
        panel.get_by_role("button", name="Ban this node").click()
        dialog.get_by_role("button", name="Ban it").click()
        expect(panel).to_contain_text("no member of the swarm any more")
        expect(panel).to_contain_text(STRANGE)
        page.get_by_role("button", name="Lift the ban").click()
        expect(page.get_by_role("button", name="Lift the ban")).to_have_count(0)


def test_markup_in_a_name_stays_text(browser: Browser, three: Swarm) -> None:
    write_model(three.folder / STRANGE, "plain", backend="fake", aliases=[STRANGE])
    with fourth(three, STRANGE), open_page(browser, three["alpha"]) as page:
        expect(row(page, STRANGE)).to_contain_text("alive")
        expect(dot(page, STRANGE[:10])).to_be_visible()
        row(page, STRANGE).get_by_role("link").click()
        expect(page.get_by_role("complementary")).to_contain_text(STRANGE)
        assert page.evaluate("typeof pwned") == "undefined"
        expect(page.locator("main img, main b")).to_have_count(0)


def test_a_stream_that_falls_silent(browser: Browser, three: Swarm) -> None:
    """The node is stopped, so that its sockets stay open: only the silence tells."""
    node = three["charlie"]
    with open_page(browser, node, "#/add") as page:
        page.clock.install()
        page.goto("/#/swarm")
        page.reload()
        expect(dot(page, "alpha")).to_be_visible()
        node.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(5):  # what was on its way when the node stopped is read yet, and is a sign of life
                page.clock.fast_forward(46_000)
                with suppress(PlaywrightTimeout):
                    page.get_by_role("alert").wait_for(timeout=2_000)
                    break
            expect(page.get_by_role("alert")).to_contain_text("Not connected")
            expect(dot(page, "alpha"), "what was seen stays").to_be_visible()
        finally:
            node.process.send_signal(signal.SIGCONT)
        page.clock.fast_forward(20_000)
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(row(page, "alpha")).to_contain_text("alive")


def test_the_asked_node_itself_dies(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["bravo"]) as page:
        expect(dot(page, "alpha")).to_be_visible()
        three.kill("bravo")
        expect(page.get_by_role("alert")).to_contain_text("Not connected")
        expect(row(page, "alpha")).to_be_visible()
        page.get_by_role("button", name="Try now").click()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")


def test_answers_that_are_errors(browser: Browser, three: Swarm) -> None:
    failing = True

    def answer(route: Route) -> None:
        if failing:
            route.fulfill(status=500, content_type="text/html", body="<script>pwned=1</script>")
        else:
            route.continue_()

    with open_page(browser, three["alpha"], "#/add") as page:
        page.route("**/api/mesh", answer)
        page.goto("/#/swarm")
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("The node answered with status 500.")
        failing = False
        page.get_by_role("button", name="Try now").click()
        expect(dot(page, "charlie")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)


def test_a_clock_that_is_wrong_by_a_year(browser: Browser, three: Swarm) -> None:
    """The browser's: its times of day are compared with nobody's."""
    with open_page(browser, three["alpha"], "#/add") as page:
        page.clock.install(time="2027-12-01T00:00:00Z")
        page.goto("/#/swarm")
        page.reload()
        expect(row(page, "bravo")).to_contain_text("just now")
        expect(row(page, "charlie")).to_contain_text("just now")


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (3840, "light")])
def test_nothing_sticks_out(browser: Browser, three: Swarm, width: int, scheme: str) -> None:
    viewport = {"width": width, "height": 800}
    for path in ("#/swarm", "#/add"):
        with open_page(browser, three["alpha"], path, viewport=viewport, color_scheme=scheme) as page:
            expect(page.locator("h1")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_begins_at_its_top(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], viewport={"width": 360, "height": 600}) as page:
        expect(row(page, "charlie")).to_be_visible()
        row(page, "charlie").scroll_into_view_if_needed()
        assert page.evaluate("scrollY") > 0
        page.get_by_role("link", name="Add", exact=True).click()
        expect(page.get_by_role("heading", name="Add a machine")).to_be_in_viewport()


def test_colours_follow_the_system_and_the_switch(browser: Browser, three: Swarm) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with open_page(browser, three["alpha"], color_scheme="dark") as page:
        dark = page.evaluate(ground)
        page.get_by_role("button", name="Colours").click()
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        assert page.evaluate(ground) == light
