"""Takes the pictures of docs/dashboard.md: `python -m tests.e2e.screenshots`. Three real nodes with the fake engine."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import open_page, running_browser
from tests.support.nodes import RunningNode, Swarm, swarm

FOLDER = Path(__file__).parents[2] / "docs" / "images"
SIZE = {"width": 1280, "height": 800}
TRAFFIC_S = 150.0
"""Before the pictures are taken: so that there is something to see in the charts."""

ANSWER = """A mesh of machines answers as **one service**. For every request it reckons, for each node,

| term | meaning |
|---|---|
| queue | work ahead of it |
| prompt | what is not cached |
| answer | at that node's rate |

and takes the lowest sum:

```python
best = min(candidates, key=lambda c: c.total_s)
```

If a node dies in the middle of an answer, another goes on *from the same token*.
"""


def _model(rate: float, **more: Any) -> dict[str, Any]:
    engine = {"decode_tokens_per_s": rate, "prefill_tokens_per_s": rate * 20, "answer_tokens": 120}
    return {"backend": "fake", "slots": 4, "engine": engine | more}


SPEAKS = _model(110, says=ANSWER, answer_tokens=len(ANSWER))
MODELS = {
    "atlas": {"llama-3.2-3b": _model(38), "explainer-1b": SPEAKS},
    "borealis": {"llama-3.2-3b": _model(62), "qwen3-8b": _model(24), "explainer-1b": SPEAKS},
    "cygnus": {"llama-3.2-3b": _model(21), "qwen3-8b": _model(31) | {"pinned": True}},
}


def _share(node: str, layers: int, used: int, free: int, *, head: bool = False, rtt_s: float = 0.0) -> dict[str, Any]:
    sizes = {"weight_bytes": used * _GIB, "memory_bytes": used * _GIB, "free_bytes": free * _GIB}
    more = {"cached": False, "round_trip_s": rtt_s, "link_bytes_per_s": 0.0, "bytes_per_s": 0.0}
    return {"node": node, "head": head, "layers": layers, **sizes, **more}


_GIB = 1 << 30
PLAN = {
    "plans": [
        {
            "model": "llama-3.2-3b",
            "need_bytes": 43 * _GIB,
            "fits": [],
            "split": {
                "tokens_per_s": 7.4,
                "load_s": 96.0,
                "nodes": [
                    _share("atlas", 38, 21, 24, head=True),
                    _share("borealis", 27, 15, 20, rtt_s=0.0006),
                    _share("cygnus", 15, 8, 12, rtt_s=0.0021),
                ],
            },
            "slots": 4,
            "context_tokens": 8192,
            "why": ["No node has 43.0 GiB free, the three together have.", "Layers go to the fastest first."],
        }
    ]
}
"""The fake engine cannot be split: these figures are made up."""


@contextmanager
def traffic(node: RunningNode) -> Iterator[None]:
    """Clients that ask and ask, until the block ends."""
    ended = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=node.url, timeout=60, trust_env=False) as client:
            turn = 0
            while not ended.is_set():
                turn += 1
                model = "qwen3-8b" if (number + turn) % 3 == 0 else "llama-3.2-3b"
                text = f"Question {number} of turn {turn}. " * (5 + 7 * (turn % 5))
                body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 40 + 20 * number}
                client.post("/v1/chat/completions", json=body)
                ended.wait(0.3 * number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def take(browser: Browser, made: Swarm, scheme: str) -> None:
    """All pages in one colour scheme."""
    node = made["atlas"]
    with open_page(browser, node, "#/swarm", color_scheme=scheme, viewport=SIZE, reduced_motion="reduce") as page:
        expect(page.locator(".topology a.dot")).to_have_count(3)
        shoot(page, "swarm", scheme)
        page.goto("/#/requests")
        expect(page.locator("table.requests tbody tr").nth(10)).to_be_visible()
        shoot(page, "requests", scheme)
        answered = page.locator("table.requests tbody tr").filter(has_text="answered").first
        answered.get_by_role("link").click()
        expect(page.locator(".lanes .lane").nth(1)).to_be_visible()
        shoot(page, "request", scheme)
        page.route("**/api/mesh/plans?*", lambda route: route.fulfill(json=PLAN))
        page.goto("/#/models")
        expect(page.get_by_role("heading", name="qwen3-8b")).to_be_visible()
        page.locator(".card").filter(has=page.get_by_role("heading", name="llama-3.2-3b")).get_by_role(
            "button", name="Plan"
        ).click()
        expect(page.locator(".plan")).to_be_visible()
        shoot(page, "models", scheme)
        page.goto("/#/charts")
        expect(page.locator(".plot canvas").nth(3)).to_be_visible()
        shoot(page, "charts", scheme)
        page.goto("/#/chat?model=explainer-1b")
        page.get_by_role("combobox", name="Node").select_option("borealis")
        page.get_by_label("Message", exact=True).fill("How does the mesh choose a node?")
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("button", name="Answer again")).to_be_visible()
        shoot(page, "chat", scheme)
        page.goto("/#/add")
        shoot(page, "add", scheme)


def shoot(page: Page, name: str, scheme: str) -> None:
    """One picture."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(600)  # what moves has arrived
    page.screenshot(path=FOLDER / f"{name}-{scheme}.png")


def main() -> None:
    """Take them all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        with swarm(Path(folder), MODELS) as made, traffic(made["atlas"]):
            time.sleep(TRAFFIC_S)
            for scheme in ("light", "dark"):
                take(browser, made, scheme)


if __name__ == "__main__":
    main()
