"""Loading, unloading and pinning by hand, and what is told of the models of all nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from api.ports import ModelAction
from backends.types import Busy, CallerError, LoadFailed, ModelMissing, NodeGone
from mesh.membership import State
from node.localmodels import LocalModels, ModelRow, told_rows
from tests.node.doubles import CONTEXT, request, running
from tests.node.house import House, offer
from tests.node.test_swarmview import Stage


def local(house: House) -> LocalModels:
    return LocalModels(house.inventory, house.pool, house.service.reload)


def row(house: House, name: str = "m") -> ModelRow:
    return next(row for row in local(house).rows() if row.name == name)


async def test_a_model_is_loaded_and_unloaded(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": "aliases: [mm]"})
    house.script.load_s = 3
    models = local(house)
    async with running(house.pool):
        assert row(house).state == "absent"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(models.act, "mm", "load")
            await trio.testing.wait_all_tasks_blocked()
            loading = row(house)
            assert (loading.state, loading.load_progress) == ("loading", 0.5)
            with pytest.raises(Busy, match="is being loaded"):
                await models.act("m", "unload")
        ready = row(house)
        assert (ready.state, ready.slots_used, ready.load_s) == ("ready", 0, 3)
        assert ready.engine_memory_bytes == 5
        assert await models.act("m", "load") == "m", "it is loaded already"
        assert len(house.script.loads) == 1
        assert await models.act("mm", "unload") == "m"
        await trio.testing.wait_all_tasks_blocked()
        assert row(house).state == "absent"
        await models.act("m", "unload")


async def test_a_busy_model_is_not_unloaded_and_loading_it_waits_for_no_slot(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    house = House(tmp_path, {"m": ""})
    models = local(house)
    async with running(house.pool):
        async with house.dispatcher.open(request(), CONTEXT), house.dispatcher.open(request(), CONTEXT):
            with pytest.raises(Busy, match="2 calls are running or waiting"):
                await models.act("m", "unload")
            with trio.fail_after(1):
                await models.act("m", "load")
            assert row(house).slots_used == 2
        await models.act("m", "unload")


async def test_a_load_that_fails_says_why(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": ""})
    house.script.load_errors = [LoadFailed("The file\nis cut.")]
    async with running(house.pool):
        with pytest.raises(LoadFailed, match="cut"):
            await local(house).act("m", "load")
    assert (row(house).state, row(house).error) == ("failed", "The file is cut.")


async def test_a_file_that_cannot_be_opened_is_shown_with_the_reason(tmp_path: Path) -> None:
    house = House(tmp_path, {})
    house.backend.error = LoadFailed("No such weights.")
    (tmp_path / "m.yaml").write_text("name: m\nbackend: fake\n")
    house.service.reload()
    assert (row(house).state, row(house).error) == ("unusable", "No such weights.")
    with pytest.raises(LoadFailed):
        await local(house).act("m", "load")
    with pytest.raises(ModelMissing):
        await local(house).act("n", "load")


async def test_pinning_writes_the_file_and_leaves_the_model_loaded(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": "# mine", "n": ""})
    models = local(house)
    async with running(house.pool):
        for name in "mn":
            await models.act(name, "load")
        (tmp_path / "n.yaml").write_text("name: n\nbackend: fake\nslots: 1\n")  # meanwhile, by somebody else
        await models.act("m", "pin")
        await trio.testing.wait_all_tasks_blocked()
        assert (row(house).state, row(house).pinned, row(house).pinnable) == ("ready", True, True)
        assert row(house, "n").state == "absent", "its file has changed, so it is not what it was"
        [model] = [model for model, _ in house.pool.models() if model.name == "m"]
        assert model.pinned, "at once, not at the next call"
        assert (tmp_path / "m.yaml").read_text() == "name: m\npinned: true\nbackend: fake\n# mine"
        await models.act("m", "unpin")
        assert not model.pinned
        assert (tmp_path / "m.yaml").read_text() == "name: m\npinned: false\nbackend: fake\n# mine"


async def test_what_has_no_file_cannot_be_pinned(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": ""})
    entry = house.inventory.resolve("m")
    house.inventory._entries["m"] = replace(entry, spec=replace(entry.spec, source=None))
    assert not row(house).pinnable
    with pytest.raises(CallerError, match="comes with the node"):
        await local(house).act("m", "pin")


async def test_a_file_that_cannot_be_edited_is_said(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": "pinned: &p false\ndisabled: *p"})
    with pytest.raises(CallerError, match="by hand"):
        await local(house).act("m", "pin")
    assert not row(house).pinned


@pytest.mark.parametrize(
    "told",
    [None, 7, {}, [7], [{}], [{"name": "x" * 999}], [{"name": "m", "state": "<b>"}], [{"name": "\x1b[2J"}]],
    ids=repr,
)
def test_what_are_no_rows(told: Any) -> None:
    assert told_rows(told) is None


def test_rows_there_and_back() -> None:
    rows = [ModelRow(name="m", error="two\nlines", expires_in_s=None)]
    assert told_rows(json.loads(msgspec.json.encode(rows))) == rows
    assert told_rows([{"name": "m", "surprise": 1}]) == [ModelRow(name="m")], "a newer node says more"


async def test_all_nodes_are_shown_the_silent_ones_by_their_records(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    stage.house.peer("A", offer("big", memory_bytes=9))
    stage.house.peer("B", offer("x"), state=State.DEAD)

    async def ask(swarm: Any, peer: str, what: str, of: str) -> Any:
        return [{"name": "big", "state": "ready"}, {"name": "a"}] if peer == "A" and what == "models" else None

    monkeypatch.setattr("node.swarmmodels.ask", ask)
    own, a, b = await stage.shown.models()
    assert (own["self"], own["models"][0]["name"], own["answered"]) == (True, "m", True)
    assert [model["name"] for model in a["models"]] == ["a", "big"]
    assert a["models"][1]["state"] == "ready"
    assert (b["state"], b["answered"], b["models"][0]["state"]) == ("dead", False, "unknown")

    async def silent(*_: Any) -> Any:
        await trio.sleep_forever()

    monkeypatch.setattr("node.swarmmodels.ask", silent)
    _, a, _ = await stage.shown.models()
    assert (a["answered"], a["models"][0]["memory_bytes"]) == (False, 9)


async def test_where_an_action_goes(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.house.peer("A")
    stage.house.peer("B", state=State.DEAD)
    assert [stage.shown.place_of(node) for node in ("", "own", "OWN", "a", "A")] == [None, None, None, "A", "A"]
    with pytest.raises(CallerError, match="no node <b>"):
        stage.shown.place_of("<b>")
    with pytest.raises(NodeGone, match="cannot be reached"):
        stage.shown.place_of("b")


async def test_actions_pass_through_the_view(tmp_path: Path, autojump_clock: MockClock) -> None:
    stage = Stage(tmp_path)
    load: ModelAction = "load"
    async with running(stage.house.pool):
        assert await stage.shown.act("m", load) == "m"
    assert len(stage.house.script.loads) == 1
