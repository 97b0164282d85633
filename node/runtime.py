"""The composition root: builds a node, serves it, and takes it down in order."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart_trio import QuartTrio

from api.app import create_app
from api.ports import ApiOptions, ResponseStore
from backends.engine import Backend
from backends.registry import find_backends
from backends.types import MeshError
from mesh.errors import PeerError
from mesh.identity import IdentityError
from mesh.roster import PeerEvent
from mesh.secretfile import SecretFileError
from mesh.token import JoinToken
from node import __version__, ask, forward, infer
from node.ask import Answerer, Answering
from node.charts import Charts
from node.config import Settings
from node.datadir import NodeRecord, hold_data_dir
from node.dispatch import NodeDispatcher
from node.forward import Forwarding
from node.hold import WaitingRoom
from node.imagefetch import ImageFetcher
from node.inventory import Entry, Inventory
from node.localmodels import LocalModels
from node.metrics import Metrics
from node.offers import Offers
from node.peers import JoinError, Peers, default_name, leaf, prepare
from node.pool import Pool
from node.routed import Machinery
from node.router import Router
from node.serve import Judge, Serving
from node.service import NodeService
from node.shards import Shards, own_budget
from node.store import STORE_FILE, Store, StoreError, open_store
from node.swarmdir import SwarmDir
from node.swarmmodels import SwarmModels
from node.swarmstore import ROLE, SwarmStore
from node.swarmview import SwarmView
from node.trace import Traces
from node.view import View

_log = logging.getLogger("mesh")
_KEEP_ALIVE_S = 75.0
_CLOSE_S = 2.0  # what hypercorn's connections get after the answers are done


class StartError(Exception):
    """The node cannot start: one sentence for a person."""


@dataclass(frozen=True, slots=True)
class Started:
    """What a person is told of a node that answers."""

    url: str
    name: str
    token: str | None  # None without a swarm


def run_node(settings: Settings, *, started: Callable[[Started], None], joining: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. `started` is told once the API answers. `joining`: the swarm must be found first.

    Raises StartError, or node.datadir.DataDirError when another node holds the data folder.
    """
    with hold_data_dir(settings.data) as record:
        try:
            trio.run(_main, settings, record, started, joining)
        except* StartError as group:
            raise leaf(group) from None


async def _main(settings: Settings, record: NodeRecord, started: Callable[[Started], None], joining: bool) -> None:
    with _listen(settings) as listener:
        port = listener.getsockname()[1]
        url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
        metrics = Metrics()
        backends = find_backends()
        budget = own_budget(settings)
        settings.models_dir.mkdir(parents=True, exist_ok=True)
        inventory = Inventory(settings.models_dir, backends, budget)
        inventory.reload()
        shards = Shards(settings, backends, budget)
        pool = Pool(
            backends,
            metrics,
            budget_bytes=budget,
            queue_limit=settings.queue_limit,
            idle_unload_s=settings.idle_unload_s,
            load_timeout_s=settings.load_timeout_s,
            sharding=shards.sharding,
        )
        node = _assemble(settings, inventory, pool, metrics, shards, backends)
        service = node.service
        options = ApiOptions(
            version=__version__,
            api_keys=settings.plain_api_keys,
            cors_origins=settings.cors_origins,
            max_body_bytes=settings.max_body_bytes,
        )

        async with (
            _open_store(settings) as store,
            trio.open_nursery() as outer,  # the workers outlive the peers, and these the API
        ):
            responses: ResponseStore = store
            if node.peers is not None and node.swarm is not None:
                responses = SwarmStore(store, node.peers.swarm, node.swarm.owner)
            app = create_app(node.dispatcher, service, options, node.swarm, responses, _image_fetcher(settings))
            if node.peers is not None and node.swarm is not None and isinstance(responses, SwarmStore):
                _answer_peers(node.peers, node.swarm, responses, app, node.shards)
            await outer.start(pool.run)
            async with trio.open_nursery() as mesh:
                token = await _meet_peers(mesh, settings, node, service, joining=joining)
                closing = trio.Event()
                async with trio.open_nursery() as serving:
                    serving.start_soon(_on_signals, service, node, settings.shutdown_grace_s, closing)
                    for entry in inventory.entries:
                        if entry.spec.file.pinned and entry.needs is not None:
                            serving.start_soon(_preload, pool, entry)
                    await serving.start(partial(serve, app, _http_config(listener), shutdown_trigger=closing.wait))
                    service.accepting = True
                    record.write(url=url, version=__version__)
                    started(Started(url, node.view.own_name, token))
                if node.peers is not None and not node.peers.left:
                    await node.peers.swarm.leave()
                mesh.cancel_scope.cancel()
            outer.cancel_scope.cancel()


