"""Replicas here and on the peers, as far as this node knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.types import LoadFailed, ModelDisabled, ModelMissing
from mesh.estimate import Need, Replica
from mesh.membership import State
from mesh.reservations import MARGIN_S
from node.view import missing
from tests.node.house import House, offer


def need(model: str = "m", **fields: object) -> Need:
    return Need(model=model, capability="completion", **fields)  # type: ignore[arg-type]


def replicas(house: House, model: str = "m") -> dict[str, Replica]:
    found, _ = house.view.replicas(need(model), trio.current_time())
    assert len({replica.peer for replica in found}) == len(found)
    return {replica.name: replica for replica in found}


async def test_own_and_others(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": ""})
    house.peer("A", offer(), slots_used=1)
    house.peer("B", offer("other"))
    found = replicas(house)
    assert set(found) == {"own", "a"}
    assert found["own"].local
    assert found["own"].load.state == "absent"
    assert not found["a"].local
    assert found["a"].load.slots_used == 1
    assert found["a"].rtt_s == 0.001


@pytest.mark.parametrize("state", [State.SUSPECT, State.DEAD, State.LEFT])
async def test_who_cannot_be_asked_is_no_replica_but_may_hold_the_model(tmp_path: Path, state: State) -> None:
    house = House(tmp_path)
    house.peer("A", offer(), state=state)
    found, trouble = house.view.replicas(need(), 0.0)
    assert found == []
    assert isinstance(trouble, ModelMissing)
    assert house.view.holders_down("m") == ([] if state is State.LEFT else ["a"])
    assert house.view.models() == {}
    assert house.view.down("A")
    assert not house.view.down("OWN")


async def test_a_peer_of_another_version_is_not_asked(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.peer("A", offer())
    house.roster.update("A", protocol_ok=False)
    assert replicas(house) == {}


async def test_an_alias_finds_the_model_and_a_name_of_its_own_wins(tmp_path: Path) -> None:
    house = House(tmp_path, {"own-model": "aliases: [gpt]"})
    house.peer("A", offer("theirs", aliases=("gpt",)))
    house.peer("B", offer("first", aliases=("gpt",)), offer("gpt"))
    assert {name: one.offer.model for name, one in replicas(house, "gpt").items()} == {
        "own": "own-model",
        "a": "theirs",
        "b": "gpt",
    }


async def test_what_is_wrong_here_does_not_hide_the_others(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": "", "closed": "disabled: true"})
    house.backend.error = LoadFailed("truncated")
    house.inventory.reload()
    house.peer("A", offer(), offer("closed"))
    for model, kind in (("m", LoadFailed), ("closed", ModelDisabled)):
        found, trouble = house.view.replicas(need(model), 0.0)
        assert [replica.name for replica in found] == ["a"]
        assert isinstance(trouble, kind)


async def test_without_a_swarm_there_is_this_node_alone(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": ""}, alone=True)
    assert not house.view.has_swarm
    assert set(replicas(house)) == {"this node"}
    assert house.view.models() == {}
    assert house.view.member("a") is None
    assert not house.view.down("A")


async def test_reservations_correct_a_report_until_it_counts_them(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path)
    house.peer("A", offer())
    await trio.sleep(1)
    handle = house.view.book.reserve("A", "m", trio.current_time(), weight=2)
    assert replicas(house)["a"].reserved.calls == 2
    await trio.sleep(1 + MARGIN_S)
    house.peer("A", offer(), slots_used=2)  # a report
    assert replicas(house)["a"].reserved.calls == 0
    assert replicas(house)["a"].reserved.running == 2
    house.view.book.release(handle, trio.current_time())
    assert replicas(house)["a"].reserved.ended == 2


async def test_faults_and_caches_are_the_peers_own_and_end_with_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": ""})
    house.peer("A", offer())
    chain = (1, 2, 3)
    house.view.failed("A", failed=True, now=trio.current_time())
    house.view.prefixes.note("A", chain, trio.current_time())
    house.view.prefixes.note("OWN", chain[:1], trio.current_time())
    house.view.book.reserve("A", "m", trio.current_time())

    def found() -> dict[str, Replica]:
        all_, _ = house.view.replicas(need(prefix=chain, prompt_tokens=90), trio.current_time())
        return {replica.name: replica for replica in all_}

    assert found()["a"].error_rate > 0
    assert found()["own"].error_rate == 0
    assert found()["a"].cached_tokens > found()["own"].cached_tokens > 0
    house.view.forget("A")
    assert found()["a"].cached_tokens == 0
    assert found()["a"].reserved.running == 0


def test_a_name_that_nobody_has_gets_a_hint() -> None:
    assert 'Did you mean "llama-3"?' in str(missing("lama-3", ["llama-3", "qwen"]))
    assert "GET /v1/models" in str(missing("x" * 100_000, ["llama-3"]))
    assert len(str(missing("x" * 100_000, []))) < 1000
