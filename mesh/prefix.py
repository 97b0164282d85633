"""Which peer has the beginning of a conversation in its key-value cache, as far as this node knows. Sans-IO.

A prompt's text is cut into blocks, and each block's hash covers all blocks before it: two prompts share as many tokens
as their chains share hashes. The index of this entry node maps hashes to the peers to which it sent such prompts.
Nothing of it leaves the node.

The index cannot see what a peer's cache evicts, or what other entry nodes send there. Instead of a model of the cache
it keeps a factor per peer: how much of what it expected really came from the cache, as each answer's usage tells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from typing import TypeAlias

from mesh.transport import PeerId

Chain: TypeAlias = tuple[int, ...]
"""One 64-bit hash for each full block of a prompt, in order."""

BLOCK_CHARS = 128
"""Characters in a block: about 32 tokens. Smaller finds shorter common beginnings and costs more hashes."""

MAX_BLOCKS = 1024
"""Blocks hashed of one prompt: the first 128 Ki characters. What follows is taken as not cached."""

MAX_PEERS = 8
"""Peers remembered for one hash: a system prompt that all share is everywhere soon."""

FADE_S = 600.0
"""After this time unused, a conversation is taken as evicted."""

_CHARS_PER_TOKEN = 4
_TRUST_WEIGHT = 0.2  # of the newest answer in a peer's factor
_LEAST_TRUST = 0.05  # so that a peer whose cache was emptied once is believed again one day


def canonical(messages: Iterable[tuple[str, str]]) -> str:
    """The text to hash of a conversation, from (role, content) pairs: it grows at its end only as the turns do."""
    return "".join(f"\x1e{role}\x1f{content}" for role, content in messages)


def hash_chain(text: str, *, seed: str) -> Chain:
    """The chain of a prompt; `seed` names what else its cache depends on: the model's digest."""
    chain = []
    last = blake2b(seed.encode(), digest_size=8).digest()
    end = min(len(text) // BLOCK_CHARS, MAX_BLOCKS) * BLOCK_CHARS
    for start in range(0, end, BLOCK_CHARS):
        block = text[start : start + BLOCK_CHARS].encode("utf-8", "surrogatepass")
        last = blake2b(block, digest_size=8, key=last).digest()
        chain.append(int.from_bytes(last, "big"))
    return tuple(chain)


class PrefixIndex:
    """Bounded by `limit` hashes: those used least recently go, and of one chain the last block goes first."""

    def __init__(self, *, limit: int = 32_768) -> None:
        self._limit = limit
        self._blocks: OrderedDict[int, OrderedDict[PeerId, float]] = OrderedDict()  # hash -> peer -> last use
        self._trust: dict[PeerId, float] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def note(self, peer: PeerId, chain: Chain, now: float) -> None:
        """The peer has taken (or finished) a prompt with this chain: it is in its cache now."""
        for block in reversed(chain):
            peers = self._blocks.setdefault(block, OrderedDict())
            self._blocks.move_to_end(block)
            peers[peer] = now
            peers.move_to_end(peer)
            if len(peers) > MAX_PEERS:
                peers.popitem(last=False)
        while len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)

    def cached(self, chain: Chain, prompt_tokens: int, now: float) -> dict[PeerId, int]:
        """For each peer that knows at least one block: how many of the prompt's tokens it need not prefill."""
        shared: dict[PeerId, int] = {}
        peers: set[PeerId] | None = None
        for depth, block in enumerate(chain, start=1):
            known = self._blocks.get(block)
            fresh = {peer for peer, used in known.items() if now - used < FADE_S} if known else set()
            peers = fresh if peers is None else peers & fresh
            if not peers:
                break
            shared.update(dict.fromkeys(peers, depth))
        # The text ends somewhere in the block after the chain's last, unless the chain was cut.
        cut = len(chain) >= MAX_BLOCKS
        per_block = BLOCK_CHARS / _CHARS_PER_TOKEN if cut else prompt_tokens / (len(chain) + 0.5)
        return {
            peer: min(prompt_tokens, int(depth * per_block * self._trust.get(peer, 1.0)))
            for peer, depth in shared.items()
        }

    def observed(self, peer: PeerId, expected_tokens: int, cached_tokens: int) -> None:
        """An answer told how much really came from the cache, where `cached` had said `expected_tokens`."""
        if expected_tokens <= 0:
            return
        trust = self._trust.get(peer, 1.0)
        right = min(1.0, trust * cached_tokens / expected_tokens)  # the factor that would have been right
        self._trust[peer] = max(_LEAST_TRUST, trust + _TRUST_WEIGHT * (right - trust))

    def forget(self, peer: PeerId) -> None:
        """The peer has died or unloaded: its cache is empty."""
        self._trust.pop(peer, None)
        for block in [
            block for block, peers in self._blocks.items() if peers.pop(peer, None) is not None and not peers
        ]:
            del self._blocks[block]
