"""What peers tell each other about themselves: the signed record (rarely changes) and the loads (change all the time).

A record is signed by its peer, so that it may be passed on by others, who could then withhold or delay it but not forge
it; `newer` orders the records of one peer. A load is not signed: it is taken only from the peer itself, over its own
connection.

All of it comes from other machines, so every text, tuple and number has a bound, which decoding enforces, and texts are
printable: they end up in terminals, logs and pages. Our own record is held to the same bounds when it is signed, where
the mistake is ours to see. Fields that a newer version adds are ignored; a field is never removed or given another
meaning within one protocol version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from mesh.errors import PeerMisbehaved
from mesh.identity import PEER_ID_CHARS, SIGNATURE_BYTES, Identity, verify
from mesh.transport import Address, PeerId

MAX_RECORD_BYTES = 128 << 10
"""A record's size when encoded. A node with 256 models and their aliases needs about 60 KiB."""

ADDRESS_PATTERN = r"\A/[!-~]{1,254}\Z"
"""What an address looks like from afar: printable ASCII without blanks. Whether it means anything, a dial tells."""

_SIGNED_FOR = b"mesh-peer-record-1:"

# A JavaScript number holds these exactly: the dashboard reads them as JSON.
_MAX_INT = 2**53 - 1

_Text: TypeAlias = Annotated[str, Meta(max_length=200)]
_Word: TypeAlias = Annotated[str, Meta(max_length=64)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=_MAX_INT)]
_Number: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]
_Words: TypeAlias = Annotated[tuple[_Word, ...], Meta(max_length=32)]
_Texts: TypeAlias = Annotated[tuple[_Text, ...], Meta(max_length=64)]
_Address: TypeAlias = Annotated[Address, Meta(pattern=ADDRESS_PATTERN, max_length=255)]

LoadState: TypeAlias = Literal["absent", "loading", "ready", "failed"]


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that a node can serve, whether it is loaded or not."""

    model: _Text
    digest: _Text
    """What the model is, whatever it is called: two offers of one name and other digests are two models."""
    backend: _Word
    capabilities: _Words
    context_tokens: _Count
    slots: _Count
    """Sequences at a time, once loaded."""
    aliases: _Texts = ()
    load_s: _Number = 0.0
    """Expected time to load it; 0 where nobody measured it yet."""
    memory_bytes: _Count = 0
    sharded: bool = False
    """It does not fit that node: layers of it are on others."""


class Hardware(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node runs on. For people: routing goes by measured rates, never by this."""

    system: _Text
    processor: _Text
    cores: _Count
    memory_bytes: _Count
    accelerators: _Texts = ()
    accelerator_memory_bytes: _Count = 0
    """Of all of them together; 0: not known."""


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something of a node that tunnels reach, lent to one other node at a time."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    version: _Word = ""
    """Of the protocol that is spoken there; none of ours."""
    devices: _Texts = ()
    memory_bytes: _Count = 0
    """What may be put there."""
    bytes_per_s: _Number = 0.0
    """Weights that it gets through in a second, measured there; 0: not measured."""
    leased_by: Annotated[PeerId, Meta(max_length=PEER_ID_CHARS)] = ""
    """Empty: it can be had."""


class PeerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a peer says of itself."""

    peer: Annotated[PeerId, Meta(min_length=PEER_ID_CHARS, max_length=PEER_ID_CHARS)]
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    version: _Word
    """Of the program, for people."""
    protocol: _Count
    """Highest version of the mesh's protocols that it speaks."""
    incarnation: _Count
    """Starts of this node so far: a counter in its data folder, since no two machines' clocks are compared."""
    sequence: _Count
    """Changes of the record since that start."""
    addresses: Annotated[tuple[_Address, ...], Meta(max_length=32)]
    roles: _Words
    hardware: Hardware
    offers: Annotated[tuple[Offer, ...], Meta(max_length=256)]
    api_url: Annotated[str, Meta(pattern=r"\A(https?://[!-~]+)?\Z", max_length=255)] = ""
    """Where its HTTP API answers others; empty when it does not. Pages link to it, so no other scheme passes."""
    exposes: _Texts = ()
    """Targets that it lets tunnels reach, by name."""
    targets: Annotated[tuple[Target, ...], Meta(max_length=16)] = ()
    """The same with their facts."""
    memory_budget_bytes: _Count = 0
    """What its own models may take together."""


