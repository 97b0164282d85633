"""From a name to a running call, or to an error that says whose fault it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from trio.testing import MockClock

from backends.engine import Backend
from backends.types import (
    Capability,
    ChatRequest,
    LoadFailed,
    LoadSpec,
    Message,
    ModelDisabled,
    ModelMissing,
    ModelNeeds,
    OutOfMemory,
    Unsupported,
)
from node.dispatch import NodeDispatcher
from node.inventory import Inventory
from node.metrics import Metrics
from node.service import NodeService
from tests.node.doubles import CONTEXT, NEEDS, Script, count, make_pool, request, running


class HeaderReader:
    """A backend of which the node asks nothing but what a model needs."""

    name = "fake"
    aliases: tuple[str, ...] = ()
    licence = "MIT"
    suffixes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.error: LoadFailed | None = None

    def needs(self, load: LoadSpec) -> ModelNeeds:
        if self.error is not None:
            raise self.error
        return NEEDS

    def unavailable(self) -> str | None:
        return None


class House:
    """A dispatcher and what it stands on."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(f"name: {name}\nbackend: fake\n{text}")
        self.folder = folder
        self.backend = HeaderReader()
        backends = {"fake": cast(Backend, self.backend)}
        self.metrics = Metrics()
        self.inventory = Inventory(folder, backends, 10)
        self.inventory.reload()
        self.script = Script()
        self.pool = make_pool(self.script, self.metrics)
        self.dispatcher = NodeDispatcher(self.inventory, self.pool, self.metrics)
        self.service = NodeService(self.inventory, self.pool, self.metrics, backends)

    def refused(self, kind: str, operation: str = "completion") -> float:
        return count(self.metrics, "mesh_requests_total", model="-", operation=operation, outcome=kind)


async def test_an_alias_is_answered_under_the_models_own_name(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": "aliases: [gpt-4o]"})
    async with running(house.pool):
        async with house.dispatcher.open(request("gpt-4o"), CONTEXT) as call:
            assert call.model == "m"
            assert [chunk async for batch in call.batches() for chunk in batch]


async def test_an_unknown_model_is_the_callers_mistake(tmp_path: Path) -> None:
    house = House(tmp_path, {"llama-3": ""})
    with pytest.raises(ModelMissing, match='Did you mean "llama-3"'):
        async with house.dispatcher.open(request("lama-3"), CONTEXT):
            pass
    long = "x" * 100_000
    with pytest.raises(ModelMissing) as caught:
        async with house.dispatcher.open(request(long), CONTEXT):
            pass
    assert len(str(caught.value)) < 1000
    assert house.refused("model_missing") == 2, "and its name is no label: anybody could make up thousands"


async def test_a_disabled_model_says_so_and_is_not_listed(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": "disabled: true"})
    with pytest.raises(ModelDisabled):
        async with house.dispatcher.open(request(), CONTEXT):
            pass
    assert house.service.models() == []
    assert house.service.default_model(Capability.COMPLETION) is None


async def test_what_a_model_cannot_do_is_refused_before_anything_loads(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": ""})
    chat = ChatRequest(model="m", messages=(Message(role="user", content="hi"),))
    with pytest.raises(Unsupported, match="cannot do chat; it can do completion") as caught:
        async with house.dispatcher.open(chat, CONTEXT):
            pass
    assert caught.value.param == "model"
    assert house.script.loads == []
    assert house.refused("unsupported", "chat") == 1


@pytest.mark.parametrize("error", [LoadFailed("The file is truncated."), OutOfMemory("It is too large.")])
async def test_a_file_that_cannot_be_used_is_read_again_when_asked_for(
    tmp_path: Path, autojump_clock: MockClock, error: LoadFailed
) -> None:
    house = House(tmp_path, {"m": ""})
    house.backend.error = error
    house.inventory.reload()
    with pytest.raises(type(error), match=str(error)):
        async with house.dispatcher.open(request(), CONTEXT):
            pass
    (shown,) = house.service.system()["models"]
    assert shown["error"] == str(error)
    house.backend.error = None
    async with running(house.pool):
        async with house.dispatcher.open(request(), CONTEXT) as call:
            assert call.model == "m"


async def test_reloading_finds_new_files_and_unloads_what_changed(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"a": "", "b": ""})
    async with running(house.pool):
        for name in "ab":
            async with house.dispatcher.open(request(name), CONTEXT):
                pass
        assert [card.loaded for card in house.service.models()] == [True, True]
        (tmp_path / "a.yaml").write_text("name: a\nbackend: fake\nslots: 1\n")
        (tmp_path / "c.yaml").write_text("name: c\nbackend: fake\n")
        (tmp_path / "d.yaml").write_text("name: [\n")
        house.service.reload()
        async with house.dispatcher.open(request("a"), CONTEXT):
            pass
    assert [load.name for load in house.script.loads] == ["a", "b", "a"], "b stayed loaded"
    assert [load.slots for load in house.script.loads] == [None, None, 1]
    assert [card.name for card in house.service.models()] == ["a", "b", "c"]
    assert list(house.service.system()["broken_model_files"]) == ["d.yaml"]


async def test_the_system_page_tells_what_is_loaded(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"a": "pinned: true", "b": ""})
    assert house.service.default_model(Capability.COMPLETION) == "a"
    async with running(house.pool):
        async with house.dispatcher.open(request("b"), CONTEXT):
            page = house.service.system()
    a, b = page["models"]
    assert (a["state"], a["pinned"], a["slots_leased"], a["slots"]) == ("absent", True, 0, 2)
    assert (b["state"], b["slots_leased"], b["engine_memory_bytes"]) == ("ready", 1, 5)
    assert page["loaded_models"] == [{"id": "b", "backend": "fake"}]
    assert page["memory_budget_bytes"] == 10


def test_a_node_is_ready_when_it_says_so(tmp_path: Path) -> None:
    service = House(tmp_path, {}).service
    assert service.starting()
    service.accepting = True
    assert not service.starting()