def _image_fetcher(settings: Settings) -> ImageFetcher:
    return ImageFetcher(
        max_bytes=settings.image_fetch_bytes,
        timeout_s=settings.image_fetch_timeout_s,
        private=settings.image_fetch_private,
    )


@asynccontextmanager
async def _open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store in the data folder. Raises StartError."""
    try:
        store = open_store(settings.data / STORE_FILE, retention_s=settings.response_retention_s)
        async with store as opened:
            yield opened
    except StoreError as error:
        raise StartError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Node:
    """The parts that answer requests, with or without a swarm."""

    pool: Pool
    view: View
    offers: Offers
    room: WaitingRoom
    dispatcher: NodeDispatcher
    peers: Peers | None
    swarm: SwarmView | None
    shards: Shards
    service: NodeService


def _assemble(
    settings: Settings,
    inventory: Inventory,
    pool: Pool,
    metrics: Metrics,
    shards: Shards,
    backends: Mapping[str, Backend],
) -> _Node:
    offers = Offers(inventory, pool)
    traces = Traces()
    peers = _prepare_peers(settings)
    if peers is None:
        view = View(inventory, offers, "this-node", None, settings.name or default_name())
    else:
        view = View(inventory, offers, peers.swarm.peer, peers.swarm.roster)
    room = WaitingRoom(limit=settings.queue_limit, patience_s=settings.hold_s)
    router = Router(view, room, policy=settings.routing_policy)
    remote = peers.remote if peers is not None else None
    machinery = Machinery(view, router, pool, offers, remote, metrics)
    pool.on_change.append(room.poke)
    dispatcher = NodeDispatcher(machinery, traces)
    service = NodeService(inventory, pool, metrics, backends, view)
    swarm = None
    if peers is not None:
        shards.join(peers.swarm, inventory, pool)
        metrics.watch_shards(shards.facts)
        models = SwarmModels(LocalModels(inventory, pool, service.reload), view, peers)
        charts = Charts(pool, dispatcher, room, view, peers)
        metrics.on_first_token.append(charts.history.began)
        swarm = SwarmView(peers, view, offers, traces, shards, models, charts)
        router.observers.append(swarm.on_route)
        dispatcher.on_end.append(swarm.on_end)
        pool.on_change.append(swarm.own_changed)
        metrics.watch_peers(swarm.facts)
        serving = Serving(
            inventory, pool, traces, Judge(router), lambda _, outcome: metrics.served.labels(outcome).inc()
        )
        peers.swarm.handle(infer.PROTOCOL, serving.handle)
    return _Node(pool, view, offers, room, dispatcher, peers, swarm, shards, service)


def _answer_peers(peers: Peers, swarm: SwarmView, store: SwarmStore, app: QuartTrio, shards: Shards) -> None:
    """Serve what peers ask beside inference, and tell them which ids are made here."""
    answers: dict[str, Answerer] = {
        "response": store.tell_response,
        "chain": store.tell_chain,
        "computed": shards.computed,
        **swarm.answers,
    }
    peers.swarm.handle(ask.PROTOCOL, Answering(answers).handle)
    peers.swarm.handle(forward.PROTOCOL, Forwarding(app).handle)
    peers.swarm.publish(roles=(*peers.swarm.record.roles, f"{ROLE}{store.node}"))


def _prepare_peers(settings: Settings) -> Peers | None:
    if settings.solo:
        if settings.rpc_worker:
            raise StartError("With --solo there is nobody to hold layers for (--rpc-worker).")
        if settings.mlx_rank:
            raise StartError("With --solo there is nobody to be a rank for (--mlx-rank).")
        return None
    folder = SwarmDir(settings.data)
    try:
        given = JoinToken.parse(settings.token.get_secret_value()) if settings.token is not None else None
        kept = folder.token()
        # A swarm of its own that nobody else ever came to is what a first `mesh up` leaves behind: nothing to keep.
        elsewhere = given is not None and kept is not None and given.secret != kept.secret
        if elsewhere and folder.load().records:
            raise StartError(
                f"This node is in another swarm already. Take it out with `mesh leave`, or give it a folder of its own "
                f"with --data DIR (now {settings.data})."
            )
        return prepare(settings, folder, given)
    except (PeerError, SecretFileError, IdentityError) as error:
        raise StartError(str(error)) from error


async def _meet_peers(
    nursery: trio.Nursery, settings: Settings, node: _Node, service: NodeService, *, joining: bool
) -> str | None:
    """Start this node's part in the swarm; the token for others. Raises StartError."""
    peers, swarm = node.peers, node.swarm
    if peers is None or swarm is None:
        return None

    def on_event(event: PeerEvent) -> None:
        if event.kind in ("dead", "left", "forgotten", "banned"):
            node.view.forget(event.peer)
        node.shards.on_event(event)
        node.room.poke()
        swarm.on_event(event)

    def changed(tell: Callable[[], None]) -> None:
        node.pool.on_change.append(tell)
        service.on_reload.append(tell)

    service.on_reload.append(node.shards.models_changed)
    try:
        await nursery.start(partial(peers.run, node.offers, changed, on_event))
        nursery.start_soon(node.shards.run)
        nursery.start_soon(swarm.run)
        if joining:
            await peers.join(peers.token.addresses)
    except JoinError as error:
        if joining:
            peers.folder.forget_swarm()
        raise StartError(str(error)) from error
    return peers.current_token.encode()