class Load(msgspec.Struct, frozen=True, omit_defaults=True):
    """How busy one model of a peer is, measured there. Rates are moving averages; 0 is "not measured yet"."""

    model: _Text
    state: LoadState
    slots_used: _Count = 0
    slots: _Count = 0
    queued: _Count = 0
    """Requests that wait for a slot."""
    queued_tokens: _Count = 0
    """Prompt tokens not yet prefilled, of running and waiting requests."""
    prefill_tokens_per_s: _Number = 0.0
    decode_tokens_per_s: _Number = 0.0
    """All sequences together."""
    decode_batch: _Number = 0.0
    """Mean number of sequences at which that was measured."""
    decode_gain: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """That rate grows as the batch to this power; from batches of different sizes."""
    load_s: _Number = 0.0
    error_rate: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of the latest calls that failed by the node's own fault."""


class SignedRecord(msgspec.Struct, frozen=True):
    """A record as it travels: passed on byte for byte, since the signature is over the bytes."""

    body: Annotated[bytes, Meta(max_length=MAX_RECORD_BYTES)]
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PeerRecord)


def sign_record(identity: Identity, record: PeerRecord) -> SignedRecord:
    """Our own record, ready to send. Raises ValueError when it breaks a bound or is another peer's."""
    if record.peer != identity.peer:
        raise ValueError("a record is signed by the peer that it describes")
    body = _encoder.encode(record)
    try:
        _open(body)
    except PeerMisbehaved as error:
        raise ValueError(f"Our own record would be refused by every peer. {error}") from None
    return SignedRecord(body, identity.sign(_SIGNED_FOR + body))


def open_record(signed: SignedRecord) -> PeerRecord:
    """The record inside, proven to be of the peer that it names. Raises PeerMisbehaved.

    It may be old: compare with `newer` before it replaces another.
    """
    record = _open(signed.body)
    if not verify(record.peer, _SIGNED_FOR + signed.body, signed.signature):
        raise PeerMisbehaved("A peer record does not bear the signature of the peer that it names.")
    return record


def newer(record: PeerRecord, known: PeerRecord | None) -> bool:
    """Whether `record` replaces `known`, an earlier one of the same peer: a later start, or a later change since."""
    return known is None or (record.incarnation, record.sequence) > (known.incarnation, known.sequence)


def check_printable(value: Any) -> None:
    """Raises ValueError when a text anywhere in a struct or collection holds a control, format or surrogate character.

    Those move a terminal's cursor, turn the direction of what follows, or hide.
    """
    for text in _texts(value):
        if not text.isprintable():
            raise ValueError("a text holds characters that cannot be printed")


def decode(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    """What a stranger's bytes hold, of the decoder's type and printable. Raises PeerMisbehaved on all else.

    Every message of this room that msgspec decodes goes through here: it knows all the ways in which that fails.
    """
    try:
        value = decoder.decode(body)
        check_printable(value)
    except RecursionError:  # arrays within arrays within arrays, in a field that we do not know
        raise PeerMisbehaved("A peer's message is nested too deeply.") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise PeerMisbehaved(f"A peer's message is not in order: {_brief(error)}.") from None
    return value


def _brief(error: Exception) -> str:
    """What msgspec says, short and printable: it may quote the stranger's bytes."""
    text = str(error)[:120].removesuffix(".")
    return text if text.isprintable() else "it cannot be decoded"


def _open(body: bytes) -> PeerRecord:
    if len(body) > MAX_RECORD_BYTES:
        raise PeerMisbehaved(f"A peer record has {len(body)} bytes; the limit is {MAX_RECORD_BYTES}.")
    return decode(_decoder, body)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list, set, frozenset)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _texts(pair)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _texts(getattr(value, name))
