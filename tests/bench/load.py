"""The load generator: many clients in a process of its own, so that their cost is not the node's nor the bench's.

As cheap as it gets in Python: non-blocking sockets and a selector; answers are taken apart after the last one came.
`python -m tests.bench.load` reads one `Load` a line and writes the list of its `Outcome`s on one.
"""

from __future__ import annotations

import gc
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import msgspec
import trio

from tests.bench.http import Ask, Exchange, Outcome, address, encode

_RECEIVE_BYTES = 1 << 18
_SILENCE_S = 120.0
_LAZY_BYTES = 1 << 16


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """`total` requests, the given ones over and over, from `clients` clients that each have one running.

    `lazy` clients let an answer lie in the kernel until there is much of it or the server has closed the connection:
    they take no processor time from what they measure, as clients on another machine would not, and know only when
    the answer ended.

    With `arrivals_s` the requests come at those times after the load's start, whoever still waits for an answer:
    there are as many clients then as it takes.
    """

    url: str
    clients: int
    asks: list[Ask]
    total: int
    lazy: bool = False
    arrivals_s: list[float] = []


class LoadProcess:
    """The generator, seen from the bench. One load at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    async def run(
        self, url: str, asks: list[Ask], *, clients: int, total: int | None = None, lazy: bool = False
    ) -> list[Outcome]:
        """All outcomes, in the order of the requests. Raises RuntimeError if any was not a 200, or if it got stuck."""
        load = Load(url=url, clients=clients, asks=asks, total=len(asks) if total is None else total, lazy=lazy)
        return await self._run(load)

    async def arriving(self, url: str, asks: list[Ask], arrivals_s: list[float]) -> list[Outcome]:
        """As `run`, with the requests coming at their own times."""
        return await self._run(Load(url=url, clients=0, asks=asks, total=len(arrivals_s), arrivals_s=arrivals_s))

    async def _run(self, load: Load) -> list[Outcome]:
        answer = await trio.to_thread.run_sync(self._ask, msgspec.json.encode(load) + b"\n")
        if not answer:
            raise RuntimeError("The load generator ended; its last words are above.")
        outcomes = msgspec.json.decode(answer, type=list[Outcome])
        for outcome in outcomes:
            if outcome.status != 200:
                raise RuntimeError(f"A request was answered with status {outcome.status}.")
        return outcomes

    def _ask(self, line: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._process.stdout.readline()


@contextmanager
def load_process() -> Iterator[LoadProcess]:
    """Start the generator; end it on the way out."""
    command = [sys.executable, "-m", "tests.bench.load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield LoadProcess(process)
        finally:
            process.kill()


class _Client:
    """One connection, and the answer that is arriving on it."""

    def __init__(self, host: tuple[str, int], selector: selectors.BaseSelector, *, lazy: bool) -> None:
        self._host = host
        self._lazy = lazy
        self._selector = selector
        self._socket: socket.socket | None = None
        self.number = -1
        self.exchange = Exchange(0.0)

    def connect(self) -> None:
        self._socket = socket.create_connection(self._host)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._lazy:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _LAZY_BYTES)
        self._selector.register(self._socket, selectors.EVENT_READ, self)

    def close(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def send(self, number: int, request: bytes) -> None:
        self.number = number
        if self._socket is None:
            self.connect()
        assert self._socket is not None
        self.exchange = Exchange(time.monotonic())
        self._socket.sendall(request)

    def receive(self) -> bool:
        assert self._socket is not None
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            raise RuntimeError("The server closed a connection in the middle of an answer.")
        done = self.exchange.feed(time.monotonic(), data)
        if done and (self.exchange.closes or self._lazy):
            self.close()
        return done


def run(load: Load) -> list[Outcome]:
    """Carry out `load`."""
    requests = [encode(ask, address(load.url)[0], last=load.lazy) for ask in load.asks]
    exchanges: dict[int, Exchange] = {}
    with selectors.DefaultSelector() as selector:
        clients = [_Client(address(load.url), selector, lazy=load.lazy) for _ in range(min(load.clients, load.total))]
        for client in clients:
            client.connect()
        numbers = count()
        for client in clients:
            number = next(numbers)
            client.send(number, requests[number % len(requests)])
        while len(exchanges) < load.total:
            ready = selector.select(_SILENCE_S)
            if not ready:
                raise RuntimeError(f"Nothing came for {_SILENCE_S:.0f} s.")
            for key, _ in ready:
                client = key.data
                if client.receive():
                    exchanges[client.number] = client.exchange
                    if (number := next(numbers)) < load.total:
                        client.send(number, requests[number % len(requests)])
                    else:
                        client.close()
    return [exchanges[number].outcome() for number in range(load.total)]


def run_arriving(load: Load) -> list[Outcome]:
    """Carry out a `load` whose requests have their times."""
    requests = [encode(ask, address(load.url)[0]) for ask in load.asks]
    exchanges: dict[int, Exchange] = {}
    with selectors.DefaultSelector() as selector:
        free: list[_Client] = []
        started = time.monotonic()
        last = started
        number = 0
        while len(exchanges) < load.total:
            now = time.monotonic()
            while number < load.total and started + load.arrivals_s[number] <= now:
                client = free.pop() if free else _Client(address(load.url), selector, lazy=False)
                client.send(number, requests[number % len(requests)])
                number += 1
            wait_s = started + load.arrivals_s[number] - now if number < load.total else _SILENCE_S
            for key, _ in selector.select(max(0.0, wait_s)):
                client = key.data
                if client in free:  # the server has had enough of an idle connection
                    free.remove(client)
                    client.close()
                    continue
                last = time.monotonic()
                if client.receive():
                    exchanges[client.number] = client.exchange
                    free.append(client)
            if time.monotonic() - last > _SILENCE_S:
                raise RuntimeError(f"Nothing came for {_SILENCE_S:.0f} s.")
    return [exchanges[number].outcome() for number in range(load.total)]


def main() -> None:
    """Carry out loads until the standard input ends."""
    gc.disable()  # a pause here would look like one of the server's
    for line in sys.stdin.buffer:
        load = msgspec.json.decode(line, type=Load)
        outcomes = run_arriving(load) if load.arrivals_s else run(load)
        sys.stdout.buffer.write(msgspec.json.encode(outcomes) + b"\n")
        sys.stdout.buffer.flush()
        del outcomes
        gc.collect()


if __name__ == "__main__":
    main()
