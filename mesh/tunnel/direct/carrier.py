"""The node's side of direct tunnels: its pump process, started when it is first needed, and what goes on in it."""

from __future__ import annotations

import array
import base64
import logging
import mmap
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from mesh.transport import PeerId
from mesh.tunnel.direct.orders import COUNTERS, DIAL_S, TICKET_S, WAYS, Lines, encode
from mesh.tunnel.pump import Meter, Traffic, break_off
from mesh.tunnel.wire import TICKET_BYTES, Invitation

SHUN_S = 60.0
"""How long a peer that could not be reached directly is not tried again."""
_ANSWER_S = 3.0
"""Of the process, to an order that takes it no time."""
_EXIT_GRACE_S = 1.0
_RECEIVE_BYTES = 64 << 10

_log = logging.getLogger("mesh.tunnel")


@dataclass(eq=False, slots=True)
class Way:
    """A connection in the pump process, from the order to make it to its end."""

    number: int
    slot: int
    told: trio.Event = field(default_factory=trio.Event)  # of what the process does about it
    port: int = 0
    up: bool = False
    why: str = ""
    over: trio.Event = field(default_factory=trio.Event)
    whole: bool = False
    invitation: Invitation | None = None


class Carrier:
    """Of one node. `run` it in a long-lived task; until then, and without `run`, nothing goes direct."""

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, hosts: Callable[[PeerId], Sequence[str]] = lambda _: ()
    ) -> None:
        """`host` and `port` are listened on while somebody is invited (0: any free port); `hosts` tells where a peer's
        machine may be, the most likely one first."""
        self._host, self._port = host, port
        self.hosts = hosts
        self._nursery: trio.Nursery | None = None
        self._process: _Process | None = None
        self._starting = trio.Lock()
        self._shunned: dict[PeerId, float] = {}

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._process.pid if self._process is not None and self._process.alive else None

    async def run(self) -> None:
        """Until cancelled; then the process ends, and with it all that it carries."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def certificate_for(self, peer: PeerId) -> bytes:
        """This node's certificate; empty where that peer is not to be reached directly."""
        if self._shunned.get(peer, 0.0) > trio.current_time() or not self.hosts(peer):
            return b""
        process = await self._running()
        return process.certificate if process is not None else b""

    async def invite(self, certificate: bytes) -> Way | None:
        """Let the holder of that certificate come, once and soon; None: it cannot be. `way.invitation` is for it."""
        process = await self._running()
        way = process.way() if process is not None else None
        if process is None or way is None:
            return None
        ticket = secrets.token_bytes(TICKET_BYTES)
        await process.order(way, do="invite", certificate=_text(certificate), ticket=_text(ticket))
        with trio.move_on_after(_ANSWER_S):
            await way.told.wait()
        if not way.port:
            _log.info("nobody can be invited to a direct tunnel: %s", way.why or "its process does not answer")
            self.drop(way)
            return None
        way.invitation = Invitation(way.port, process.certificate, ticket)
        way.told = trio.Event()
        if way.over.is_set():
            way.told.set()
        return way

    async def dial(self, peer: PeerId, invitation: Invitation) -> Way | None:
        """Accept an invitation; None: the peer cannot be reached directly. Then it is not tried again for a while."""
        process = await self._running()
        way = process.way() if process is not None else None
        if process is None or way is None:
            return None
        try:
            await process.order(
                way,
                do="dial",
                hosts=list(self.hosts(peer)),
                port=invitation.port,
                certificate=_text(invitation.certificate),
                ticket=_text(invitation.ticket),
            )
            with trio.move_on_after(DIAL_S + 1):
                await way.told.wait()
        except BaseException:
            self.drop(way)
            raise
        if way.up:
            self._shunned.pop(peer, None)
            return way
        _log.info("%s is not reached directly: %s", peer, way.why or "its process does not answer")
        self._shunned[peer] = trio.current_time() + SHUN_S
        self.drop(way)
        return None

    async def carry(self, way: Way, near: trio.SocketStream, meter: Meter) -> bool:
        """Join `near` to a connection, and wait until both directions have ended, or one broke: whether they ended.

        `near` is closed here: from now on it is the process's. Cancelled, it breaks off.
        """
        process = self._process
        try:
            if process is not None and not way.up:
                with trio.move_on_after(TICKET_S):
                    await way.told.wait()
            if process is None or not way.up or way.over.is_set():
                break_off(near)
                return False
            with meter.counting(lambda: process.traffic(way)):
                await process.order(way, near.socket, do="carry", slot=way.slot)
                await near.aclose()
                await way.over.wait()
            return way.whole
        finally:
            self.drop(way)
            await near.aclose()

    def drop(self, way: Way) -> None:
        """Give it up, whatever it has come to."""
        process, nursery = self._process, self._nursery
        if process is None or nursery is None or not process.knows(way):
            return
        if way.over.is_set():
            process.forget(way)
        else:
            nursery.start_soon(process.give_up, way)

    async def _running(self) -> _Process | None:
        """The process, started if need be. None where there is none to be had."""
        async with self._starting:
            if self._nursery is None:
                return None
            if self._process is None or not self._process.alive:
                try:
                    self._process = await self._nursery.start(_Process.run, self._host, self._port)
                except (OSError, ValueError) as error:
                    _log.warning("the process for direct tunnels cannot be started: %s", error)
                    self._process = None
            return self._process


