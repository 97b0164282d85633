"""From a name to a running call, or to an error that says whose fault it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from trio.testing import MockClock

from backends.types import (
    CallerError,
    Capability,
    ChatRequest,
    LoadFailed,
    Message,
    ModelDisabled,
    ModelMissing,
    OutOfMemory,
    Unsupported,
)
from tests.node.doubles import CONTEXT, count, request, running
from tests.node.house import House, offer


def refused(house: House, kind: str, operation: str = "completion") -> float:
    return count(house.metrics, "mesh_requests_total", model="-", operation=operation, outcome=kind)


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
    assert refused(house, "model_missing") == 2, "and its name is no label: anybody could make up thousands"


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
    with pytest.raises(Unsupported, match="Model m cannot do chat") as caught:
        async with house.dispatcher.open(chat, CONTEXT):
            pass
    assert caught.value.param == "model"
    assert house.script.loads == []
    assert refused(house, "unsupported", "chat") == 1


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


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("name", ["own", "OWN", "this node"])
async def test_a_request_may_name_this_node_itself(
    tmp_path: Path, autojump_clock: MockClock, name: str, alone: bool
) -> None:
    house = House(tmp_path, {"m": ""}, alone=alone)
    known = name == "OWN" or (name == "this node") == alone
    async with running(house.pool):
        if known:
            async with house.dispatcher.open(request(), replace(CONTEXT, node=name)) as call:
                assert call.node == house.view.own_name
        else:
            with pytest.raises(CallerError, match="There is no node") as caught:
                async with house.dispatcher.open(request(), replace(CONTEXT, node=name)):
                    pass
            assert caught.value.param == "X-Mesh-Node"
            assert refused(house, "caller") == 1


async def test_what_happened_to_a_request_can_be_looked_up(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": ""})
    async with running(house.pool):
        async with house.dispatcher.open(request(), CONTEXT) as call:
            assert [batch async for batch in call.batches()]
        with pytest.raises(ModelMissing):
            async with house.dispatcher.open(request("x"), replace(CONTEXT, request_id="s")):
                pass
        async with house.dispatcher.open(request(), replace(CONTEXT, request_id="t")):
            pass
    assert [trace.summary()["outcome"] for trace in house.traces.recent(9)] == ["cancelled", "model_missing", "ok"]
    trace = house.traces.get("r")
    assert trace is not None
    assert [event.what for event in trace.events] == [
        "arrived",
        "route",
        "send",
        "prepared",
        "loaded",
        "accepted",
        "first_chunk",
        "ended",
    ]
    [decision] = trace.decisions
    assert decision["chosen"] == "own"


async def test_the_models_of_all_nodes_are_listed(tmp_path: Path) -> None:
    house = House(tmp_path, {"own": "aliases: [gpt]", "shared": ""})
    house.peer("A", offer("shared"), offer("theirs", aliases=("gpt-4o",)))
    house.peer("B", offer("theirs"))
    cards = {card.name: card for card in house.service.models()}
    assert list(cards) == ["own", "shared", "theirs"]
    assert {name: card.nodes for name, card in cards.items()} == {
        "own": ("own",),
        "shared": ("own", "a"),
        "theirs": ("a", "b"),
    }
    assert cards["own"].aliases == ("gpt",)
    assert cards["theirs"].aliases == ("gpt-4o",)
    assert (cards["own"].loaded, cards["shared"].loaded) == (False, True), "somewhere"
    assert house.service.default_model(Capability.CHAT) == "shared", "not with this node, but with a"


def test_a_node_is_ready_when_it_says_so(tmp_path: Path) -> None:
    service = House(tmp_path, {}).service
    assert service.starting()
    service.accepting = True
    assert not service.starting()
