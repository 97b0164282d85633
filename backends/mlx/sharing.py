"""A model that several ranks hold together: opening one's own part, and telling the others what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.utils import load_model

from backends.mlx.device import Device
from backends.mlx.folder import Folder, identity, way_for
from backends.mlx.orders import Order, encode_order
from backends.mlx.ring import (
    MEETING_S,
    Hello,
    Part,
    Word,
    enter_ring,
    free_port,
    line,
    receive_frame,
    send_frame,
)
from backends.mlx.settings import Settings
from backends.types import LoadFailed

_RANK_LOST = 70  # exit status


def lazy_model(folder: Folder, settings: Settings) -> Any:
    """The model, its weights not read yet. Raises LoadFailed."""
    try:
        model, _ = load_model(folder.path, lazy=True)
        if settings.dtype is not None:
            model.set_dtype(getattr(mx, settings.dtype))
    except Exception as error:
        raise LoadFailed(f"MLX cannot open the model in {folder.path}: {error}") from error
    model.eval()
    return model


def way_of(model: Any, folder: Folder, size: int) -> str:
    """How `size` ranks would share it. Raises LoadFailed."""
    heads = folder.integer("num_attention_heads", 1)
    return way_for(
        heads,
        folder.integer("num_key_value_heads", heads),
        folder.integer("num_hidden_layers"),
        size,
        shards=hasattr(model, "shard"),
        pipelines=hasattr(getattr(model, "model", None), "pipeline"),
    )


def open_part(folder: Folder, part: Part, model: Any = None) -> Device:
    """This rank's part, once all have met. Blocks until they have."""
    model = model or lazy_model(folder, Settings(dtype=part.dtype, prompt_tokens=part.prompt_tokens))
    group = mx.distributed.init(strict=True, backend="ring")
    if part.way == "tensor":
        model.shard(group)
    else:
        model.model.pipeline(group)
    mx.eval(model.parameters())
    mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))  # all have theirs
    return Device(model, slots=part.slots, prompt_tokens=part.prompt_tokens, group=group)


class Ranks:
    """All ranks as one device: the first is here, and the others are told what it does. Ends this process when one of
    them is gone, since MLX would wait for it for ever."""

    def __init__(self, device: Device, controls: list[socket.socket], relay: subprocess.Popen[bytes]) -> None:
        self._device = device
        self._controls = controls
        self._relay = relay  # it ends with this process

    def carry_out(self, order: Order) -> Any:
        """What the order gives here."""
        data = encode_order(order)
        for control in self._controls:
            try:
                send_frame(control, data)
            except OSError:
                _give_up("A rank")
        return self._device.carry_out(order)

    def can_cut(self, entry: int) -> bool:
        """Whether a kept cache can be cut back."""
        return self._device.can_cut(entry)

    def kept(self, entry: int) -> bool:
        """Whether there is such a cache."""
        return self._device.kept(entry)

    def close(self) -> None:
        """Let all of them go."""
        self._device.close()
        self._relay.terminate()
        for control in self._controls:
            control.close()


def meet(folder: Folder, settings: Settings, endpoints: list[str], *, slots: int) -> Ranks:
    """Open a model together with the ranks behind `endpoints` (127.0.0.1:PORT), of which this one is the first.

    Raises LoadFailed, naming the endpoint of whoever refuses.
    """
    size = 1 + len(endpoints)
    model = lazy_model(folder, settings)
    way = way_of(model, folder, size)
    ports = [int(endpoint.rpartition(":")[2]) for endpoint in endpoints]
    whole = Part(
        identity=identity(folder.path),
        rank=0,
        size=size,
        way="tensor" if way == "tensor" else "pipeline",
        slots=slots,
        prompt_tokens=settings.prompt_tokens,
        dtype=settings.dtype,
    )
    controls = [
        _ask(port, msgspec.structs.replace(whole, rank=rank), endpoint)
        for rank, (port, endpoint) in enumerate(zip(ports, endpoints, strict=True), 1)
    ]
    own_port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hosts = enter_ring(0, size, own_port=own_port, next_port=listener.getsockname()[1])
        relay = subprocess.Popen(
            [sys.executable, "-m", "backends.mlx.relay", str(own_port), str(listener.fileno()), *map(str, ports)],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
    all_ready = [threading.Event() for _ in controls]
    for control, ready, endpoint in zip(controls, all_ready, endpoints, strict=True):
        threading.Thread(target=_watch, args=(control, ready, endpoint), daemon=True).start()
    try:
        device = open_part(folder, whole, model)
    finally:
        hosts.unlink(missing_ok=True)
    for ready in all_ready:
        ready.wait()
    return Ranks(device, controls, relay)


def _ask(port: int, part: Part, endpoint: str) -> socket.socket:
    try:
        control = socket.create_connection(("127.0.0.1", port), timeout=MEETING_S)
        control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        control.sendall(line(Hello(role="control", part=part)))
        answer = b""
        while not answer.endswith(b"\n"):  # byte by byte: frames follow
            piece = control.recv(1)
            if not piece:
                raise ConnectionResetError("it closed the connection")
            answer += piece
        word = msgspec.json.decode(answer, type=Word)
    except (OSError, msgspec.MsgspecError) as error:
        raise LoadFailed(f"Rank {part.rank} [{endpoint}] does not answer: {error}") from error
    if word.kind != "here":
        raise LoadFailed(f"Rank {part.rank} [{endpoint}] refuses: {word.message}")
    control.settimeout(None)
    return control


def _watch(control: socket.socket, ready: threading.Event, endpoint: str) -> None:
    while True:
        try:
            word = msgspec.json.decode(receive_frame(control), type=Word)
        except (OSError, msgspec.MsgspecError):
            _give_up(f"The rank [{endpoint}]")
        if word.kind == "failed":
            _give_up(f"The rank [{endpoint}] says: {word.message} It")
        ready.set()


def _give_up(who: str) -> None:
    print(f"{who} is gone.", file=sys.stderr, flush=True)  # noqa: T201 (into the model's log)
    os._exit(_RANK_LOST)
