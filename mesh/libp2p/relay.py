"""Circuit relay v2: a peer carries a connection between two others that cannot reach each other.

    A --RESERVE--> relay                     A asks the relay to accept connections for it, and tells others so
    B --CONNECT A--> relay --CONNECT B--> A  B asks for A; the relay opens a stream to A; both answer OK
    B <= bytes => relay <= bytes => A        and then it copies: network key, Noise and Yamux run between A and B

The messages are those of libp2p's specification (circuit-v2), taken from py-libp2p. Its own implementation is not used:
it closes a circuit after 128 KiB, sleeps in its answers and looks for relays by itself. Here a circuit has no limit of
bytes or time, since all who may use it are members of one swarm; their number is bounded instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import trio
from google.protobuf.message import DecodeError, Message
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as PeerMessage
from multiaddr import Multiaddr

from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.libp2p.addresses import Endpoint, parse, through
from mesh.libp2p.stream import LinkStream, Pipe
from mesh.transport import Address, PeerId, Stream

if TYPE_CHECKING:
    from mesh.libp2p.transport import Libp2pTransport

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE_BYTES = 4096
MAX_RESERVATIONS = 256
MAX_CIRCUITS = 128
MAX_CIRCUITS_PER_PEER = 16
ANSWER_S = 5.0
RENEW_S = 1800.0
"""How often a reservation is made again; one is kept for as long as the connection, and for twice this at most."""
MAX_RELAY_ADDRESSES = 8


M = TypeVar("M", bound=Message)


class Relay:
    """Both ends of the protocol: carries others where `serves`, and has this node carried."""

    def __init__(self, transport: Libp2pTransport, *, serves: bool) -> None:
        self._transport = transport
        self._reserved: dict[PeerId, float] = {}  # by whom this node is asked to carry, until when
        self._circuits: Counter[PeerId] = Counter()
        self._wanted: set[PeerId] = set()
        self._carried: dict[PeerId, tuple[tuple[Address, ...], float]] = {}  # by which relay, where, renewed when
        self._again: set[PeerId] = set()
        if serves:
            transport.handle(HOP, self._hop)
        transport.handle(STOP, self._stop)

    # As one that is carried

    def addresses(self) -> tuple[Address, ...]:
        """Where this node is reached through relays."""
        return tuple(through(a, relay) for relay, (addresses, _) in self._carried.items() for a in addresses)

    async def reserve(self, relay: PeerId) -> None:
        """Ask `relay` to carry, now and whenever it is connected. Raises PeerGone."""
        stream = await self._transport.open(relay, HOP)
        with _bounded(stream):
            await _write(stream, HopMessage(type=HopMessage.RESERVE))
            answer = await _read(stream, HopMessage)
            if answer.status != Status.OK:
                raise PeerGone(f"{relay} does not carry this node ({Status.Name(answer.status)}).")
        await stream.aclose()
        known = [*(link.address for link in self._transport.links_of(relay) if link.dialled)]
        known += [text for each in answer.reservation.addrs if (text := _text(each)) is not None]
        usable = tuple(dict.fromkeys(a for a in known if _is_plain(a)))[:MAX_RELAY_ADDRESSES]
        self._wanted.add(relay)
        self._carried[relay] = usable, trio.current_time()

    async def connect(self, endpoint: Endpoint, peer: PeerId) -> Pipe:
        """A bare connection to `peer` through the relay at `endpoint`. Raises PeerGone."""
        relay = cast(PeerId, endpoint.relay)
        if relay not in self._transport.connected():
            kind = "ip6" if ":" in endpoint.host else "ip4" if endpoint.host[-1:].isdigit() else "dns"
            address = f"/{kind}/{endpoint.host}/tcp/{endpoint.port}"
            await self._transport.dial((address,), relay, timeout_s=ANSWER_S)
        stream = await self._transport.open(relay, HOP)
        with _bounded(stream):
            await _write(stream, HopMessage(type=HopMessage.CONNECT, peer=PeerMessage(id=_id_bytes(peer))))
            answer = await _read(stream, HopMessage)
            if answer.status != Status.OK:
                raise PeerGone(f"The relay {relay} does not reach {peer} ({Status.Name(answer.status)}).")
        return Pipe(cast(LinkStream, stream))

    def connected(self, peer: PeerId) -> None:
        """A wanted relay is there again."""
        if peer in self._wanted:
            self._again.add(peer)

    def disconnected(self, peer: PeerId) -> None:
        """What was agreed with a peer ends with its connection."""
        self._carried.pop(peer, None)
        self._reserved.pop(peer, None)

    def tick(self, now: float) -> None:
        """Once a second: renew what is due."""
        due = {relay for relay, (_, since) in self._carried.items() if now > since + RENEW_S} | self._again
        self._again = set()
        for relay in due:
            if relay in self._carried:
                self._carried[relay] = self._carried[relay][0], now
            self._transport.background(self._renew, relay)

    async def _renew(self, relay: PeerId) -> None:
        try:
            await self.reserve(relay)
        except PeerError:
            self._carried.pop(relay, None)

    async def _stop(self, stream: Stream) -> None:
        """A relay brings a connection from somebody."""
        with _bounded(stream):
            message = await _read(stream, StopMessage)
            if message.type != StopMessage.CONNECT or not message.peer.id:
                raise PeerMisbehaved("A relay sent what is no request to connect.")
            await _write(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        pipe = Pipe(cast(LinkStream, stream))
        await self._transport.accept_over(pipe, stream.peer, f"through {stream.peer}", relayed=True)

    # As one that carries

    async def _hop(self, stream: Stream) -> None:
        with _bounded(stream):
            message = await _read(stream, HopMessage)
        if message.type == HopMessage.RESERVE:
            await self._take_reservation(stream)
        elif message.type == HopMessage.CONNECT and message.peer.id:
            await self._carry(stream, ID(message.peer.id).to_base58())
        else:
            await _write(stream, HopMessage(type=HopMessage.STATUS, status=Status.MALFORMED_MESSAGE))

    async def _take_reservation(self, stream: Stream) -> None:
        peer, answer = stream.peer, HopMessage(type=HopMessage.STATUS, status=Status.OK)
        if self._transport.relayed(peer) or not self._transport.trusts(peer):
            answer.status = Status.PERMISSION_DENIED
        elif len(self._reserved) >= MAX_RESERVATIONS and peer not in self._reserved:
            answer.status = Status.RESERVATION_REFUSED
        else:
            self._reserved[peer] = trio.current_time() + 2 * RENEW_S
            answer.reservation.addrs.extend(
                Multiaddr(f"{address}/p2p/{self._transport.peer}").to_bytes()
                for address in self._transport.addresses()
                if _is_plain(address)
            )
        await _write(stream, answer)

    async def _carry(self, stream: Stream, target: PeerId) -> None:
        source, refusal = stream.peer, Status.UNUSED
        if not self._transport.trusts(source) or self._transport.relayed(source):
            refusal = Status.PERMISSION_DENIED
        elif self._reserved.get(target, 0.0) < trio.current_time():
            refusal = Status.NO_RESERVATION
        elif self._circuits.total() >= MAX_CIRCUITS or self._circuits[source] >= MAX_CIRCUITS_PER_PEER:
            refusal = Status.RESOURCE_LIMIT_EXCEEDED
        if refusal != Status.UNUSED:
            await _write(stream, HopMessage(type=HopMessage.STATUS, status=refusal))
            return
        self._circuits[source] += 1
        try:
            try:
                onward = await self._transport.open(target, STOP)
                with _bounded(onward):
                    caller = PeerMessage(id=_id_bytes(source))
                    await _write(onward, StopMessage(type=StopMessage.CONNECT, peer=caller))
                    answer = await _read(onward, StopMessage)
                    if answer.status != Status.OK:
                        raise PeerGone(f"{target} does not take the connection.")
            except PeerError:
                await _write(stream, HopMessage(type=HopMessage.STATUS, status=Status.CONNECTION_FAILED))
                return
            try:
                await _write(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_copy, stream, onward)
                    await _copy(onward, stream)
            finally:
                cast(LinkStream, onward).drop()
        finally:
            self._circuits[source] -= 1
            if not self._circuits[source]:
                del self._circuits[source]


async def _copy(source: Stream, target: Stream) -> None:
    try:
        while data := await source.receive():
            await target.send(data)
        await target.close_write()
    except PeerGone:
        await source.reset()
        await target.reset()


async def _write(stream: Stream, message: Message) -> None:
    body = message.SerializeToString()
    size = len(body)
    await stream.send((bytes((size,)) if size < 128 else bytes((size & 0x7F | 0x80, size >> 7))) + body)


async def _read(stream: Stream, kind: type[M]) -> M:
    source, size, shift = cast(LinkStream, stream), 0, 0
    while True:
        byte = (await source.read_exactly(1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if size > MAX_MESSAGE_BYTES or shift > 14:
            raise PeerMisbehaved("The peer sent a relay message that is too long.")
        if byte < 128:
            break
    message = kind()
    try:
        message.ParseFromString(await source.read_exactly(size))
    except DecodeError as error:
        raise PeerMisbehaved("The peer sent no relay message.") from error
    return message


@contextmanager
def _bounded(stream: Stream) -> Iterator[None]:
    """An exchange of messages that has to be over in time, or the stream is dropped. Raises PeerGone then."""
    done = False
    try:
        with trio.move_on_after(ANSWER_S):
            yield
            done = True
    finally:
        if not done:
            cast(LinkStream, stream).drop()
    if not done:
        raise PeerGone(f"{stream.peer} did not answer in time.")


def _id_bytes(peer: PeerId) -> bytes:
    return ID.from_base58(peer).to_bytes()


def _text(address: bytes) -> Address | None:
    """A relay's address, without its id; None for what is no address."""
    try:
        return str(Multiaddr(address)).partition("/p2p/")[0]
    except Exception:  # noqa: BLE001  # a stranger's bytes; multiaddr raises what its parsers raise
        return None


def _is_plain(address: Address) -> bool:
    try:
        return parse(address).relay is None
    except ValueError:
        return False
