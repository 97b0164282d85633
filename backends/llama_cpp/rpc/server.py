"""The process of an RPC server: llama.cpp's own, on a loopback port, until its node goes.

It serves one client at a time, believes everything it is told, and ends when a client tells it nonsense of certain
kinds: hence a process of its own, behind a tunnel that only members reach, with whoever started it looking after it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import threading
from typing import NoReturn

import msgspec
import psutil

from backends.llama_cpp.rpc.devices import (
    Handle,
    device_array,
    device_name,
    named_device,
    own_devices,
    rpc_function,
)
from backends.llama_cpp.rpc.speed import measure
from backends.sharding import ServerReady, ServerSettings
from backends.types import LoadFailed

_OWN_BYTES = 64 << 20
"""What the process itself takes, beside what it holds for others: threads' stacks, buffers of messages."""


def main() -> NoReturn:
    """Serve. Arguments: the settings as JSON, and the descriptor of the node's socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the node's terminal is the node's to handle
    settings = msgspec.json.decode(sys.argv[-2], type=ServerSettings)
    lifeline = socket.socket(fileno=int(sys.argv[-1]))
    threading.Thread(target=_follow, args=(lifeline,), name="lifeline", daemon=True).start()
    try:
        _serve(settings, lifeline)
    except LoadFailed as error:
        sys.stderr.write(f"{error.message}\n")
        sys.stderr.flush()
    os._exit(1)  # llama.cpp's server never returns but on an error


def _serve(settings: ServerSettings, lifeline: socket.socket) -> None:
    start = rpc_function(
        "ggml_backend_rpc_start_server",
        None,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.POINTER(Handle),
    )
    devices = [named_device(settings.device)] if settings.device else own_devices()
    if not devices:
        raise LoadFailed("llama.cpp finds no device here.")
    threads = settings.threads or psutil.cpu_count(logical=False) or 1
    ready = ServerReady(
        devices=tuple(device_name(device) for device in devices),
        bytes_per_s=min(measure(device, threads) for device in devices),
    )
    if settings.memory_bytes is not None:
        _bound(settings.memory_bytes)
    lifeline.sendall(msgspec.json.encode(ready) + b"\n")
    start(
        f"127.0.0.1:{settings.port}".encode(),
        settings.cache.encode() or None,
        threads,
        len(devices),
        device_array(devices),
    )


def _bound(memory_bytes: int) -> None:
    """Let an allocation beyond it fail: llama.cpp tells its client, who then does without. Where the system knows no
    such bound (macOS) the plan alone keeps to it."""
    if sys.platform != "linux":
        return
    used = psutil.Process().memory_info().data
    limit = used + _OWN_BYTES + memory_bytes + memory_bytes // 8  # a message is held whole before it is placed
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard in (resource.RLIM_INFINITY, -1) or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _follow(lifeline: socket.socket) -> NoReturn:
    """The node never says anything here; when it goes, so does this process, whatever it is doing."""
    try:
        while lifeline.recv(1024):
            pass
    except OSError:
        pass
    os._exit(0)