def _http_config(listener: socket.socket) -> Config:
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it
    config.accesslog = None
    config.errorlog = logging.getLogger("mesh.http")
    config.include_server_header = False
    config.keep_alive_timeout = _KEEP_ALIVE_S
    config.graceful_timeout = _CLOSE_S
    return config


async def _on_signals(service: NodeService, node: _Node, grace_s: float, closing: trio.Event) -> None:
    """The first signal lets running answers finish, for `grace_s`; the second ends them."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            break
        _log.info("shutting down: running answers have %.0f s; a second signal ends them at once", grace_s)
        service.accepting = False
        with trio.move_on_after(grace_s):
            async with trio.open_nursery() as nursery:

                async def until_second() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(until_second)
                async with trio.open_nursery() as draining:
                    draining.start_soon(node.pool.drain)  # what runs here, also for other nodes
                    draining.start_soon(node.dispatcher.drain)  # what runs for clients of this one, also elsewhere
                nursery.cancel_scope.cancel()
        closing.set()


async def _preload(pool: Pool, entry: Entry) -> None:
    assert entry.needs is not None
    with suppress(MeshError):  # the pool has logged it; the node lives
        async with pool.lease(
            entry.spec, memory_bytes=entry.needs.memory_bytes, slots=entry.needs.slots, client="-", weight=1
        ):
            pass


@contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    """The bound socket, so that a taken port is an error of ours before anything is started."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]  # Python's own addition says the address again
        raise StartError(
            f"Cannot listen on {settings.host} port {settings.port}: {reason}. "
            "Take another with --port, or 0 for any free one."
        ) from error
    with listener:
        yield listener