class _Process:
    """The pump process, from its start to its end."""

    def __init__(self, process: trio.Process, control: trio.socket.SocketType, counters: mmap.mmap, own: bytes) -> None:
        self.pid = process.pid
        self.certificate = own
        self.alive = True
        self._control = control
        self._counters = counters
        self._sending = trio.Lock()
        self._ways: dict[int, Way] = {}
        self._last_way = 0

    @classmethod
    async def run(cls, host: str, port: int, *, task_status: trio.TaskStatus[_Process]) -> None:
        """Start it, and look after it until it ends or this is cancelled. Raises OSError."""
        ours, theirs = socket.socketpair()
        key, own = _new_certificate()
        with tempfile.TemporaryFile() as counters, _nameless(own.public_bytes(serialization.Encoding.PEM)) as first:
            with theirs, _nameless(key) as second:
                counters.truncate(COUNTERS.size * WAYS)
                passed = [theirs.fileno(), counters.fileno(), first.fileno(), second.fileno()]
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", "mesh.tunnel.direct.process", *map(str, passed), host, str(port)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=passed,
                    # The node's own settings, among them its API keys, are none of its business.
                    env={name: value for name, value in os.environ.items() if not name.startswith("MESH_")},
                    start_new_session=True,  # signals for the node's terminal are the node's to handle
                )
            control = trio.socket.from_stdlib_socket(ours)
            shared = mmap.mmap(counters.fileno(), COUNTERS.size * WAYS)
        self = cls(process, control, shared, own.public_bytes(serialization.Encoding.DER))
        task_status.started(self)
        try:
            await self._listen()
        finally:
            self.alive = False
            for way in self._ways.values():
                way.why = way.why or "its process has ended"
                way.over.set()
                way.told.set()
            control.close()  # the order to exit
            with trio.CancelScope(shield=True), trio.move_on_after(_EXIT_GRACE_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    def way(self) -> Way | None:
        """A new one; None: there are too many."""
        taken = {way.slot for way in self._ways.values()}
        slot = next((slot for slot in range(WAYS) if slot not in taken), None)
        if slot is None:
            return None
        self._last_way += 1
        way = self._ways[self._last_way] = Way(self._last_way, slot)
        COUNTERS.pack_into(self._counters, slot * COUNTERS.size, 0, 0, 0)
        return way

    def knows(self, way: Way) -> bool:
        """Whether it is one of this process's."""
        return self._ways.get(way.number) is way

    def forget(self, way: Way) -> None:
        """Its slot may be another's."""
        self._ways.pop(way.number, None)

    def traffic(self, way: Way) -> Traffic:
        """So far."""
        return Traffic(*COUNTERS.unpack_from(self._counters, way.slot * COUNTERS.size))

    async def give_up(self, way: Way) -> None:
        """Drop it, and forget it once that is so."""
        await self.order(way, do="drop")
        with trio.move_on_after(_ANSWER_S):
            await way.over.wait()
        self.forget(way)

    async def order(self, way: Way, near: trio.socket.SocketType | None = None, **fields: Any) -> None:
        """Say it, with a socket. Where the process has died, `way.over` tells."""
        data = encode(way=way.number, **fields)
        ancillary = [] if near is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [near.fileno()]))]
        async with self._sending:
            with suppress(OSError, trio.ClosedResourceError), trio.CancelScope(shield=True):
                with trio.move_on_after(_ANSWER_S):
                    sent = await self._control.sendmsg([data], ancillary)
                    while sent < len(data):
                        sent += await self._control.send(data[sent:])

    async def _listen(self) -> None:
        lines = Lines()
        with suppress(OSError):
            while data := await self._control.recv(_RECEIVE_BYTES):
                for told in lines.feed(data):
                    way = self._ways.get(told["way"])
                    if way is not None:
                        self._on(way, told)

    def _on(self, way: Way, told: dict[str, Any]) -> None:
        match told["do"]:
            case "open":
                way.port = told["port"]
            case "up":
                way.up = True
            case "failed":
                way.why = told["why"]
                way.over.set()
            case "over":
                way.whole = told["whole"]
                way.over.set()
        way.told.set()


def _new_certificate() -> tuple[bytes, x509.Certificate]:
    """A key in PEM, and a certificate that it signed itself. It is known as a whole; its name is no other's, since
    OpenSSL looks for what it trusts by name."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, secrets.token_hex(16))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))  # no two machines' clocks are compared
        .not_valid_after(datetime(9999, 1, 1, tzinfo=UTC))
        .sign(key, None)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate


def _nameless(content: bytes) -> IO[bytes]:
    """A file that only who is handed its descriptor can read."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    file.write(content)
    file.flush()
    return file


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
