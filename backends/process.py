"""Workers as the node sees them: start one, talk to it, and never leave it behind.

A worker shares with its node one socket pair, handed over by descriptor; its standard output and error go into a
`LogRing`. When the node dies the worker reads the end of that socket and ends itself (see backends/worker.py), so
that no orphan is possible even after a SIGKILL.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from backends.engine import Backend
from backends.frames import INITIAL_CREDIT, Decoder, Frame, FrameError, Kind, encode
from backends.types import (
    EngineCrashed,
    EngineInfo,
    EngineStats,
    Failure,
    LoadFailed,
    LoadSpec,
    MeshError,
    Usage,
    from_failure,
)

_RECEIVE_BYTES = 1 << 16
_LINE_CHARS = 2_000
EXIT_GRACE_S = 2.0  # between the end of a worker's socket and the end of its process


class LogRing:
    """The last lines that the workers of one model wrote to standard output and error; outlives a restart."""

    def __init__(self, lines: int = 500) -> None:
        self._lines: deque[str] = deque(maxlen=lines)

    def append(self, line: str) -> None:
        """Add one line; an endless one is cut."""
        self._lines.append(line[:_LINE_CHARS])

    def lines(self) -> list[str]:
        """All lines kept, oldest first."""
        return list(self._lines)

    def tail(self, count: int) -> list[str]:
        """The last `count` lines, oldest first."""
        return list(self._lines)[-count:] if count > 0 else []


class WorkerCall:
    """One call on a worker, seen from the node. Buffers at most `INITIAL_CREDIT` chunks."""

    def __init__(self, give_credit: Callable[[int], None]) -> None:
        self.usage = Usage()
        self.awaited = False
        """Somebody waits for the next chunk, and the engine may send it."""
        self._chunks: list[bytes] = []
        self._changed = trio.Event()
        self._ended = False
        self._error: MeshError | None = None
        self._give_credit = give_credit

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """The encoded chunks, all that are ready at once together.

        Raises the MeshError that ended the call; EngineCrashed when the worker died. Chunks that came before it
        are delivered first.
        """
        owed = 0
        while True:
            if chunks := self._chunks:
                self._chunks = []
                owed += len(chunks)
                if owed >= INITIAL_CREDIT // 2 and not self._ended:
                    self._give_credit(owed)
                    owed = 0
                yield chunks
            elif self._ended:
                if self._error is not None:
                    raise self._error
                return
            else:
                self._changed = trio.Event()
                self.awaited = True
                try:
                    await self._changed.wait()
                finally:
                    self.awaited = False

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.CHUNK:
                self._chunks.append(frame.body)
            case Kind.DONE:
                self.usage = msgspec.msgpack.decode(frame.body, type=Usage)
                self._ended = True
            case Kind.FAILED:
                self._fail(from_failure(msgspec.msgpack.decode(frame.body, type=Failure)))
            case other:
                raise FrameError(f"A worker sent {other.name} for a call.")
        self._changed.set()

    def _fail(self, error: MeshError) -> None:
        self._ended = True
        self._error = error
        self._changed.set()


class Worker:
    """A running worker with its model open. Made by `open_worker`."""

    def __init__(self, name: str, process: trio.Process, stream: trio.SocketStream) -> None:
        self.info = EngineInfo(capabilities=(), context_tokens=0, slots=0)
        self.stats = EngineStats()
        self.pid = process.pid
        self.died = trio.Event()
        self._name = name
        self._process = process
        self._stream = stream
        self._calls: dict[int, WorkerCall] = {}
        self._last_call = 0
        self._out = bytearray()
        self._out_changed = trio.Event()
        self._loaded = trio.Event()
        self._load_error: MeshError | None = None
        self._death: EngineCrashed | None = None

    @asynccontextmanager
    async def call(self, request: bytes) -> AsyncIterator[WorkerCall]:
        """Start a call; `request` is an encoded Request. Leaving the context cancels what still runs.

        Raises EngineCrashed when the worker is already dead.
        """
        if self._death is not None:
            raise self._death
        self._last_call = self._last_call % 0xFFFFFFFF + 1
        number = self._last_call
        call = WorkerCall(lambda count: self._post(Kind.CREDIT, number, msgspec.msgpack.encode(count)))
        self._calls[number] = call
        self._post(Kind.OPEN, number, request)
        try:
            yield call
        finally:
            del self._calls[number]
            if not call._ended:
                self._post(Kind.CANCEL, number)

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for what the engine does. One whose reader is slow does not wait."""
        return any(call.awaited for call in self._calls.values())

    # -- what open_worker drives --

    def _post(self, kind: Kind, call: int, body: bytes = b"") -> None:
        self._out += encode(kind, call, body)
        self._out_changed.set()

    async def _write(self) -> None:
        # One task writes: a frame must never be cut by the cancellation of the call that sent it.
        while True:
            if not self._out:
                self._out_changed = trio.Event()
                await self._out_changed.wait()
            data = bytes(self._out)
            self._out.clear()
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # _read sees the same and reports it

    async def _read(self, progress: Callable[[float], None]) -> None:
        decoder = Decoder()
        reason = "closed its channel"
        try:
            while data := await self._stream.receive_some(_RECEIVE_BYTES):
                for frame in decoder.feed(data):
                    self._on_frame(frame, progress)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except (FrameError, msgspec.MsgspecError) as error:
            reason = f"sent bytes that are not ours ({error})"
            self._process.kill()
        await self._on_gone(reason)

    def _on_frame(self, frame: Frame, progress: Callable[[float], None]) -> None:
        if frame.call:
            if call := self._calls.get(frame.call):
                call._on_frame(frame)
            return
        match frame.kind:
            case Kind.STATS:
                self.stats = msgspec.msgpack.decode(frame.body, type=EngineStats)
            case Kind.PROGRESS:
                progress(msgspec.msgpack.decode(frame.body, type=float))
            case Kind.READY:
                self.info = msgspec.msgpack.decode(frame.body, type=EngineInfo)
                self._loaded.set()
            case Kind.FAILED:
                self._load_error = from_failure(msgspec.msgpack.decode(frame.body, type=Failure))
                self._loaded.set()
            case other:
                raise FrameError(f"A worker sent {other.name} without a call.")

    async def _on_gone(self, reason: str) -> None:
        with trio.move_on_after(EXIT_GRACE_S):
            await self._process.wait()
        how = _exit_reason(self._process.returncode) or reason
        self._death = EngineCrashed(f"The engine of model {self._name} {how}.")
        for call in self._calls.values():
            if not call._ended:
                call._fail(self._death)
        self.died.set()
        self._loaded.set()

    async def _stop(self, grace_s: float) -> None:
        """End the process: the end of its channel tells it to go; if it does not go, kill it. Never cancelled."""
        with trio.CancelScope(shield=True):
            await self._stream.aclose()
            with trio.move_on_after(grace_s):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()


