"""The page Charts: lines of every node, their figures as words, and a node that goes."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Route, expect

from tests.e2e.browser import open_page
from tests.e2e.test_requests import ask
from tests.support.nodes import Swarm


def test_charts_of_the_swarm_and_of_one_node(browser: Browser, three: Swarm) -> None:
    ask(three["alpha"], "far", "for the charts")
    with open_page(browser, three["alpha"], "#/charts") as page:
        expect(page.locator(".plot canvas")).to_have_count(4)
        by_node = page.locator(".card").filter(has=page.get_by_role("heading", name="By node"))
        expect(by_node.locator("tbody tr")).to_have_count(3)
        first = by_node.locator("tbody tr").filter(has_text="alpha").locator("td[data-name='First token']")
        expect(first).not_to_have_text("–")  # alpha was asked, wherever it ran
        tokens = page.locator(".chart").filter(has=page.get_by_role("heading", name="Tokens"))
        tokens.get_by_text("As a table").click()
        expect(tokens.get_by_role("region", name="Tokens as a table").locator("tbody tr")).to_have_count(15)
        page.get_by_role("combobox", name="Show").select_option(label="bravo")
        expect(page).to_have_url(re.compile("#/charts/."))
        expect(page.get_by_role("combobox", name="Show").locator("option:checked")).to_have_text("bravo")


def test_a_node_that_is_gone_leaves_its_past(browser: Browser, three: Swarm) -> None:
    with open_page(browser, three["alpha"], "#/charts") as page:
        line = page.locator("tbody tr").filter(has=page.get_by_role("link", name="charlie", exact=True))
        expect(line).to_be_visible()
        three.kill("charlie")
        expect(line).to_contain_text("dead")
        page.goto("/#/charts/no-such-node")
        expect(page.get_by_role("alert")).to_contain_text("That node is gone")


def test_a_node_without_any_sample_and_one_that_says_nonsense(browser: Browser, three: Swarm) -> None:
    def odd(route: Route) -> None:
        zeros = [0.0, 1e300]
        names = ("prefill_tokens_per_s", "decode_tokens_per_s", "slots_used", "running", "queued", "finished", "failed")
        samples = dict.fromkeys(names, zeros) | {"age_s": -5, "up_s": 1e12, "first_token_s": [[], [1e9]]}
        nodes = [
            {"id": "1", "name": "<img src=x onerror=pwned=1>", "self": True, "state": "alive", "samples": None},
            {"id": "2", "name": "odd", "self": False, "state": "alive", "samples": samples},
        ]
        route.fulfill(json={"step_s": 5, "span_s": 900, "nodes": nodes})

    with open_page(browser, three["alpha"], "#/swarm") as page:
        page.route("**/api/mesh/charts", odd)
        page.goto("/#/charts")
        expect(page.locator(".plot canvas")).to_have_count(4)
        expect(page.locator("tbody tr").filter(has_text="<img src=x")).to_be_visible()
        assert page.evaluate("typeof pwned") == "undefined"
