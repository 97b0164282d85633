"""This node as a holder of other nodes' layers: keeps a shard server running, exposed and told of."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import trio

from backends.engine import Backend
from backends.process import LogRing
from backends.sharding import ServerSettings, ShardingBackend, forget_cache
from backends.shardserver import ShardServer, open_server
from backends.types import LoadFailed
from mesh.records import Target
from mesh.tunnel import Tunnels

FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 30.0
_HEALTHY_S = 30.0
"""A server that has lived so long did not fail to start: the pauses begin anew."""
_LOOK_S = 2.0
_STUCK = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE})

_log = logging.getLogger("mesh.shards")


class Holder:
    """One shard server, restarted when it dies. Implements nothing of what it holds: the backend does."""

    def __init__(
        self,
        backend: Backend,
        tunnels: Tunnels,
        *,
        memory_bytes: int,
        cache: Path,
        cache_bytes: int,
        threads: int | None,
        device: str,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`cache` is kept below `cache_bytes`; 0: there is none. `changed` is called when `targets` does."""
        assert isinstance(backend, ShardingBackend)
        self._backend: Backend = backend
        self._tunnels = tunnels
        self._memory_bytes = memory_bytes
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._threads = threads
        self._device = device
        self._changed = changed
        self._server: ShardServer | None = None
        self.name: str = backend.target
        self.log = LogRing()
        self.restarts = 0
        self.problem = ""
        """Why it does not run; empty while it does."""
        tunnels.on_change.append(changed)

    @property
    def pid(self) -> int | None:
        """Of the server, while it runs."""
        return self._server.pid if self._server is not None else None

    def targets(self) -> tuple[Target, ...]:
        """What others are told."""
        server = self._server
        if server is None:
            return ()
        free = sum(device.free_bytes for device in server.facts.devices)
        return (
            Target(
                name=self.name,
                version=server.facts.version,
                devices=server.ready.devices,
                memory_bytes=min(self._memory_bytes, free),
                bytes_per_s=min(server.ready.bytes_per_s, 1e12),
                leased_by=self._tunnels.holder(self.name),
            ),
        )

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            started = trio.current_time()
            try:
                await self._once()
            except LoadFailed as error:
                self.problem = error.message
            if trio.current_time() - started > _HEALTHY_S:
                pause_s = FIRST_PAUSE_S
            self.restarts += 1
            _log.warning("%s It is started again in %.2g s.", self.problem, pause_s)
            await trio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, 2 * pause_s)

    async def _once(self) -> None:
        if self._cache_bytes:
            self._cache.mkdir(parents=True, exist_ok=True)
            await trio.to_thread.run_sync(forget_cache, self._cache, self._cache_bytes)
        settings = ServerSettings(
            port=_free_port(),
            cache=str(self._cache) if self._cache_bytes else "",
            memory_bytes=self._memory_bytes,
            threads=self._threads,
            device=self._device,
        )
        async with open_server(self._backend, settings, log=self.log) as server:
            self.problem = ""
            self._server = server

            async def connect() -> trio.SocketStream:
                return await trio.open_tcp_stream("127.0.0.1", server.port)

            self._tunnels.expose(self.name, connect)
            _log.info("holding layers for others: %s, %s", ", ".join(server.ready.devices), server.facts.version)
            try:
                await self._look_after(server)
            finally:
                self._server = None
                self._tunnels.withdraw(self.name)
        raise LoadFailed(f"The shard server ended by itself. Its last words: {' '.join(self.log.tail(2)) or 'none.'}")

    async def _look_after(self, server: ShardServer) -> None:
        """Until it dies, or was stopped by somebody: then whoever waits for it would wait for ever."""
        process = psutil.Process(server.pid)
        while True:
            with trio.move_on_after(_LOOK_S):
                await server.died.wait()
                return
            try:
                if process.status() in _STUCK:
                    process.kill()
            except psutil.NoSuchProcess:
                return


def _free_port() -> int:
    """llama.cpp takes a port, not a socket. Should another program take it first, the server does not come up, and is
    started again on another."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
