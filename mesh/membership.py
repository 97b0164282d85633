"""Who is there: alive, suspect, dead, left. Sans-IO."""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """What we hold of a peer."""

    KNOWN = auto()
    """Told of by another peer, or remembered, and not yet met."""
    ALIVE = auto()
    """Admitted and heard of lately."""
    SUSPECT = auto()
    """Silent for too long, or its connection broke a moment ago."""
    DEAD = auto()
    LEFT = auto()
    """It said good-bye."""
    INCOMPATIBLE = auto()
    """It speaks another version of the mesh's protocols."""
    BANNED = auto()
