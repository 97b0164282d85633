"""The composition root: builds a node, serves it, and takes it down in order."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from api.app import create_app
from api.ports import ApiOptions
from backends.registry import find_backends
from backends.types import MeshError
from node import __version__
from node.config import Settings
from node.datadir import NodeRecord, hold_data_dir
from node.dispatch import NodeDispatcher
from node.hardware import default_memory_budget, probe
from node.inventory import Entry, Inventory
from node.metrics import Metrics
from node.pool import Pool
from node.service import NodeService

_log = logging.getLogger("mesh")
_KEEP_ALIVE_S = 75.0
_CLOSE_S = 2.0  # what hypercorn's connections get after the answers are done


class StartError(Exception):
    """The node cannot start: one sentence for a person."""


def run_node(settings: Settings, *, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `started` gets the URL once the API answers.

    Raises StartError, or node.datadir.DataDirError when another node holds the data folder.
    """
    with hold_data_dir(settings.data) as record:
        try:
            trio.run(_main, settings, record, started)
        except* StartError as group:
            raise group.exceptions[0] from None


async def _main(settings: Settings, record: NodeRecord, started: Callable[[str], None]) -> None:
    with _listen(settings) as listener:
        port = listener.getsockname()[1]
        url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
        metrics = Metrics()
        backends = find_backends()
        budget = settings.memory_budget_bytes
        if budget is None:
            budget = default_memory_budget(probe().memory_bytes)
        settings.models_dir.mkdir(parents=True, exist_ok=True)
        inventory = Inventory(settings.models_dir, backends, budget)
        inventory.reload()
        pool = Pool(
            backends,
            metrics,
            budget_bytes=budget,
            queue_limit=settings.queue_limit,
            idle_unload_s=settings.idle_unload_s,
            load_timeout_s=settings.load_timeout_s,
        )
        service = NodeService(inventory, pool, metrics, backends)
        options = ApiOptions(
            version=__version__,
            api_keys=settings.plain_api_keys,
            cors_origins=settings.cors_origins,
            max_body_bytes=settings.max_body_bytes,
        )
        app = create_app(NodeDispatcher(inventory, pool, metrics), service, options)

        async with trio.open_nursery() as outer:  # the workers outlive the API
            await outer.start(pool.run)
            closing = trio.Event()
            async with trio.open_nursery() as serving:
                serving.start_soon(_on_signals, service, pool, settings.shutdown_grace_s, closing)
                for entry in inventory.entries:
                    if entry.spec.file.pinned and entry.needs is not None:
                        serving.start_soon(_preload, pool, entry)
                await serving.start(partial(serve, app, _http_config(listener), shutdown_trigger=closing.wait))
                service.accepting = True
                record.write(url=url, version=__version__)
                started(url)
            outer.cancel_scope.cancel()


def _http_config(listener: socket.socket) -> Config:
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it
    config.accesslog = None
    config.errorlog = logging.getLogger("mesh.http")
    config.include_server_header = False
    config.keep_alive_timeout = _KEEP_ALIVE_S
    config.graceful_timeout = _CLOSE_S
    return config


async def _on_signals(service: NodeService, pool: Pool, grace_s: float, closing: trio.Event) -> None:
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
                await pool.drain()
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
