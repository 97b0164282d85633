"""This node as a holder of other nodes' layers: keeps a shard server running, exposed and told of."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress

import psutil
import trio

from backends.engine import Backend
from backends.process import LogRing
from backends.sharding import ServerSettings, ShardingBackend
from backends.shardserver import ShardServer, open_server
from backends.types import LoadFailed
from mesh.records import Target
from mesh.tunnel import Tunnels
from node.shardcache import SETTLED_S, ShardCache
from node.watchdog import processor_s

FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 30.0
_HEALTHY_S = 30.0
"""A server that has lived so long did not fail to start: the pauses begin anew."""
_LOOK_S = 2.0
_PROBE_S = 5.0
_BUSY_SHARE = 0.05
"""Of a processor: a server that takes so much computes."""
_STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})

_log = logging.getLogger("mesh.shards")


class Holder:
    """One shard server, restarted when it dies. Implements nothing of what it holds: the backend does."""

    def __init__(
        self,
        backend: Backend,
        tunnels: Tunnels,
        *,
        memory_bytes: int,
        cache: ShardCache | None,
        threads: int | None,
        device: str,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called when `targets` does."""
        assert isinstance(backend, ShardingBackend)
        self._backend: Backend = backend
        self._tunnels = tunnels
        self._memory_bytes = memory_bytes
        self._cache = cache
        self._threads = threads
        self._device = device
        self._changed = changed
        self._server: ShardServer | None = None
        self.name: str = backend.target
        self.log = LogRing()
        self.restarts = 0
        self.problem = ""
        """Why it does not run; empty while it does."""
        self._held_by = ""
        self._leases = 0  # begun and ended
        self._looks = trio.Event()
        tunnels.on_change += [self._on_change, changed]

    @property
    def pid(self) -> int | None:
        """Of the server, while it runs."""
        return self._server.pid if self._server is not None else None

    def processor_s(self) -> float | None:
        """What the server and its children have computed so far; None while none runs."""
        return processor_s(self.pid)

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
        if self._cache is not None:
            await trio.to_thread.run_sync(self._cache.begin)
        settings = ServerSettings(
            port=_free_port(),
            cache=str(self._cache.folder) if self._cache is not None else "",
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
        """Until it dies. One that was stopped by somebody is ended: whoever waits for it would wait for ever. So is one
        that no longer answers when a lease has ended: the next caller would."""
        process = psutil.Process(server.pid)
        leases, settled_at = self._leases, trio.current_time()
        while not server.died.is_set():
            self._looks = trio.Event()
            with trio.move_on_after(_LOOK_S):
                await _either(server.died, self._looks)
            if _end_stopped(process):
                continue
            if self._leases != leases and not self._tunnels.holder(self.name):
                leases = self._leases
                answers = await self._answers(server)
                if self._leases != leases:
                    continue
                if answers:
                    self._settle()  # it has nothing to write: there was nobody to tell it anything
                else:
                    _log.warning("the shard server does not answer, and is ended")
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                    await server.died.wait()
            elif trio.current_time() >= settled_at + SETTLED_S:
                settled_at = trio.current_time()
                self._settle(unused_s=SETTLED_S)

    async def _answers(self, server: ShardServer) -> bool:
        """Whether it answers. It serves one client at a time, so this says nothing once it is leased again."""
        while True:
            before = processor_s(server.pid)
            try:
                assert isinstance(self._backend, ShardingBackend)
                await self._backend.probe(server.port, timeout_s=_PROBE_S)
            except LoadFailed:
                # It may still be computing what nobody wants any more.
                after = processor_s(server.pid)
                if before is None or after is None or after - before < _BUSY_SHARE * _PROBE_S:
                    return False
            else:
                return True

    def _settle(self, *, unused_s: float = 0.0) -> None:
        if self._cache is not None:
            try:
                self._cache.settle(unused_s=unused_s)
            except OSError as error:
                _log.warning("what is in %s is not used again: %s", self._cache.folder, error)

    def _on_change(self) -> None:
        """Something of the tunnels has changed; perhaps this one."""
        holder = self._tunnels.holder(self.name)
        if holder != self._held_by:
            self._held_by = holder
            self._leases += 1
            self._looks.set()


def _end_stopped(process: psutil.Process) -> bool:
    """Whether somebody had stopped it, or a child of it."""
    found = False
    try:
        for one in (process, *process.children(recursive=True)):
            if one.status() in _STOPPED:
                _log.warning("process %d was stopped, and is ended", one.pid)
                one.kill()
                found = True
    except psutil.NoSuchProcess:
        pass  # it has ended by itself
    return found


async def _either(one: trio.Event, other: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, one)
        nursery.start_soon(wait, other)


def _free_port() -> int:
    """llama.cpp takes a port, not a socket. Should another program take it first, the server does not come up, and is
    started again on another."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
