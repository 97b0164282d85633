"""What the API tells of the swarm: api.ports.Mesh, put together from roster, traces and this node's own facts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import trio

from api.ports import ForwardedAnswer, ForwardedCall, ModelAction
from backends.types import CallerError
from mesh.records import Hardware, Load, Offer, PeerRecord, Target
from mesh.roster import Member, PeerEvent
from mesh.routing import Decision
from node.ask import Answerer, ask
from node.charts import QUESTION as HISTORY
from node.charts import Charts
from node.forward import ForwardedRequest, forward
from node.metrics import PeerFacts
from node.offers import Offers
from node.peers import Peers
from node.shards import Shards
from node.swarmmodels import QUESTION as MODELS
from node.swarmmodels import SwarmModels
from node.swarmstore import ROLE
from node.trace import Trace, Traces, merged
from node.view import View

_BACKLOG = 256
"""Events that one watcher may be behind; a slower one loses the next ones and is told how many."""
_OWN_EVERY_S = 0.2
"""At most so often watchers are told how this node's own models do, which may change with every token of a request."""


class SwarmView:
    """Implements api.ports.Mesh."""

    def __init__(
        self,
        peers: Peers,
        view: View,
        offers: Offers,
        traces: Traces,
        shards: Shards,
        swarm_models: SwarmModels,
        swarm_charts: Charts,
    ) -> None:
        self._peers = peers
        self._models = swarm_models
        self._charts = swarm_charts
        self._shards = shards
        self._view = view
        self._offers = offers
        self._traces = traces
        self._watchers: set[Callable[[Mapping[str, Any]], None]] = set()
        self._own_news = trio.Event()
        self.api_url = ""

    # -- api.ports.Mesh --

    def view(self) -> Mapping[str, Any]:
        swarm = self._peers.swarm
        now = trio.current_time()
        own = {
            "self": True,
            "state": "alive",
            "round_trip_s": 0.0,
            "last_heard_s": 0.0,
            "last_seen": _clock(0.0),
            "relayed": False,
            "in_flight": 0,
        } | self._record(swarm.record, swarm.roster.own_name, self._offers.loads(now))
        others = [self._member(member, now) for member in swarm.roster.members]
        return {
            "name": swarm.roster.own_name,
            "id": swarm.peer,
            "left": self._peers.left,
            "nodes": [own, *sorted(others, key=lambda node: str(node["name"]))],
            "banned": sorted(swarm.banned),
            "variants": self._variants(),
        }

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        send, receive = trio.open_memory_channel[Mapping[str, Any]](_BACKLOG)
        missed = 0

        def put(event: Mapping[str, Any]) -> None:
            nonlocal missed
            try:
                if missed:
                    send.send_nowait({"kind": "missed", "count": missed})
                    missed = 0
                send.send_nowait(event)
            except trio.WouldBlock:
                missed += 1

        with send, receive:
            self._watchers.add(put)
            try:
                yield receive
            finally:
                self._watchers.discard(put)

    def token(self) -> str | None:
        return None if self._peers.left else self._peers.current_token.encode()

    def requests(self, count: int) -> Sequence[Mapping[str, Any]]:
        return [trace.summary() for trace in self._traces.recent(count)]

    def explain(self, request_id: str) -> Mapping[str, Any] | None:
        trace = self._traces.get(request_id)
        return None if trace is None else trace.summary() | {"decisions": trace.decisions}

    async def trace(self, request_id: str) -> Mapping[str, Any] | None:
        trace = self._traces.get(request_id)
        if trace is None:
            return None
        names = {event.node for event in trace.events if event.what == "send" and event.node}
        timelines: dict[str, Any] = {}

        async def fetch(member: Member) -> None:
            timeline = await ask(self._peers.swarm, member.peer, "trace", request_id)
            if isinstance(timeline, list):
                timelines[member.name] = timeline

        async with trio.open_nursery() as nursery:
            for name in names - {self._view.own_name}:
                if member := self._view.member(name):
                    nursery.start_soon(fetch, member)
        return trace.summary() | {"timeline": merged(trace, self._view.own_name, timelines)}

    def plans(self, model: str | None) -> Sequence[Mapping[str, Any]]:
        return self._shards.plans(model)

    async def models(self) -> Sequence[Mapping[str, Any]]:
        return await self._models.models()

    def place_of(self, node: str) -> str | None:
        return self._models.place_of(node)

    async def act(self, model: str, action: ModelAction) -> str:
        return await self._models.act(model, action)

    async def charts(self, node: str | None) -> Mapping[str, Any]:
        return await self._charts.charts(node)

    def kick(self, node: str) -> str:
        peer = self._id_of(node)
        if peer == self._peers.swarm.peer:
            raise CallerError("A node does not kick itself; `mesh leave` takes it out of the swarm.", param="node")
        self._peers.swarm.ban(peer)
        return peer

    def pardon(self, node: str) -> str:
        peer = node if node in self._peers.swarm.banned else self._id_of(node)
        if peer not in self._peers.swarm.banned:
            raise CallerError(f"The node {node} is not banned.", param="node")
        self._peers.swarm.pardon(peer)
        return peer

    async def leave(self) -> None:
        await self._peers.leave()

    def owner(self, part: str) -> str | None:
        role = f"{ROLE}{part}"
        members = self._peers.swarm.roster.members
        return next((member.peer for member in members if member.usable and role in member.record.roles), None)

    def forward(self, owner: str, call: ForwardedCall) -> AbstractAsyncContextManager[ForwardedAnswer]:
        member = self._peers.swarm.roster.get(owner)
        asked = ForwardedRequest(
            method=call.method,
            path=call.path,
            query=call.query,
            request_id=call.request_id,
            content_type=call.content_type,
            body=call.body,
        )
        return forward(self._peers.swarm, owner, member.name if member else owner, asked)

    # -- what the node feeds it --

    def on_event(self, event: PeerEvent) -> None:
        """Something changed in the roster."""
        told: dict[str, Any] = {"kind": event.kind, "id": event.peer, "node": event.name}
        if event.detail:
            told["detail"] = event.detail
        if event.kind == "load" and (member := self._peers.swarm.roster.get(event.peer)):
            told["loads"] = [_plain(load) for load in member.loads.values()]
        self._tell(told)

    def on_route(self, trace: Trace, decision: Decision) -> None:
        """A request has been given to a node."""
        name = decision.chosen.replica.name if decision.chosen is not None else ""
        self._tell({"kind": "route", "request": trace.request_id, "model": trace.model, "node": name})

    def on_end(self, trace: Trace) -> None:
        """A request that entered here has ended."""
        if self._watchers:
            told = {"request": trace.request_id, "model": trace.model, "node": trace.node, "outcome": trace.outcome}
            self._tell({"kind": "ended"} | told)

    def facts(self) -> Iterator[PeerFacts]:
        """What Prometheus is told of the peers."""
        for member in self._peers.swarm.roster.members:
            sent, received = self._peers.transport.traffic(member.peer)
            yield PeerFacts(member.name, member.usable, member.rtt_s, self._in_flight(member), sent, received)

    def own_changed(self) -> None:
        """This node's own models do otherwise than before."""
        self._own_news.set()

    async def run(self) -> None:
        """Take the samples of this node's charts and tell of its own models, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._charts.run)
            while True:
                await self._own_news.wait()
                self._own_news = trio.Event()
                if self._watchers:
                    loads = [_plain(load) for load in self._offers.loads(trio.current_time())]
                    told = {"id": self._peers.swarm.peer, "node": self._view.own_name, "loads": loads}
                    self._tell({"kind": "load"} | told)
                await trio.sleep(_OWN_EVERY_S)

    @property
    def answers(self) -> Mapping[str, Answerer]:
        """What peers may ask of this node, see node/ask.py."""
        return {"trace": self.served_trace, MODELS: self._models.tell, HISTORY: self._charts.tell}

    def served_trace(self, request_id: str) -> list[dict[str, Any]] | None:
        """The timeline of a call that a peer sent here, for that peer."""
        trace = self._traces.served(request_id)
        return None if trace is None else trace.timeline()

    def _tell(self, event: Mapping[str, Any]) -> None:
        for put in self._watchers:
            put(event)

    def _id_of(self, node: str) -> str:
        if node in (self._view.own_name, self._peers.swarm.peer):
            return self._peers.swarm.peer
        member = self._view.member(node)
        if member is None:
            raise CallerError(f"There is no node {node} in this swarm; `mesh status` names them.", param="node")
        return member.peer

    def _member(self, member: Member, now: float) -> dict[str, Any]:
        silent_s = max(0.0, now - member.last_heard)
        return {
            "self": False,
            "state": member.state.name.lower() if member.protocol_ok else "incompatible",
            "round_trip_s": round(member.rtt_s, 6),
            "last_heard_s": round(silent_s, 3),
            "last_seen": _clock(silent_s),
            "relayed": member.relayed,
            "in_flight": self._in_flight(member),
        } | self._record(member.record, member.name, member.loads.values())

    def _record(self, record: PeerRecord, name: str, loads: Iterable[Load]) -> dict[str, Any]:
        by_model = {load.model: load for load in loads}
        return {
            "id": record.peer,
            "name": name,
            "version": record.version,
            "protocol": record.protocol,
            "addresses": list(record.addresses),
            "roles": list(record.roles),
            "exposes": list(record.exposes),
            "targets": [self._target(target) for target in record.targets],
            "memory_budget_bytes": record.memory_budget_bytes,
            "api_url": record.api_url,
            "hardware": _plain(record.hardware),
            "models": [
                _plain(offer) | {"load": _plain(by_model[offer.model])} if offer.model in by_model else _plain(offer)
                for offer in record.offers
            ],
        }

    def _target(self, target: Target) -> dict[str, Any]:
        holder = self._peers.swarm.roster.get(target.leased_by)
        name = holder.name if holder is not None else target.leased_by
        return {
            "name": target.name,
            "version": target.version,
            "devices": list(target.devices),
            "memory_bytes": target.memory_bytes,
            "bytes_per_s": target.bytes_per_s,
            "leased_by": self._view.own_name if target.leased_by == self._peers.swarm.peer else name,
        }

    def _in_flight(self, member: Member) -> int:
        return sum(self._view.book.on(member.peer, offer.model).running for offer in member.record.offers)

    def _variants(self) -> list[dict[str, Any]]:
        """Names under which the swarm holds more than one model."""
        digests: dict[str, dict[str, list[str]]] = {}
        own = [(self._view.own_name, offer) for offer in self._offers.all()]
        others = [(member.name, offer) for found in self._view.models().values() for member, offer in found]
        for name, offer in (*own, *others):
            digests.setdefault(offer.model, {}).setdefault(offer.digest, []).append(name)
        return [
            {"model": model, "digests": [{"digest": digest, "nodes": nodes} for digest, nodes in found.items()]}
            for model, found in sorted(digests.items())
            if len(found) > 1
        ]


def _plain(value: Load | Offer | Hardware) -> dict[str, Any]:
    """All fields, also those that have their defaults and so do not travel."""
    return {name: getattr(value, name) for name in value.__struct_fields__}


def _clock(ago_s: float) -> str:
    """When that was by THIS machine's clock, RFC 3339: shown to people, compared with nothing."""
    return (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat()
