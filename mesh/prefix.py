"""Which peer has the beginning of a conversation in its key-value cache, as far as this node knows. Sans-IO.

A prompt's text is cut into blocks, and each block's hash covers all blocks before it: two prompts share as many tokens
as their chains share hashes. The index of this entry node maps hashes to the peers to which it sent such prompts.
Nothing of it leaves the node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from mesh.transport import PeerId

Chain: TypeAlias = tuple[int, ...]
"""One 64-bit hash for each full block of a prompt, in order."""

BLOCK_CHARS = 128
MAX_BLOCKS = 1024


def canonical(messages: Iterable[tuple[str, str]]) -> str:
    """The text to hash of a conversation, from (role, content) pairs: it grows at its end only as the turns do."""
    raise NotImplementedError


def hash_chain(text: str, *, seed: str) -> Chain:
    """The chain of a prompt; `seed` names what else its cache depends on: the model's digest."""
    raise NotImplementedError


class PrefixIndex:
    """Bounded by `limit` hashes: those used least recently go, and of one chain the last block goes first."""

    def __init__(self, *, limit: int = 32_768) -> None:
        raise NotImplementedError

    def note(self, peer: PeerId, chain: Chain, now: float) -> None:
        """The peer has taken (or finished) a prompt with this chain: it is in its cache now."""
        raise NotImplementedError

    def cached(self, chain: Chain, prompt_tokens: int, now: float) -> dict[PeerId, int]:
        """For each peer that knows at least one block: how many of the prompt's tokens it need not prefill."""
        raise NotImplementedError

    def observed(self, peer: PeerId, expected_tokens: int, cached_tokens: int) -> None:
        """An answer told how much really came from the cache, where `cached` had said `expected_tokens`."""
        raise NotImplementedError

    def forget(self, peer: PeerId) -> None:
        """The peer has died or unloaded: its cache is empty."""
        raise NotImplementedError
