"""Each page, light and dark, through axe: nothing that keeps somebody from using it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from scripts.dashboard import APP
from tests.e2e.browser import open_page
from tests.support.nodes import Swarm

AXE = APP / "node_modules" / "axe-core" / "axe.min.js"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
REQUEST = "looked-at"
SAYS = """## Head

*a* **b** `c` [d](https://example.org/)

| e | f |
|---|--:|
| 1 | 2 |

```python
g
```

- [x] h
"""
PAGES = ("swarm", "requests", f"requests/{REQUEST}", "models", "chat", "charts", "add", "nowhere")


@pytest.fixture(scope="module")
def axe() -> str:
    """Its script."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed (`make run` installs it): accessibility is NOT checked here")
    return Path(AXE).read_text(encoding="utf-8")


@pytest.fixture
def used(three: Swarm) -> Swarm:
    """Nodes of which there is something to tell."""
    body = {"model": "far", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    with three["alpha"].http as client:
        answer = client.post("/v1/chat/completions", json=body, headers={"X-Correlation-ID": REQUEST})
    answer.raise_for_status()
    return three


def findings(page: Any, axe: str) -> list[str]:
    """What axe finds, a line each."""
    page.evaluate(axe)
    found = page.evaluate("(rules) => axe.run(document, rules)", RULES)
    return [
        f"{violation['impact']}: {violation['id']}: {node['target']}: {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page(browser: Browser, used: Swarm, axe: str, name: str, scheme: str) -> None:
    with open_page(browser, used["alpha"], f"#/{name}", color_scheme=scheme, reduced_motion="reduce") as page:
        expect(page.locator(".side-foot strong")).to_have_text("alpha")
        assert findings(page, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_opens_on_a_page(browser: Browser, three: Swarm, axe: str, scheme: str) -> None:
    with open_page(browser, three["alpha"], color_scheme=scheme, reduced_motion="reduce") as page:
        page.locator("table").get_by_role("link", name="bravo").click()
        panel = page.get_by_role("complementary", name="Node bravo")
        expect(panel).to_be_visible()
        assert findings(page, axe) == []
        panel.get_by_role("button", name="Ban this node").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert findings(page, axe) == []
    with open_page(browser, three["alpha"], "#/add", color_scheme=scheme, reduced_motion="reduce") as page:
        page.get_by_role("button", name="Show token").click()
        expect(page.get_by_role("img", name="QR code")).to_be_visible()
        assert findings(page, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_that_are_full(browser: Browser, three: Swarm, axe: str, scheme: str) -> None:
    """A request explained, a plan, an answer with all that markdown has, tables beside the charts."""
    delta = {"content": SAYS}
    chunk = json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]})
    stream = f"data: {chunk}\n\ndata: [DONE]\n\n"
    with open_page(browser, three["alpha"], "#/chat", color_scheme=scheme, reduced_motion="reduce") as page:
        page.get_by_role("textbox", name="Message").fill("Hello")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("button", name="Answer again")).to_be_visible()
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(headers={"Content-Type": "text/event-stream"}, body=stream),
        )
        page.get_by_role("button", name="Answer again").click()
        expect(page.get_by_role("heading", name="Head")).to_be_visible()
        assert findings(page, axe) == []
        page.goto("/#/requests")
        page.locator("table.requests tbody tr").first.get_by_role("link").click()
        page.get_by_text("events in words").click()
        assert findings(page, axe) == []
        page.goto("/#/models")
        page.get_by_role("button", name="Plan").first.click()
        assert findings(page, axe) == []
        page.goto("/#/charts")
        for summary in page.get_by_text("As a table").all():
            summary.click()
        assert findings(page, axe) == []
