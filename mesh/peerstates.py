"""The states of a peer, as this node sees it, every transition between them, and what `mesh/membership.py` asks for on
the way. An event that is not in a state's row of the table leaves the state as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from mesh.transport import Address, PeerId


class State(Enum):
    """What we hold of a peer."""

    UNKNOWN = auto()
    KNOWN = auto()
    """Told of by another peer, or remembered, and not yet met."""
    ALIVE = auto()
    """Admitted and heard of lately."""
    SUSPECT = auto()
    """Silent for too long, or its connection broke a moment ago."""
    DEAD = auto()
    LEFT = auto()
    """It said good-bye. Not dialled unless it is told of with a later start."""
    INCOMPATIBLE = auto()
    """It speaks another version of the mesh's protocols. Dialled now and then: it may have been upgraded."""
    BANNED = auto()


class Event(Enum):
    """What moves a peer from one state to another."""

    RECORD = "told of"
    RESTARTED = "told of, with a later start"
    ADMITTED = "admitted"
    HEARD = "beat"
    SILENT = "suspect_beats of silence"
    EXPIRED = "dead_beats of silence, or lost_s after the loss"
    LOST = "connection lost"
    UNREACHABLE = "redial failed"
    BYE = "good-bye"
    MISMATCH = "other version"
    BANNED = "banned"
    PARDONED = "pardoned"
    FORGOTTEN = "ghost_s or forget_s over"


_S, _E = State, Event
_ANYWHERE = {_E.ADMITTED: _S.ALIVE, _E.MISMATCH: _S.INCOMPATIBLE, _E.BANNED: _S.BANNED}

TABLE: dict[State, dict[Event, State]] = {
    _S.UNKNOWN: {**_ANYWHERE, _E.RECORD: _S.KNOWN, _E.RESTARTED: _S.KNOWN},
    _S.KNOWN: {**_ANYWHERE, _E.BYE: _S.LEFT, _E.FORGOTTEN: _S.UNKNOWN},
    _S.ALIVE: {**_ANYWHERE, _E.SILENT: _S.SUSPECT, _E.LOST: _S.SUSPECT, _E.BYE: _S.LEFT},
    _S.SUSPECT: {
        **_ANYWHERE,
        _E.HEARD: _S.ALIVE,
        _E.EXPIRED: _S.DEAD,
        _E.UNREACHABLE: _S.DEAD,
        _E.BYE: _S.LEFT,
    },
    _S.DEAD: {**_ANYWHERE, _E.BYE: _S.LEFT, _E.FORGOTTEN: _S.UNKNOWN},
    _S.LEFT: {**_ANYWHERE, _E.RESTARTED: _S.KNOWN, _E.FORGOTTEN: _S.UNKNOWN},
    _S.INCOMPATIBLE: {**_ANYWHERE, _E.BYE: _S.LEFT, _E.FORGOTTEN: _S.UNKNOWN},
    _S.BANNED: {_E.PARDONED: _S.UNKNOWN},
}

CONTACT = frozenset({State.ALIVE, State.SUSPECT})
"""States in which a peer has links."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Try to meet the peer; answer with `on_admitted`, or with `on_unreachable`, `on_mismatch`."""

    peer: PeerId
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Give up all links and connections with the peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Changed:
    """The peer went from one state to another."""

    peer: PeerId
    old: State
    new: State


@dataclass(frozen=True, slots=True)
class Forget:
    """Keep nothing of the peer."""

    peer: PeerId


Effect: TypeAlias = Dial | Drop | Changed | Forget


def diagram() -> str:
    """The table as a Mermaid state diagram. What leads to one state from everywhere is drawn as one note."""
    lines = ["stateDiagram-v2", "    [*] --> UNKNOWN"]
    for state, row in TABLE.items():
        arrows: dict[State, list[str]] = {}
        for event, new in row.items():
            if event not in _ANYWHERE or state is State.BANNED:
                arrows.setdefault(new, []).append(event.value)
        lines += [f"    {state.name} --> {new.name}: {'; '.join(events)}" for new, events in arrows.items()]
    lines += [f"    note right of {new.name}: {event.value}, from any state" for event, new in _ANYWHERE.items()]
    return "\n".join(lines) + "\n"
