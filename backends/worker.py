"""The child process's main loop: frames in, engine steps, frames out. Knows no particular engine.

Three threads, one owner each:

    reader   the socket's input; it puts events into the inbox. When the node closes the socket or is gone (end of
             file, also after a SIGKILL) it ends the process at once, whatever the engine is doing: a worker never
             becomes an orphan.
    prepare  one thread on which `Engine.prepare` checks and tokenizes, so that a huge prompt or grammar does not
             stop the batch.
    main     everything else of the engine, and the socket's output.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

import msgspec
import psutil

from backends.engine import Engine
from backends.frames import INITIAL_CREDIT, Decoder, Frame, Kind, encode
from backends.types import (
    Chunk,
    EngineFault,
    EngineStats,
    LoadSpec,
    MeshError,
    Request,
    Sampling,
    Usage,
    decode_request,
    encode_chunk,
    to_failure,
)
from backends.types.requests import Generation

OpenEngine = Callable[[LoadSpec, Callable[[float], None]], Engine]
"""Opens a model; the second argument reports the share done. Raises LoadFailed."""

STATS_EVERY_S = 1.0
_RECEIVE_BYTES = 1 << 16


def main(open_engine: OpenEngine) -> NoReturn:
    """Run a worker on the socket whose descriptor is the last argument of the command line; then exit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the node's terminal is the node's to handle
    with socket.socket(fileno=int(sys.argv[-1])) as channel:
        channel.setblocking(True)
        _Worker(channel, open_engine).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # not through atexit: a prepare thread or a C++ destructor must not hold the process


class _Inbox:
    """Events from the other threads; the main thread sleeps here while the engine has nothing to do."""

    def __init__(self) -> None:
        self._events: deque[Frame | tuple[int, Future[Any]]] = deque()
        self._ready = threading.Condition()

    def put(self, event: Frame | tuple[int, Future[Any]]) -> None:
        with self._ready:
            self._events.append(event)
            self._ready.notify()

    def take(self, *, wait: bool) -> list[Frame | tuple[int, Future[Any]]]:
        with self._ready:
            while wait and not self._events:
                self._ready.wait()
            events = list(self._events)
            self._events.clear()
            return events