@asynccontextmanager
async def open_worker(
    backend: Backend,
    load: LoadSpec,
    *,
    log: LogRing,
    progress: Callable[[float], None] = lambda share: None,
    stop_grace_s: float = 5.0,
) -> AsyncIterator[Worker]:
    """Start a worker of `backend` and open the model `load` in it; stop it on the way out.

    Keep it open in one long-lived task: it owns background tasks. `progress` gets the share of the load done.
    Raises LoadFailed (or its child OutOfMemory), or EngineCrashed when the worker died while loading.
    """
    if reason := backend.unavailable():
        raise LoadFailed(f"Model {load.name} needs the backend {backend.name}: {reason}")
    process, stream = await spawn(backend.name, backend.command(), backend.environment())
    worker = Worker(load.name, process, stream)
    failure: MeshError | None = None
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(copy_output, process, log)
            nursery.start_soon(worker._read, progress)
            nursery.start_soon(worker._write)
            worker._post(Kind.LOAD, 0, msgspec.msgpack.encode(load))
            await worker._loaded.wait()
            if worker._load_error is not None:
                failure = worker._load_error
            elif worker._death is not None:
                failure = EngineCrashed(f"{worker._death.message[:-1]} while loading.")
            else:
                yield worker
        finally:
            await worker._stop(stop_grace_s)
            nursery.cancel_scope.cancel()
    if failure is not None:  # raised out here, so that no ExceptionGroup wraps it
        raise failure


async def spawn(name: str, command: list[str], environment: dict[str, str]) -> tuple[trio.Process, trio.SocketStream]:
    """Start a child that shares a socket with this process. Raises LoadFailed."""
    ours, theirs = socket.socketpair()
    # The node's own settings, among them its API keys, are none of an engine's business.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    with theirs:
        try:
            process = await trio.lowlevel.open_process(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=inherited | environment,
                start_new_session=True,  # signals for the node's terminal are the node's to handle
            )
        except OSError as error:
            ours.close()
            raise LoadFailed(f"The backend {name} cannot start its worker: {error}") from error
    return process, trio.SocketStream(trio.socket.from_stdlib_socket(ours))


async def copy_output(process: trio.Process, log: LogRing) -> None:
    """Put what it writes into `log`, until it ends."""
    assert process.stdout is not None
    line = ""
    async with process.stdout as output:
        async for data in output:
            *lines, line = (line + data.decode(errors="replace")).split("\n")
            for complete in lines:
                log.append(complete)
            line = line[:_LINE_CHARS]
    if line:
        log.append(line)


def _exit_reason(code: int | None) -> str | None:
    if code is None:
        return None
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"
