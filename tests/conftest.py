"""Fixtures for the whole suite: real nodes, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import smollm2
from tests.support.nodes import RunningNode, running_node, write_model


@pytest.fixture(scope="session")
def real_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that serves SmolLM2 (8 slots) under the name `smol`."""
    data: Path = tmp_path_factory.mktemp("real")
    write_model(data, "smol", parameters={"model": str(smollm2())}, slots=8, context_size=2048)
    with running_node(data) as node:
        yield node


@pytest.fixture(scope="session")
def fake_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that serves the fake backend as fast as it can, under the name `fake`."""
    data: Path = tmp_path_factory.mktemp("fake")
    write_model(data, "fake", backend="fake", slots=32)
    with running_node(data) as node:
        yield node
