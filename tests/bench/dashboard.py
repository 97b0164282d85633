"""The dashboard in the system's Chromium: first paint, size, what an open page costs its node, and fifty busy nodes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psutil
import trio
from playwright.sync_api import Browser, CDPSession, Page

from api.dashboard import files
from tests.api.double import DoubleMesh
from tests.api.serving import Served, serving_in_thread
from tests.bench.harness import Bench, BenchError, Row, Session, judged, median
from tests.bench.swarms import swarm
from tests.e2e.browser import executable, running_browser

TARGET_PAINT_S = 1.0
TARGET_KB = 150
TARGET_IDLE = 0.01
TARGET_BUSY = 0.20
NODES = 50
EVENTS_PER_S = 20
_SETTLE_S = 4.0
_PAINTED = """() => new Promise((resolve) => new PerformanceObserver((list, observer) => {
    const entry = list.getEntriesByName("first-contentful-paint")[0];
    if (entry) { observer.disconnect(); resolve(entry.startTime); }
}).observe({ type: "paint", buffered: true }))"""


async def run(session: Session) -> list[Row]:
    """All of it in a thread: Playwright has a loop of its own."""
    if executable() is None or not files.built():
        raise BenchError("The dashboard's bench needs Chromium and a built page (`make run`).")
    return await trio.to_thread.run_sync(_measure, session)


def _measure(session: Session) -> list[Row]:
    with running_browser() as browser:
        return [_size(), *_real(session, browser), *_fifty(session, browser)]


def _size() -> Row:
    sent = {name: len(file.packed or file.data) for name, file in files.built().items()}
    size = sum(sent.values()) / 1000
    return Row(
        what="dashboard: all files, gzipped",
        value=f"{size:.0f} kB",
        target=f"< {TARGET_KB} kB",
        met=judged(size, "at most", TARGET_KB),
    )


def _real(session: Session, browser: Browser) -> list[Row]:
    session.tell("dashboard: three nodes")
    length_s = session.rounds(8, 30)
    with swarm(session, [None] * 3) as nodes:
        node = nodes[0]
        paints = []
        for _ in range(session.rounds(3, 9)):
            context = browser.new_context()
            page = context.new_page()
            page.goto(f"{node.url}/")
            paints.append(page.evaluate(_PAINTED) / 1000)
            context.close()
        closed = _share_of(node.process.pid, length_s)
        page = _opened(browser, node.url, 3)
        time.sleep(_SETTLE_S)
        opened = _share_of(node.process.pid, length_s)
        page.context.close()
    cost = max(0.0, opened - closed)
    return [
        Row(
            what="dashboard: first paint on loopback, nothing cached",
            value=f"{median(paints) * 1000:.0f} ms",
            against=f"the slowest of {len(paints)}: {max(paints) * 1000:.0f} ms",
            target=f"< {TARGET_PAINT_S:.0f} s",
            met=judged(median(paints), "at most", TARGET_PAINT_S),
        ),
        Row(
            what="dashboard: what an open page costs an idle node",
            value=f"{cost:.2%} of a core",
            against=f"the node alone: {closed:.2%}, {length_s:.0f} s each",
            target=f"< {TARGET_IDLE:.0%}",
            met=judged(cost, "at most", TARGET_IDLE),
        ),
    ]


def _fifty(session: Session, browser: Browser) -> list[Row]:
    session.tell(f"dashboard: {NODES} simulated nodes")
    length_s = session.rounds(8, 30)
    with serving_in_thread(Served(mesh=Busy())) as served:
        page = _opened(browser, served.url, NODES)
        time.sleep(_SETTLE_S)
        metrics = page.context.new_cdp_session(page)
        metrics.send("Performance.enable")
        before, began = _task_s(metrics), time.monotonic()
        page.wait_for_timeout(length_s * 1000)
        busy = (_task_s(metrics) - before) / (time.monotonic() - began)
        page.context.close()
    return [
        Row(
            what=f"dashboard: {NODES} nodes, {EVENTS_PER_S} events/s: its main thread",
            value=f"{busy:.1%} busy",
            target=f"< {TARGET_BUSY:.0%}",
            met=judged(busy, "at most", TARGET_BUSY),
        )
    ]


def _opened(browser: Browser, url: str, count: int) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.goto(f"{url}/")
    page.locator(".topology a.dot").nth(count - 1).wait_for()
    return page


def _share_of(pid: int, length_s: float) -> float:
    """Of a core, that a process takes."""
    process = psutil.Process(pid)
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(length_s)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system) / (time.monotonic() - began)


def _task_s(session: CDPSession) -> float:
    """Seconds that the page's main thread has worked: script, style, layout and painting."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


class Busy(DoubleMesh):
    """A swarm of fifty, whose loads change and whose requests come and go."""

    def reset(self) -> None:
        super().reset()
        self.nodes = [_node(number) for number in range(NODES)]

    def view(self) -> Mapping[str, Any]:
        return {**super().view(), "name": "n0", "id": "ID-n0", "variants": []}

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        yield self._events()

    async def _events(self) -> AsyncIterator[Mapping[str, Any]]:
        number = 0
        while True:
            await trio.sleep(1 / EVENTS_PER_S)
            number += 1
            name = f"n{number * 7 % NODES}"
            request = {"request": f"r{number // 4}", "model": "m", "node": name}
            load = {"kind": "load", "id": f"ID-{name}", "node": name, "loads": [_load("m", number % 5)]}
            yield (load, load, {"kind": "route"} | request, load)[number % 4]
            if number % 4 == 2 and number > 80:  # each runs for four seconds
                number += 1
                yield {"kind": "ended", "request": f"r{number // 4 - 20}", "model": "m", "node": "", "outcome": "ok"}


def _load(model: str, used: int) -> dict[str, Any]:
    rates = {
        "prefill_tokens_per_s": 500.0,
        "decode_tokens_per_s": 20.0 * used,
        "decode_batch": float(used),
        "decode_gain": 0.0,
    }
    return {
        "model": model,
        "state": "ready",
        "slots_used": used,
        "slots": 8,
        "queued": used % 3,
        "queued_tokens": 0,
        **rates,
        "load_s": 1.0,
        "error_rate": 0.0,
    }


def _node(number: int) -> dict[str, Any]:
    name = f"n{number}"
    offered = {
        "model": "m",
        "digest": "d",
        "backend": "fake",
        "capabilities": ["chat"],
        "context_tokens": 4096,
        "slots": 8,
        "aliases": [],
        "load_s": 1.0,
        "memory_bytes": 1 << 30,
        "sharded": False,
        "load": _load("m", 1),
    }
    hardware = {"system": "Linux", "processor": "any", "cores": 8, "memory_bytes": 16 << 30}
    return {
        "self": number == 0,
        "state": "alive",
        "id": f"ID-{name}",
        "name": name,
        "version": "1",
        "protocol": 1,
        "round_trip_s": 0.0005 * (1 + number % 40),
        "last_heard_s": 0.2,
        "relayed": number % 9 == 8,
        "in_flight": 0,
        "last_seen": "2026-11-27T12:00:00+00:00",
        "addresses": [],
        "roles": [],
        "exposes": [],
        "targets": [],
        "memory_budget_bytes": (4 + number % 5 * 8) << 30,
        "api_url": "",
        "models": [offered],
        "hardware": hardware | {"accelerators": [], "accelerator_memory_bytes": 0},
    }


BENCH = Bench("dashboard", "the page in Chromium: first paint, size, its cost to a node, fifty busy nodes", run)
