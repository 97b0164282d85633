"""Served doubles, and the nodes that the official client's suite runs against."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api.double import MODEL
from tests.api.serving import Served, serving_in_thread
from tests.support.nodes import RunningNode


@pytest.fixture(scope="session")
def shared_double() -> Iterator[Served]:
    """One served double for the whole run."""
    with serving_in_thread(Served()) as served:
        yield served


@pytest.fixture
def double(shared_double: Served) -> Served:
    """The served double, without a script."""
    shared_double.dispatcher.reset()
    shared_double.node.reset()
    return shared_double


@pytest.fixture
def http(double: Served) -> Iterator[httpx.Client]:
    """A plain client of the double."""
    with httpx.Client(base_url=double.url, trust_env=False, timeout=30.0) as client:
        yield client


@pytest.fixture(scope="module", params=["double", "smollm2"])
def node_url(request: pytest.FixtureRequest) -> str:
    """Where a node answers: the double, then a real node with a real model."""
    if request.param == "double":
        served: Served = request.getfixturevalue("shared_double")
        served.dispatcher.reset()
        served.node.reset()
        return served.url
    node: RunningNode = request.getfixturevalue("real_node")
    return node.url


@pytest.fixture(scope="module")
def model() -> str:
    """The model's name at `node_url`."""
    return MODEL
