"""An RPC server that may lie, die or hang: llama.cpp's own behind a proxy that knows where in the protocol it is.

    python -m tests.support.rpcproxy SETTINGS FD     as the node starts a shard server

Run by `python -m tests.support.liar`, which is `mesh` but for that. Its fault is read from the file `fault.json` of the
node's data folder at every connection; what happens once (`dies`, `hangs`) removes the file when it happens.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAULT_FILE = "fault.json"
FAST_BYTES_PER_S = 1e12  # that it claims: so plans prefer it
SET_TENSOR, GRAPH_COMPUTE, DEVICE_MEMORY, HELLO = 6, 10, 11, 14
GRAPH_RECOMPUTE = 16


@dataclass(frozen=True)
class Fault:
    """What is wrong with it; nothing by default."""

    dies: tuple[int, int] | None = None
    """At which command (SET_TENSOR, GRAPH_COMPUTE), and at which time that it comes."""
    hangs: tuple[int, int] | None = None
    version: int | None = None
    """That it claims of its protocol, but to its own node."""
    claims_bytes: int | None = None
    """Of free memory."""
    claims_from_start: bool = False
    """Also to its own node, when that starts it."""
    has_bytes: int | None = None
    """Of memory, whatever it claims. Read at its start."""


def write_fault(data: Path, fault: Fault) -> None:
    """From the next connection on it is so."""
    data.mkdir(parents=True, exist_ok=True)
    (data / FAULT_FILE).write_text(json.dumps(vars(fault)))


def read_fault(file: Path) -> Fault:
    """What is written there; no fault where nothing is."""
    try:
        return Fault(**json.loads(file.read_text()))
    except FileNotFoundError:
        return Fault()


def main() -> None:
    """Until the node ends its socket."""
    settings: dict[str, Any] = json.loads(sys.argv[-2])
    lifeline = socket.socket(fileno=int(sys.argv[-1]))
    file = Path(settings["cache"]).parent / FAULT_FILE
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ours, theirs = socket.socketpair()
    changes = {"port": port, "memory_bytes": read_fault(file).has_bytes or settings["memory_bytes"]}
    command = [sys.executable, "-m", "backends.llama_cpp.rpc", json.dumps(settings | changes), str(theirs.fileno())]
    with theirs:
        subprocess.Popen(command, pass_fds=[theirs.fileno()])
    ready = json.loads(ours.makefile().readline())
    listener = socket.create_server(("127.0.0.1", settings["port"]))
    lifeline.sendall(json.dumps(ready | {"bytes_per_s": FAST_BYTES_PER_S}).encode() + b"\n")
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    first = True
    while True:  # one client at a time, as the real one
        client, _ = listener.accept()
        with client, _reached(port) as server:
            _Session(client, server, file, own_node=first).serve()
        first = False


def _end_with(lifeline: socket.socket) -> None:
    lifeline.recv(1)
    os._exit(0)


def _reached(port: int) -> socket.socket:
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.05)
    os._exit(1)


class _Session:
    """One client."""

    def __init__(self, client: socket.socket, server: socket.socket, file: Path, *, own_node: bool) -> None:
        self._client, self._server, self._file = client, server, file
        self._own_node = own_node
        self._fault = read_fault(file)
        self._seen: dict[int, int] = {}

    def serve(self) -> None:
        answers = threading.Thread(target=self._answer, daemon=True)
        answers.start()
        try:
            while command := self._client.recv(1):
                size = self._exactly(8)
                body = self._exactly(int.from_bytes(size, "little"))
                if not self._taken(command[0]):
                    self._server.sendall(command + size + body)
        except OSError:
            pass
        self._server.shutdown(socket.SHUT_RDWR)
        answers.join()

    def _taken(self, command: int) -> bool:
        """Does what the fault says at this command; whether it was answered here."""
        fault = self._fault
        kind = GRAPH_COMPUTE if command == GRAPH_RECOMPUTE else command
        self._seen[kind] = self._seen.get(kind, 0) + 1
        now = (kind, self._seen[kind])
        if fault.dies is not None and now == tuple(fault.dies):
            self._file.unlink()
            os._exit(1)
        if fault.hangs is not None and now == tuple(fault.hangs):
            self._file.unlink()
            threading.Event().wait()
        if command == HELLO and fault.version is not None and not self._own_node:
            self._reply(bytes([fault.version, 0, 0, 0]) + bytes(24))
            return True
        told = not self._own_node or fault.claims_from_start
        if command == DEVICE_MEMORY and fault.claims_bytes is not None and told:
            self._reply(fault.claims_bytes.to_bytes(8, "little") * 2)
            return True
        return False

    def _reply(self, body: bytes) -> None:
        self._client.sendall(len(body).to_bytes(8, "little") + body)

    def _answer(self) -> None:
        try:
            while data := self._server.recv(1 << 16):
                self._client.sendall(data)
            self._client.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._client.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise ConnectionResetError
            data += piece
        return bytes(data)


if __name__ == "__main__":
    main()
