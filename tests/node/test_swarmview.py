"""What the API tells of the swarm, from a roster that a test writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from backends.types import CallerError
from mesh.membership import State
from mesh.roster import PeerEvent, Roster
from mesh.token import JoinToken
from node.charts import Charts
from node.localmodels import LocalModels
from node.peers import Peers
from node.shards import Shards
from node.swarmmodels import SwarmModels
from node.swarmview import SwarmView
from tests.node.doubles import CONTEXT, request, running
from tests.node.house import OWN, House, offer, record


@dataclass
class SwarmDouble:
    """What is asked of mesh.swarm.Swarm."""

    roster: Roster
    peer: str = OWN
    record: Any = field(default_factory=lambda: record(OWN, "own"))
    banned: set[str] = field(default_factory=set)

    def ban(self, peer: str) -> None:
        self.banned.add(peer)

    def pardon(self, peer: str) -> None:
        self.banned.discard(peer)


class Stage:
    """A house and its view of the swarm."""

    def __init__(self, folder: Path) -> None:
        self.house = House(folder, {"m": ""})
        self.swarm = SwarmDouble(self.house.roster)
        peers = SimpleNamespace(
            swarm=self.swarm,
            left=False,
            current_token=JoinToken.generate(),
            transport=SimpleNamespace(traffic=lambda peer: (10, 20)),
        )
        self.peers = cast(Any, peers)
        house, typed = self.house, cast(Peers, peers)
        models = SwarmModels(LocalModels(house.inventory, house.pool, house.service.reload), house.view, typed)
        self.charts = Charts(house.pool, house.dispatcher, house.room, house.view, typed)
        house.metrics.on_first_token.append(self.charts.history.began)
        self.shown = SwarmView(typed, house.view, house.offers, house.traces, cast(Shards, None), models, self.charts)
        house.router.observers.append(self.shown.on_route)
        house.dispatcher.on_end.append(self.shown.on_end)


async def test_the_view_is_plain_json_with_this_node_first(tmp_path: Path, autojump_clock: MockClock) -> None:
    stage = Stage(tmp_path)
    stage.house.peer("B", offer(), slots_used=1)
    stage.house.peer("A", state=State.DEAD)
    stage.house.roster.put(record("C", "c"), state=State.ALIVE, protocol_ok=False)
    stage.swarm.banned = {"Z", "Y"}
    await trio.sleep(3)
    handle = stage.house.view.book.reserve("B", "m", trio.current_time(), weight=2)
    view = json.loads(json.dumps(stage.shown.view()))
    assert [node["name"] for node in view["nodes"]] == ["own", "a", "b", "c"]
    assert [node["self"] for node in view["nodes"]] == [True, False, False, False]
    assert [node["state"] for node in view["nodes"]] == ["alive", "dead", "alive", "incompatible"]
    assert view["banned"] == ["Y", "Z"]
    b = view["nodes"][2]
    assert (b["in_flight"], b["last_heard_s"]) == (2, 3.0)
    assert b["models"][0]["load"]["slots_used"] == 1
    assert view["name"] == "own"
    assert view["id"] == OWN
    stage.house.view.book.release(handle, trio.current_time())
    assert [(fact.node, fact.alive, fact.sent_bytes) for fact in stage.shown.facts()] == [
        ("b", True, 10),
        ("a", False, 10),
        ("c", False, 10),
    ]


async def test_one_name_for_two_models_is_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    own = stage.house.inventory.resolve("m").digest
    stage.house.peer("A", offer(digest=own), offer("other"))
    assert stage.shown.view()["variants"] == []
    stage.house.peer("B", offer(digest="mesh1:x"), offer("other"))
    [variant] = stage.shown.view()["variants"]
    assert variant == {
        "model": "m",
        "digests": [{"digest": own, "nodes": ["own", "a"]}, {"digest": "mesh1:x", "nodes": ["b"]}],
    }


async def test_kicks_and_pardons_go_by_name_or_id(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.house.peer("A")
    assert stage.shown.kick("a") == "A"
    assert stage.swarm.banned == {"A"}
    stage.house.roster.remove("A")
    assert stage.shown.pardon("A") == "A", "it is no member any more, and its id is still known"
    for node in ("own", OWN):
        with pytest.raises(CallerError, match="mesh leave"):
            stage.shown.kick(node)
    with pytest.raises(CallerError, match="no node x"):
        stage.shown.kick("x")
    stage.house.peer("B")
    with pytest.raises(CallerError, match="is not banned"):
        stage.shown.pardon("b")


async def test_without_the_swarm_there_is_no_token(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    assert JoinToken.parse(stage.shown.token() or "")
    stage.peers.left = True
    assert stage.shown.token() is None
    assert stage.shown.view()["left"]


async def test_events_and_routes_reach_every_watcher(tmp_path: Path, autojump_clock: MockClock) -> None:
    stage = Stage(tmp_path)
    stage.house.peer("A", offer(), slots_used=2)
    async with stage.shown.watch() as one, stage.shown.watch() as other:
        stage.shown.on_event(PeerEvent("joined", "A", "a", "hello"))
        stage.shown.on_event(PeerEvent("load", "A", "a"))
        async with running(stage.house.pool), stage.house.dispatcher.open(request(), CONTEXT):
            pass
        for events in (one, other):
            assert await anext(events) == {"kind": "joined", "id": "A", "node": "a", "detail": "hello"}
            load = await anext(events)
            assert load["loads"][0]["slots_used"] == 2
            assert await anext(events) == {"kind": "route", "request": "r", "model": "m", "node": "own"}
            ended = {"kind": "ended", "request": "r", "model": "m", "node": "own", "outcome": "cancelled"}
            assert await anext(events) == ended
    stage.shown.on_event(PeerEvent("left", "A", "a"))  # nobody listens


async def test_a_watcher_that_falls_behind_is_told_how_far(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    async with stage.shown.watch() as events:
        for number in range(1000):
            stage.shown.on_event(PeerEvent("left", str(number)))
        first = [await anext(events) for _ in range(100)]
        assert [event["id"] for event in first] == [str(number) for number in range(100)]
        stage.shown.on_event(PeerEvent("joined", "A"))
        rest: list[Any] = []
        while not rest or rest[-1]["kind"] != "joined":
            rest.append(await anext(events))
        [missed] = [event for event in rest if event["kind"] == "missed"]
        assert len(first) + len(rest) - 2 + missed["count"] == 1000


async def test_why_a_request_went_where_it_went(tmp_path: Path, autojump_clock: MockClock) -> None:
    stage = Stage(tmp_path)
    async with running(stage.house.pool):
        async with stage.house.dispatcher.open(request(), CONTEXT) as call:
            assert [batch async for batch in call.batches()]
    [listed] = stage.shown.requests(5)
    assert (listed["id"], listed["node"], listed["outcome"]) == ("r", "own", "ok")
    explained = stage.shown.explain("r")
    assert explained is not None
    json.dumps(explained)
    assert explained["decisions"][0]["candidates"][0]["node"] == "own"
    traced = await stage.shown.trace("r")
    assert traced is not None
    assert traced["timeline"][0] == {"at_s": 0.0, "what": "arrived", "detail": "", "node": "", "where": "own"}
    assert stage.shown.explain("x") is None
    assert await stage.shown.trace("x") is None
    assert stage.shown.served_trace("r") is None


async def test_this_nodes_own_models_are_told_of_not_too_often(tmp_path: Path, autojump_clock: MockClock) -> None:
    stage = Stage(tmp_path)
    async with trio.open_nursery() as nursery, stage.shown.watch() as events:
        nursery.start_soon(stage.shown.run)
        for _ in range(20):
            stage.shown.own_changed()
            await trio.sleep(0.01)
        first, second = await anext(events), await anext(events)
        assert first["kind"] == "load"
        assert (first["id"], first["node"]) == (OWN, "own")
        assert [load["model"] for load in first["loads"]] == ["m"]
        assert second["loads"] == first["loads"]
        with trio.move_on_after(5) as scope:
            await anext(events)
        assert scope.cancelled_caught, "two for twenty changes within 0.2 s"
        nursery.cancel_scope.cancel()
