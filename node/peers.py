"""This node's part in the swarm: puts transport, swarm, discovery and calls together, and keeps them going."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

import trio

from mesh.discovery import Found, LanFinder
from mesh.errors import Incompatible, NotAMember, PeerError
from mesh.libp2p import Libp2pTransport, Options
from mesh.records import Hardware, PeerRecord
from mesh.roster import PeerEvent
from mesh.swarm import Swarm
from mesh.token import JoinToken
from mesh.transport import Address
from node import __version__
from node.config import Settings
from node.hardware import probe
from node.offers import Offers
from node.remote import Remote
from node.swarmdir import SwarmDir

_log = logging.getLogger("mesh.peers")

PROTOCOL_VERSION = 1
DEFAULT_PORT = 4801
JOIN_S = 5.0
"""How long a node that joins looks for the swarm before it says that it cannot be found."""

_PUBLISH_S = 0.05  # loads are told at most this often
_SEARCH_S = 60.0  # between two questions to the DHT
_REFRESH_S = 1.0  # rates and memory change without any event


class JoinError(Exception):
    """The node cannot take part: one sentence for a person."""


@dataclass(slots=True)
class Peers:
    """A running node's peers. Made by `prepare`; driven by `run`."""

    swarm: Swarm
    transport: Libp2pTransport
    remote: Remote
    folder: SwarmDir
    token: JoinToken
    lan: LanFinder | None
    offers: Offers | None = None
    left: bool = False

    @property
    def current_token(self) -> JoinToken:
        """The token with this node's own addresses first: what another machine needs to join."""
        own = self.transport.addresses()
        others = [address for address in self.token.addresses if address not in own]
        return JoinToken(self.token.secret, (*own, *others)[:MAX_ADDRESSES])

    async def run(
        self,
        offers: Offers,
        changed: Callable[[Callable[[], None]], None],
        on_event: Callable[[PeerEvent], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take part until cancelled. `changed` is given what to call when a load changes; `on_event` hears of peers.

        Started when the node can be dialled. Raises JoinError when no port can be had.
        """
        self.offers = offers
        dirty = trio.Event()
        changed(lambda: dirty.set())
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.transport.run)
                self.folder.save_port(_port_of(self.transport.addresses()))
                self.swarm.publish(offers=offers.all(), loads=offers.loads(trio.current_time()))
                await nursery.start(self.remote.run)
                await nursery.start(self._watch, on_event)
                await nursery.start(self._take_part)
                self.folder.save_token(self.current_token)
                if self.lan is not None:
                    nursery.start_soon(self.lan.run, lambda found: nursery.start_soon(self._meet, found))
                if self.transport.dht is not None:
                    nursery.start_soon(self.transport.dht.provide)
                    nursery.start_soon(self._search_dht)
                task_status.started()
                while True:
                    self.swarm.publish(offers=offers.all(), loads=offers.loads(trio.current_time()))
                    dirty = trio.Event()
                    await trio.sleep(_PUBLISH_S)
                    with trio.move_on_after(_REFRESH_S):
                        await dirty.wait()
        except* OSError as group:
            raise JoinError(f"The mesh cannot listen: {leaf(group)}. Take another port with --mesh-port.") from None

    async def join(self, addresses: tuple[Address, ...]) -> None:
        """Find the swarm, now. Raises JoinError with the reason when it cannot be found in `JOIN_S` seconds."""
        reasons: list[str] = []
        with trio.move_on_after(JOIN_S):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(self._knock, address, reasons, nursery.cancel_scope)
                while not any(member.usable for member in self.swarm.roster.members):
                    async with self.swarm.events() as events:
                        await events.receive()
                nursery.cancel_scope.cancel()
        if any(member.usable for member in self.swarm.roster.members):
            return
        raise JoinError(_why_not(addresses, reasons, self.lan))

    async def leave(self) -> None:
        """Say good-bye and forget the swarm; the node serves on alone."""
        self.left = True
        self.folder.forget_swarm()
        await self.swarm.leave()
        for member in self.swarm.roster.members:  # nobody's models are of any use here now, nor "down"
            self.swarm.roster.remove(member.peer)

    async def _knock(self, address: Address, reasons: list[str], scope: trio.CancelScope) -> None:
        try:
            await self.swarm.dial((address,), timeout_s=JOIN_S - 1)
        except (NotAMember, Incompatible) as error:
            reasons.insert(0, str(error))
            scope.cancel()  # nothing that comes later is clearer than this
        except PeerError as error:
            reasons.append(f"{address}: {error}")

    async def _meet(self, found: Found) -> None:
        member = self.swarm.roster.get(found.peer) if found.peer else None
        if found.peer == self.swarm.peer or (member is not None and member.usable):
            return
        try:
            await self.swarm.dial(found.addresses)
        except PeerError as error:
            _log.debug("%s, found on the LAN, cannot be met: %s", found.peer or found.addresses, error)

    async def _search_dht(self) -> None:
        dht = self.transport.dht
        assert dht is not None
        while True:
            for peer, addresses in (await dht.find()).items():
                if addresses:
                    await self._meet(Found(peer, addresses, "dht"))
            await trio.sleep(_SEARCH_S)

    async def _take_part(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self.swarm.run(task_status=task_status)
        if self.left:
            self.folder.forget_swarm()  # again: the last thing it did was to remember its peers
            await trio.sleep_forever()

    async def _watch(self, on_event: Callable[[PeerEvent], None], *, task_status: trio.TaskStatus[None]) -> None:
        async with self.swarm.events() as events:
            task_status.started()
            async for event in events:
                if event.kind in ("dead", "left", "forgotten", "banned"):
                    self.remote.forget(event.peer)
                if event.kind != "load":
                    _log.info("%s %s %s", event.name or event.peer, event.kind, event.detail)
                await self._carry(event)
                if event.kind == "joined" and self.transport.dht is not None:
                    member = self.swarm.roster.get(event.peer)
                    if member is not None:
                        await self.transport.dht.meet(member.peer, member.record.addresses)
                on_event(event)

    async def _carry(self, event: PeerEvent) -> None:
        """Let a member that relays carry this node, where nobody could reach it otherwise."""
        member = self.swarm.roster.get(event.peer)
        if event.kind == "joined" and member is not None and "relay" in member.record.roles:
            with trio.move_on_after(_REFRESH_S):
                try:
                    await self.transport.reserve(event.peer)
                    self.swarm.publish(addresses=self.transport.addresses())
                except PeerError as error:
                    _log.info("%s does not carry this node: %s", event.name, error)


MAX_ADDRESSES = 8


def leaf(error: BaseException) -> BaseException:
    """The first exception inside of groups of groups: nurseries wrap them once each."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def prepare(settings: Settings, folder: SwarmDir, token: JoinToken | None) -> Peers:
    """All of it, not yet running. Without a token this node makes a swarm of its own.

    Raises JoinError, and what the files of `folder` raise.
    """
    identity = folder.identity()
    token = token or folder.token() or JoinToken.generate()
    keys = token.keys()
    # Nodes that start at one moment all find the usual port free: who is too late for it takes another.
    port = settings.mesh_port or folder.port or DEFAULT_PORT
    transport = Libp2pTransport(
        identity,
        keys.network,
        (f"/ip4/{settings.mesh_host}/tcp/{port}",),
        Options(relay=settings.relay, any_port=not settings.mesh_port, dht=keys.namespace if settings.dht else ""),
    )
    hardware = probe()
    record = PeerRecord(
        peer=identity.peer,
        name=settings.name or default_name(),
        version=__version__,
        protocol=PROTOCOL_VERSION,
        incarnation=folder.begin(),
        sequence=0,
        addresses=(),
        roles=("relay",) if settings.relay else (),
        hardware=Hardware(
            system=hardware.system,
            processor=hardware.processor,
            cores=hardware.physical_cores,
            memory_bytes=hardware.memory_bytes,
            accelerators=tuple(f"{gpu.name} ({gpu.kind})" for gpu in hardware.accelerators),
            accelerator_memory_bytes=sum(gpu.memory_bytes for gpu in hardware.accelerators),
        ),
        offers=(),
    )
    swarm = Swarm(
        identity,
        keys,
        transport,
        record,
        bootstrap=token.addresses,
        memory=folder,
        relayed=transport.relayed,
    )
    transport.trust(lambda peer: peer == identity.peer or swarm.roster.get(peer) is not None)
    lan = LanFinder(keys.fingerprint, identity.peer, transport.addresses) if settings.lan_discovery else None
    return Peers(swarm, transport, Remote(swarm), folder, token, lan)


def default_name() -> str:
    """A readable name: the machine's own, cut to what fits."""
    name = "".join(char if char.isprintable() else "-" for char in socket.gethostname().split(".")[0])
    return name[:48] or "node"


def _port_of(addresses: tuple[Address, ...]) -> int:
    for address in addresses:
        parts = address.split("/")
        if "tcp" in parts[:-1] and "p2p-circuit" not in parts:
            return int(parts[parts.index("tcp") + 1])
    return 0


def _why_not(addresses: tuple[Address, ...], reasons: list[str], lan: LanFinder | None) -> str:
    if reasons and not any(reason.startswith("/") for reason in reasons[:1]):
        return f"This node is not let in. {reasons[0]} Ask for a fresh line from `mesh token` on a node that is in."
    where = f"at {', '.join(addresses)}" if addresses else "at any address (the token names none)"
    found = "LAN discovery is off" if lan is None else lan.problem or "nobody answered on the LAN either"
    return (
        f"No node of the swarm answers {where}, and {found}. Is the first node running? Is its mesh port open in the "
        "firewall? `mesh doctor` looks closer."
    )
