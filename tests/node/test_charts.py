"""Charts of all nodes: own samples, and those that peers tell when somebody looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mesh.membership import State
from node.history import STEP_S, History, Totals
from tests.node.doubles import CONTEXT, request, running
from tests.node.house import House
from tests.node.test_swarmview import Stage


class Peer:
    """A peer that answers as node/charts.py does, and counts."""

    def __init__(self) -> None:
        self.history = History(trio.current_time())
        self.asked: list[str] = []

    async def ask(self, swarm: Any, peer: str, what: str, of: str) -> Any:
        assert (peer, what) == ("A", "history")
        self.asked.append(of)
        return msgspec.json.decode(msgspec.json.encode(self.history.tell(of, trio.current_time())))


async def test_samples_of_this_node(tmp_path: Path, autojump_clock: MockClock) -> None:
    stage = Stage(tmp_path)
    house: House = stage.house
    async with running(house.pool), trio.open_nursery() as nursery:
        nursery.start_soon(stage.shown.run)
        async with house.dispatcher.open(request(), CONTEXT) as call:
            async for _ in call.batches():
                pass
        async with house.dispatcher.open(request(), CONTEXT):
            await trio.sleep(STEP_S + 1)
            answer = await stage.shown.charts(None)
        nursery.cancel_scope.cancel()
    assert (answer["step_s"], answer["span_s"]) == (5, 900)
    [node] = answer["nodes"]
    assert (node["name"], node["self"], node["state"]) == ("own", True, "alive")
    samples = node["samples"]
    assert (samples["finished"], samples["failed"], samples["running"], samples["slots_used"]) == ([1], [0], [1], [1])
    assert samples["age_s"] == pytest.approx(1)
    assert len(samples["first_token_s"][0]) == 1


async def test_peers_are_asked_when_somebody_looks_and_not_more_often_than_there_is_news(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    peer = Peer()
    monkeypatch.setattr("node.charts.ask", peer.ask)
    stage.house.peer("A")
    await trio.sleep(STEP_S)
    peer.history.take(trio.current_time(), {"m": Totals(0, 50)}, slots_used=1, running=0, queued=0)
    for _ in range(3):
        answer = await stage.shown.charts(None)
    assert len(peer.asked) == 1
    own, a = answer["nodes"]
    assert own["samples"] is None, "nobody has taken any yet"
    assert a["samples"]["decode_tokens_per_s"] == [10]
    await trio.sleep(STEP_S)
    peer.history.take(trio.current_time(), {"m": Totals(0, 75)}, slots_used=1, running=0, queued=0)
    _, a = (await stage.shown.charts(None))["nodes"]
    assert a["samples"]["decode_tokens_per_s"] == [10, 5]
    assert peer.asked[1].endswith(":1"), "only what is new"
    stage.house.peer("A", state=State.DEAD)
    await trio.sleep(STEP_S)
    _, a = (await stage.shown.charts(None))["nodes"]
    assert (a["state"], a["samples"]["age_s"], len(peer.asked)) == ("dead", STEP_S, 2)
    assert [node["name"] for node in (await stage.shown.charts("a"))["nodes"]] == ["a"]
    assert [node["name"] for node in (await stage.shown.charts("own"))["nodes"]] == ["own"]
    assert (await stage.shown.charts("nobody"))["nodes"] == []
    stage.house.roster.remove("A")
    assert len((await stage.shown.charts(None))["nodes"]) == 1
    assert "A" not in stage.charts._copies


async def test_a_peer_that_does_not_answer_keeps_nobody_waiting(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)

    async def silent(*_: Any) -> Any:
        await trio.sleep_forever()

    monkeypatch.setattr("node.charts.ask", silent)
    stage.house.peer("A")
    await trio.sleep(STEP_S)
    began = trio.current_time()
    _, a = (await stage.shown.charts(None))["nodes"]
    assert trio.current_time() - began < STEP_S
    assert a["samples"] is None


@pytest.mark.parametrize("answer", [None, 7, {"boot": "<script>"}], ids=repr)
async def test_a_peer_that_answers_nonsense_has_no_samples(
    answer: Any, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)

    async def ask(*_: Any) -> Any:
        return answer

    monkeypatch.setattr("node.charts.ask", ask)
    stage.house.peer("A")
    await trio.sleep(STEP_S)
    _, a = (await stage.shown.charts(None))["nodes"]
    assert a["samples"] is None
