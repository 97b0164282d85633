"""Servers for other nodes' layers, as the node sees them: start one, and never leave it behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from backends.engine import Backend
from backends.process import EXIT_GRACE_S, LogRing, copy_output, spawn
from backends.sharding import ServerFacts, ServerReady, ServerSettings, ShardingBackend
from backends.types import LoadFailed

START_S = 60.0
_ASK_S = 5.0
_ASK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class ShardServer:
    """One that runs. Made by `open_server`."""

    ready: ServerReady
    facts: ServerFacts
    port: int
    pid: int
    died: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def open_server(backend: Backend, settings: ServerSettings, *, log: LogRing) -> AsyncIterator[ShardServer]:
    """Start a shard server of `backend`, which is a ShardingBackend, too; stop it on the way out.

    Keep it open in one long-lived task. Raises LoadFailed when it does not come up.
    """
    assert isinstance(backend, ShardingBackend)
    if reason := backend.unavailable():
        raise LoadFailed(f"The backend {backend.name} cannot hold layers here: {reason}")
    process, stream = await spawn(backend.name, backend.server_command(settings), backend.environment())
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(copy_output, process, log)
            server = await _come_up(backend, settings, process, stream, log)
            nursery.start_soon(_watch, process, server.died)
            yield server
        except Exception as error:  # noqa: BLE001 (raised below, so that no ExceptionGroup wraps it)
            failure = error
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()  # the order to exit
                with trio.move_on_after(EXIT_GRACE_S):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _come_up(
    backend: ShardingBackend, settings: ServerSettings, process: trio.Process, stream: trio.SocketStream, log: LogRing
) -> ShardServer:
    try:
        with trio.fail_after(START_S):
            line = b""
            while not line.endswith(b"\n"):
                data = await stream.receive_some()
                if not data:
                    await process.wait()
                    raise LoadFailed(f"The shard server ended: {' '.join(log.tail(2)) or 'it gave no reason'}")
                line += data
            ready = msgspec.json.decode(line, type=ServerReady)
            return ShardServer(ready, await _first_answer(backend, settings.port, process), settings.port, process.pid)
    except trio.TooSlowError:
        raise LoadFailed(f"The shard server did not come up within {START_S:g} s.") from None


async def _first_answer(backend: ShardingBackend, port: int, process: trio.Process) -> ServerFacts:
    """What it says once it listens, which it does not tell by itself."""
    while True:
        try:
            return await backend.probe(port, timeout_s=_ASK_S)
        except LoadFailed:
            if process.returncode is not None:
                raise
        await trio.sleep(_ASK_AGAIN_S)


async def _watch(process: trio.Process, died: trio.Event) -> None:
    await process.wait()
    died.set()
