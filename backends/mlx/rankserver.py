"""Lends this machine as a rank of other nodes' models: a server on 127.0.0.1 that a tunnel leads to.

    python -m backends.mlx.rankserver SETTINGS FD

FD is a socket: one line of JSON goes out there when it listens, and its end is the order to exit. One model at a time;
the rank itself is a child (backends/mlx/rank.py), which lives as long as the `control` connection that asked for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil

from backends.mlx.folder import identity
from backends.mlx.ring import (
    MEETING_S,
    VERSION,
    Ends,
    Facts,
    Hello,
    Part,
    Word,
    dial,
    free_port,
    join,
    line,
)
from backends.sharding import ServerReady
from backends.types import LoadFailed

_HELLO_S = 5.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to run it."""

    port: int
    models: str  # a file: the folders of models that it may take part in, a JSON array; read again each time
    memory_bytes: int | None = None  # of it; None: all there is


class _Rank:
    """The one that runs."""

    def __init__(self, part: Part, folder: str) -> None:
        self.part = part
        self.folder = folder
        self.own_port = free_port()
        self.dialled: asyncio.Future[Ends] = asyncio.get_running_loop().create_future()


class Server:
    """Answers connections."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rank: _Rank | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        with contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError):
            try:
                first = await asyncio.wait_for(reader.readline(), _HELLO_S)
                hello = msgspec.json.decode(first, type=Hello)
                await self._answer(hello, (reader, writer))
            except msgspec.MsgspecError as error:
                writer.write(line(Word("failed", f"That is no greeting: {error}")))
        writer.close()

    async def _answer(self, hello: Hello, far: Ends) -> None:
        rank = self._rank
        if hello.role == "probe":
            far[1].write(line(self._facts()))
        elif hello.role == "control":
            try:
                await self._run(self._accept(hello), far)
            except LoadFailed as error:
                far[1].write(line(Word("failed", error.message)))
        elif rank is None:
            return
        elif hello.role == "in":
            await join(far, await dial(rank.own_port, patience_s=MEETING_S))
        else:
            await join(far, await asyncio.wait_for(rank.dialled, MEETING_S))

    def _facts(self) -> Facts:
        memory = psutil.virtual_memory()
        return Facts(
            version=VERSION,
            free_bytes=min(memory.available, self._settings.memory_bytes or memory.available),
            total_bytes=memory.total,
            identities=tuple(self._folders()),
            busy=self._rank is not None,
        )

    def _folders(self) -> dict[str, str]:
        found = {}
        try:
            folders = msgspec.json.decode(Path(self._settings.models).read_bytes(), type=list[str])
        except (OSError, msgspec.MsgspecError):
            return {}
        for folder in folders:
            with contextlib.suppress(LoadFailed):
                found[identity(Path(folder))] = folder
        return found

    def _accept(self, hello: Hello) -> _Rank:
        if hello.version != VERSION:
            raise LoadFailed(f"This rank speaks version {VERSION}; the head speaks {hello.version[:20]}.")
        if hello.part is None or not 0 < hello.part.rank < hello.part.size:
            raise LoadFailed("The head did not say which part of a model this rank is to be.")
        if self._rank is not None:
            raise LoadFailed("This rank is part of another model.")
        folder = self._folders().get(hello.part.identity)
        if folder is None:
            raise LoadFailed("This node has no model with these weights.")
        return _Rank(hello.part, folder)

    async def _run(self, rank: _Rank, control: Ends) -> None:
        self._rank = rank
        ours, theirs = socket.socketpair()
        listener = socket.create_server(("127.0.0.1", 0))

        async def dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if rank.dialled.done():
                writer.close()
            else:
                rank.dialled.set_result((reader, writer))

        process: asyncio.subprocess.Process | None = None
        try:
            async with await asyncio.start_server(dialled, sock=listener):
                ports = [str(rank.own_port), str(listener.getsockname()[1])]
                part = msgspec.json.encode(rank.part).decode()
                command = [sys.executable, "-m", "backends.mlx.rank", rank.folder, part, *ports, str(theirs.fileno())]
                with theirs:
                    process = await asyncio.create_subprocess_exec(
                        *command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                    )
                control[1].write(line(Word("here")))
                await join(control, await asyncio.open_connection(sock=ours))
        finally:
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            self._rank = None


async def main(settings: Settings, node: socket.socket) -> None:
    """Serve until the node ends its socket."""
    server = await asyncio.start_server(Server(settings).serve, "127.0.0.1", settings.port)
    reader, writer = await asyncio.open_connection(sock=node)
    device = "gpu" if sys.platform == "darwin" else "cpu"
    writer.write(line(ServerReady(devices=(device,), bytes_per_s=0.0)))
    await writer.drain()
    assert server.is_serving()
    await reader.read(1)
    os._exit(0)  # ranks end with their sockets


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Settings), socket.socket(fileno=int(sys.argv[2]))))
