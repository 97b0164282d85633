"""The page Models: what each node has, and what is done to it from another node's page."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.e2e.browser import open_page
from tests.support.nodes import Swarm

MARKUP = "<img src=x onerror=pwned=1>"


def place(page: Page, model: str, node: str) -> Locator:
    """The row of a model on a node."""
    card = page.locator(".model-card").filter(has=page.get_by_role("heading", name=model, exact=True))
    return card.locator("tbody tr").filter(has=page.get_by_role("link", name=node, exact=True))


def act(page: Page, verb: str, model: str, node: str) -> None:
    page.get_by_role("button", name=f"{verb} {model} on {node}", exact=True).click()


def test_a_model_of_another_node_is_loaded_pinned_and_unloaded(browser: Browser, three: Swarm) -> None:
    file = three["bravo"].data / "models" / "far.yaml"
    before = file.read_text()
    with open_page(browser, three["alpha"], "#/models") as page:
        row = place(page, "far", "bravo")
        expect(row).to_be_visible()
        if "loaded" in row.inner_text():  # by another test
            act(page, "Unload", "far", "bravo")
        expect(row).to_contain_text("on disk")
        act(page, "Load", "far", "bravo")
        expect(row).to_contain_text("loaded")
        expect(page.get_by_text("far is loaded on bravo.")).to_be_visible()
        act(page, "Pin", "far", "bravo")
        expect(row).to_contain_text("pinned")
        assert sorted(file.read_text().splitlines()) == sorted([*before.splitlines(), "pinned: true"])
        expect(row).to_contain_text("loaded")
        act(page, "Unpin", "far", "bravo")
        expect(row).not_to_contain_text("pinned")
        act(page, "Unload", "far", "bravo")
        expect(row).to_contain_text("on disk")


def test_a_model_in_use_is_not_unloaded_and_the_person_is_told(browser: Browser, three: Swarm) -> None:
    body = {"model": "long", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    with (
        open_page(browser, three["alpha"], "#/models") as page,
        three["alpha"].http as client,
        client.stream("POST", "/v1/chat/completions", json=body, headers={"X-Mesh-Node": "bravo"}) as answer,
    ):
        lines = answer.iter_lines()  # kept: httpx ends the call with it
        next(lines)
        expect(place(page, "long", "bravo")).to_contain_text("1 of 4")
        act(page, "Unload", "long", "bravo")
        expect(page.get_by_text("is not unloaded while it is needed")).to_be_visible()


def test_a_node_that_is_gone_keeps_its_row_without_actions(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/models") as page:
        row = place(page, "fake", "charlie")
        expect(row.get_by_role("button").first).to_be_visible()
        three.kill("charlie")
        expect(row).to_contain_text("node is dead")
        expect(row.get_by_role("button")).to_have_count(0)


def test_a_plan_is_drawn(browser: Browser, three: Swarm) -> None:
    def split(route: Route) -> None:
        shares: list[dict[str, Any]] = [
            {"node": name, "head": name == "alpha", "layers": layers, "memory_bytes": 1, "free_bytes": 2}
            for name, layers in (("alpha", 20), (MARKUP, 12))
        ]
        plan = {"model": "fake", "need_bytes": 9 << 30, "fits": [], "split": {"nodes": shares, "tokens_per_s": 5}}
        route.fulfill(json={"plans": [plan | {"why": ["Because."]}]})

    with open_page(browser, three["alpha"], "#/models") as page:
        card = page.locator(".model-card").filter(has=page.get_by_role("heading", name="fake", exact=True))
        card.get_by_role("button", name="Plan").click()
        expect(card).to_contain_text("cannot split a model")  # that engine
        card.get_by_role("button", name="Hide the plan").click()
        page.route("**/api/mesh/plans?*", split)
        card.get_by_role("button", name="Plan").click()
        expect(card.locator(".layer")).to_have_count(2)
        expect(card.locator(".plan")).to_contain_text("needs 9 GiB")
        expect(card.locator(".layer").nth(1)).to_contain_text(MARKUP)


def test_markup_in_a_models_name_stays_text(browser: Browser, three: Swarm) -> None:
    """As a foreign node might say it: no catalog of ours takes such a name."""

    def strange(route: Route) -> None:
        answer = route.fetch()
        told = answer.json()
        row = told["nodes"][0]["models"][0] | {"name": MARKUP, "error": MARKUP, "state": "failed", "backend": MARKUP}
        told["nodes"][0] |= {"name": MARKUP, "models": [row, row | {"name": "constructor", "state": "__proto__"}]}
        route.fulfill(response=answer, json=told)

    with open_page(browser, three["alpha"], "#/swarm") as page:
        page.route("**/api/mesh/models", strange)
        page.goto("/#/models")
        expect(page.get_by_role("heading", name=MARKUP)).to_be_visible()
        expect(page.get_by_role("heading", name="constructor")).to_be_visible()
        expect(page.locator(".why").first).to_contain_text(MARKUP)
        assert page.evaluate("typeof pwned") == "undefined"
        assert page.locator("main img").count() == 0