class _Outlet:
    """Frames of one step, sent in one write, and the credit of each running call."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._out = bytearray()
        self._lock = threading.Lock()  # progress of a load may come from another thread
        self.credit: dict[int, int] = {}

    def send(self, kind: Kind, call: int, body: bytes = b"") -> None:
        with self._lock:
            self._out += encode(kind, call, body)

    def flush(self) -> None:
        with self._lock:
            if self._out:
                self._channel.sendall(self._out)
                self._out.clear()

    def chunk(self, call: int, chunk: Chunk) -> None:
        if call in self.credit:
            self.credit[call] -= 1
            self.send(Kind.CHUNK, call, encode_chunk(chunk))

    def done(self, call: int, usage: Usage) -> None:
        if self.credit.pop(call, None) is not None:
            self.send(Kind.DONE, call, msgspec.msgpack.encode(usage))

    def failed(self, call: int, error: MeshError) -> None:
        if self.credit.pop(call, None) is not None:
            self.send(Kind.FAILED, call, msgspec.msgpack.encode(to_failure(error)))

    def ready(self, call: int) -> bool:
        return self.credit.get(call, 1) > 0


class _Worker:
    def __init__(self, channel: socket.socket, open_engine: OpenEngine) -> None:
        self._channel = channel
        self._open_engine = open_engine
        self._inbox = _Inbox()
        self._outlet = _Outlet(channel)
        self._preparing: set[int] = set()
        self._prepare = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    def run(self) -> None:
        """Load, then serve until the channel ends; returns only when the model cannot be opened."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        first = self._inbox.take(wait=True)[0]
        if not isinstance(first, Frame) or first.kind is not Kind.LOAD:
            return
        spec = msgspec.msgpack.decode(first.body, type=LoadSpec)
        try:
            started = time.monotonic()
            engine = self._open_engine(spec, self._progress)
        except MeshError as error:
            self._outlet.send(Kind.FAILED, 0, msgspec.msgpack.encode(to_failure(error)))
            self._outlet.flush()
            return
        info = msgspec.structs.replace(engine.info(), load_s=time.monotonic() - started)
        self._outlet.send(Kind.READY, 0, msgspec.msgpack.encode(info))
        self._outlet.flush()
        self._serve(engine, _Defaults(spec))

    def _read(self) -> None:
        decoder = Decoder()
        while True:
            try:
                data = self._channel.recv(_RECEIVE_BYTES)
            except OSError:
                data = b""
            if not data:
                os._exit(0)
            for frame in decoder.feed(data):
                self._inbox.put(frame)

    def _progress(self, share: float) -> None:
        self._outlet.send(Kind.PROGRESS, 0, msgspec.msgpack.encode(share))
        self._outlet.flush()

    def _serve(self, engine: Engine, defaults: _Defaults) -> NoReturn:
        process = psutil.Process()
        working = False
        stats_due = 0.0
        while True:
            for event in self._inbox.take(wait=not working):
                if isinstance(event, Frame):
                    self._on_frame(engine, defaults, event)
                else:
                    self._on_prepared(engine, *event)
            was_working, working = working, engine.step(self._outlet)
            now = time.monotonic()
            if now >= stats_due or (was_working and not working):
                stats_due = now + STATS_EVERY_S
                self._send_stats(engine.stats(), process)
            self._outlet.flush()

    def _send_stats(self, stats: EngineStats, process: psutil.Process) -> None:
        stats = msgspec.structs.replace(stats, memory_bytes=process.memory_info().rss)
        self._outlet.send(Kind.STATS, 0, msgspec.msgpack.encode(stats))

    def _on_frame(self, engine: Engine, defaults: _Defaults, frame: Frame) -> None:
        call = frame.call
        match frame.kind:
            case Kind.OPEN:
                self._outlet.credit[call] = INITIAL_CREDIT
                self._preparing.add(call)
                future = self._prepare.submit(_prepare, engine, defaults, call, frame.body)
                future.add_done_callback(lambda done: self._inbox.put((call, done)))
            case Kind.CANCEL:
                self._outlet.credit.pop(call, None)
                if call in self._preparing:
                    self._preparing.discard(call)
                else:
                    engine.cancel(call)
            case Kind.CREDIT:
                if call in self._outlet.credit:
                    self._outlet.credit[call] += msgspec.msgpack.decode(frame.body, type=int)
            case other:
                raise RuntimeError(f"A node never sends {other.name} to a running worker.")

    def _on_prepared(self, engine: Engine, call: int, future: Future[Any]) -> None:
        if call not in self._preparing:
            return  # cancelled meanwhile
        self._preparing.discard(call)
        match future.exception():
            case None:
                engine.submit(future.result())
            case MeshError() as error:
                self._outlet.failed(call, error)
            case error:
                traceback.print_exception(error)  # into the model's log ring
                self._outlet.failed(call, EngineFault("The engine failed to prepare this request; see its log."))


def _prepare(engine: Engine, defaults: _Defaults, call: int, body: bytes) -> Any:
    return engine.prepare(call, defaults.fill(decode_request(body)))


class _Defaults:
    """What a model's YAML sets for requests that leave it open."""

    def __init__(self, spec: LoadSpec) -> None:
        self._sampling = msgspec.convert(spec.sampling, Sampling, strict=False)
        self._max_tokens = spec.max_tokens
        self._stop = spec.stop

    def fill(self, request: Request) -> Request:
        if not isinstance(request, Generation):
            return request
        return msgspec.structs.replace(
            request,
            sampling=request.sampling.over(self._sampling),
            max_tokens=self._max_tokens if request.max_tokens is None else request.max_tokens,
            stop=request.stop + self._stop,
        )
