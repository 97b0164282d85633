"""What can go wrong between peers, and whose fault it is."""

from __future__ import annotations


class PeerError(Exception):
    """Base of all errors of this room. The message is a full sentence for a person; it never holds a secret."""


class PeerGone(PeerError):
    """The peer, its process or the way to it is gone: try another, or later."""


class PeerMisbehaved(PeerError):
    """The peer sent what no peer of ours would: drop its stream, and it if it goes on."""


class NotAMember(PeerError):
    """The two sides do not hold the same join token, or one has banned the other."""


class Incompatible(PeerError):
    """The peer speaks another version of the mesh's protocols. The message names both."""


class TokenError(PeerError):
    """A join token cannot be read: one sentence that says what is wrong with it, without the token."""
