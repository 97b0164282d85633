"""Swarms of real nodes on loopback, each a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx

from node.swarmdir import SwarmDir
from tests.bench.harness import BenchError, Session
from tests.bench.nodes import MODEL
from tests.support.nodes import RunningNode, running_node, write_model

_MEET_S = 30.0
_LOOK_S = 0.05


@contextmanager
def swarm(
    session: Session,
    models: Sequence[dict[str, Any] | None],
    *,
    module: str = "node.cli",
    holders: int = 0,
    **settings: str,
) -> Iterator[list[RunningNode]]:
    """One node for each of `models` (None: without one), all of which know each other.

    All see `holders` nodes with the model loaded. They are named n0, n1 and so on. `settings` become MESH_* variables
    of all of them.
    """
    with ExitStack() as stack:
        nodes: list[RunningNode] = []
        for number, model in enumerate(models):
            joined = joining(session, nodes, f"n{number}", model, module=module, **settings)
            nodes.append(stack.enter_context(joined))
        until_met(nodes, holders=holders)
        yield nodes
        for node in reversed(nodes):
            if node.process.poll() is None:
                node.stop()


@contextmanager
def joining(
    session: Session,
    nodes: Sequence[RunningNode],
    name: str,
    model: dict[str, Any] | None,
    *,
    module: str = "node.cli",
    **settings: str,
) -> Iterator[RunningNode]:
    """One more node for the swarm that `nodes` are; the first of a new one if there are none."""
    data = session.data(name)
    if model is not None:
        write_model(data, MODEL, **model)
    settings = {"solo": "false", "lan_discovery": "false", "mesh_host": "127.0.0.1", "name": name, **settings}
    if nodes:
        settings["token"] = token(nodes[0])
    with running_node(data, module=module, **settings) as node:
        yield node


def token(node: RunningNode) -> str:
    """The token of a node's swarm."""
    found = SwarmDir(node.data).token()
    assert found is not None
    return found.encode()


def until_met(nodes: Sequence[RunningNode], *, holders: int = 0) -> None:
    """Wait until every node sees every other alive, and (of `holders`) so many with a loaded model."""
    deadline = time.monotonic() + _MEET_S * max(1, len(nodes) / 10)
    for node in nodes:
        with node.http as client:
            while not _has_met(client, len(nodes), holders):
                if time.monotonic() > deadline:
                    raise BenchError(f"{node.url} does not see all of its swarm.")
                time.sleep(_LOOK_S)


def _has_met(client: httpx.Client, count: int, holders: int) -> bool:
    seen = client.get("/api/mesh").json()["nodes"]
    alive = [node for node in seen if node["state"] == "alive"]
    ready = [node for node in alive if any(_ready(model) for model in node["models"])]
    return len(alive) >= count and len(ready) >= holders


def _ready(model: dict[str, Any]) -> bool:
    return bool(model["model"] == MODEL and model.get("load", {}).get("state") == "ready")
