"""The pump process: `python -m mesh.tunnel.direct.process CONTROL COUNTERS CERTIFICATE KEY HOST PORT`.

One thread moves bytes. It opens the port while a ticket is out, and closes it again; what connects there, and what is
dialled, is heard out by threads of their own (`setup.py`), a few at a time, before this one looks at it. It believes
its node, and nobody else.
"""

from __future__ import annotations

import base64
import hashlib
import mmap
import os
import queue
import selectors
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from mesh.tunnel.direct.orders import COUNTERS, TICKET_S, WAYS, Lines, encode
from mesh.tunnel.direct.pipe import Pipe
from mesh.tunnel.direct.setup import WELCOME, Own, accept, dial

MAX_GUESTS = 8
"""Strangers being heard out; one more takes the place of nobody, and is hung up on."""
_NICENESS = 5
"""Where all cores are taken, a gigabyte of weights waits for the node's calls, not they for it."""
_BACKLOG = 8
_RECEIVE_BYTES = 64 << 10


@dataclass
class _Ticket:
    way: int
    certificate: bytes
    until: float


class Pumps:
    """All of the process."""

    def __init__(self, control: socket.socket, counters: mmap.mmap, own: Own, host: str, port: int) -> None:
        self._control, self._counters, self._own = control, counters, own
        self._host, self._port = host, port
        self._selector = selectors.DefaultSelector()
        self._lines, self._sockets = Lines(), list[int]()
        self._tickets: dict[bytes, _Ticket] = {}  # by their hash: no look-up tells by its time how close a guess was
        self._up: dict[int, tuple[ssl.SSLSocket, float]] = {}
        self._pipes: dict[int, Pipe] = {}
        self._listener: socket.socket | None = None
        self._context: ssl.SSLContext | None = None
        self._guests = 0
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # from threads
        self._bell, self._ring = socket.socketpair()

    def run(self) -> NoReturn:
        """Until the node goes."""
        self._control.setblocking(True)
        self._bell.setblocking(False)
        self._selector.register(self._control, selectors.EVENT_READ, self._on_control)
        self._selector.register(self._bell, selectors.EVENT_READ, self._on_bell)
        while True:
            deadlines = [ticket.until for ticket in self._tickets.values()] + [until for _, until in self._up.values()]
            timeout_s = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, events in self._selector.select(timeout_s):
                key.data(events)
            if deadlines:
                self._forget_late()

    # The node

    def _on_control(self, _: int) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, _RECEIVE_BYTES, 16)
        except OSError:
            data = b""
        if not data:
            os._exit(0)
        self._sockets += descriptors
        for order in self._lines.feed(data):
            self._obey(order)

    def _tell(self, **fields: Any) -> None:
        try:
            self._control.sendall(encode(**fields))
        except OSError:
            os._exit(0)

    def _obey(self, order: dict[str, Any]) -> None:
        way: int = order["way"]
        match order["do"]:
            case "invite":
                self._invite(way, base64.b64decode(order["certificate"]), base64.b64decode(order["ticket"]))
            case "dial":
                self._in_thread(self._dial, order)
            case "carry":
                self._carry(way, order["slot"], socket.socket(fileno=self._sockets.pop(0)))
            case "drop" if way in self._pipes:
                self._pipes[way].close()
            case "drop":
                self._drop(way)
                self._tell(do="over", way=way, whole=False)

    def _drop(self, way: int) -> None:
        if way in self._up:
            self._up.pop(way)[0].close()
        else:
            self._tickets = {name: ticket for name, ticket in self._tickets.items() if ticket.way != way}
            self._keep_listening()

    def _carry(self, way: int, slot: int, near: socket.socket) -> None:
        if way not in self._up:
            near.close()
            self._tell(do="over", way=way, whole=False)
            return
        far, _ = self._up.pop(way)
        offset = slot * COUNTERS.size

        def count(sent: int, received: int, trips: int) -> None:
            COUNTERS.pack_into(self._counters, offset, sent, received, trips)

        def over(whole: bool) -> None:
            self._pipes.pop(way, None)
            self._tell(do="over", way=way, whole=whole)

        self._pipes[way] = Pipe(near, far, self._selector, count, over)

    # Dialling

    def _dial(self, order: dict[str, Any]) -> None:
        way: int = order["way"]
        try:
            far = dial(
                self._own,
                order["hosts"],
                order["port"],
                base64.b64decode(order["certificate"]),
                base64.b64decode(order["ticket"]),
            )
        except (OSError, ValueError) as error:
            why = str(error)
            self._then(lambda: self._tell(do="failed", way=way, why=why))
        else:
            self._then(lambda: self._is_up(way, far))

    def _is_up(self, way: int, far: ssl.SSLSocket) -> None:
        self._up[way] = far, time.monotonic() + TICKET_S
        self._tell(do="up", way=way)

    # Being dialled

    def _invite(self, way: int, certificate: bytes, ticket: bytes) -> None:
        try:
            self._tickets[hashlib.sha256(ticket).digest()] = _Ticket(way, certificate, time.monotonic() + TICKET_S)
            self._keep_listening()
            assert self._listener is not None
            self._tell(do="open", way=way, port=self._listener.getsockname()[1])
        except (OSError, ValueError) as error:  # the port is taken; the certificate is none
            self._drop(way)
            self._tell(do="failed", way=way, why=str(error))

    def _keep_listening(self) -> None:
        """The port is open while a ticket is out, and knows the certificates of those who were given one."""
        self._context = None
        if self._tickets:
            trusted = sorted({ticket.certificate for ticket in self._tickets.values()})
            self._context = self._own.context(server=True, trusted=trusted)
            if self._listener is None:
                family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
                self._listener = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
                self._listener.setblocking(False)
                self._selector.register(self._listener, selectors.EVENT_READ, self._on_guest)
        elif self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _on_guest(self, _: int) -> None:
        if self._listener is None:
            return
        try:
            plain, _ = self._listener.accept()
        except OSError:
            return
        if self._guests >= MAX_GUESTS or self._context is None:
            plain.close()
            return
        self._guests += 1
        self._in_thread(self._hear_out, plain, self._context)

    def _hear_out(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        try:
            accept(plain, context, lambda *shown: self._then(lambda: self._on_ticket(*shown)))
        finally:
            self._then(self._guest_leaves)

    def _guest_leaves(self) -> None:
        self._guests -= 1

    def _on_ticket(self, far: ssl.SSLSocket, certificate: bytes, shown: bytes) -> None:
        name = hashlib.sha256(shown).digest()
        ticket = self._tickets.get(name)
        if ticket is None or ticket.certificate != certificate or ticket.until < time.monotonic():
            far.close()
            return
        del self._tickets[name]
        self._keep_listening()
        try:
            far.sendall(WELCOME)
        except OSError as error:
            far.close()
            self._tell(do="failed", way=ticket.way, why=str(error))
        else:
            self._is_up(ticket.way, far)

    # Threads and time

    def _in_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _then(self, action: Callable[[], None]) -> None:
        """From a thread: have the loop do it."""
        self._done.put(action)
        self._ring.send(b"!")

    def _on_bell(self, _: int) -> None:
        self._bell.recv(_RECEIVE_BYTES)
        while True:
            try:
                action = self._done.get_nowait()
            except queue.Empty:
                return
            action()

    def _forget_late(self) -> None:
        now = time.monotonic()
        for ticket in [ticket for ticket in self._tickets.values() if ticket.until <= now]:
            self._drop(ticket.way)
            self._tell(do="failed", way=ticket.way, why="nobody came")
        for way in [way for way, (_, until) in self._up.items() if until <= now]:
            self._drop(way)
            self._tell(do="failed", way=way, why="it was not used")


def main() -> NoReturn:
    """Pump, until the node goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the node's terminal is the node's to handle
    os.nice(_NICENESS)
    control, counters, certificate, key = (int(argument) for argument in sys.argv[1:5])
    shared = mmap.mmap(counters, COUNTERS.size * WAYS)
    own = Own(certificate, key)
    Pumps(socket.socket(fileno=control), shared, own, sys.argv[5], int(sys.argv[6])).run()


if __name__ == "__main__":
    main()
