"""The fake model's language: 256 byte tokens, then 256 word tokens; which word comes next is a hash. Pure."""

from __future__ import annotations

import array
import math
from collections.abc import Sequence
from hashlib import blake2b

from backends.types import CallerError

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "vé")
WORDS = tuple(f" {first}{second}" for first in _SYLLABLES for second in _SYLLABLES)
VOCABULARY = 256 + len(WORDS)
EMBEDDING_SIZE = 32


def tokenize(text: str) -> list[int]:
    """The UTF-8 bytes of `text`."""
    return list(text.encode())


def piece(token: int) -> bytes:
    """The bytes that `token` stands for. Raises CallerError for a foreign id."""
    if 0 <= token < 256:
        return bytes((token,))
    if 256 <= token < VOCABULARY:
        return WORDS[token - 256].encode()
    raise CallerError(f"Token {token} is outside this model's vocabulary of {VOCABULARY}.", param="tokens")


def fingerprint(prompt: Sequence[int], seed: int) -> bytes:
    """What determines a whole answer: the prompt and, when sampling, the seed."""
    return blake2b(array.array("H", prompt).tobytes(), digest_size=16, key=seed.to_bytes(8, "little")).digest()


def next_token(answer: bytes, position: int) -> int:
    """The word token at `position` of the answer with that fingerprint."""
    return 256 + blake2b(position.to_bytes(4, "little"), digest_size=1, key=answer).digest()[0]


def embedding(tokens: Sequence[int]) -> bytes:
    """A unit vector made of the tokens' trigrams, so that similar texts are near: little-endian float32."""
    vector = [1e-3] * EMBEDDING_SIZE
    for at in range(len(tokens)):
        trigram = array.array("H", tokens[at : at + 3]).tobytes()
        vector[blake2b(trigram, digest_size=1).digest()[0] % EMBEDDING_SIZE] += 1.0
    norm = math.sqrt(sum(value * value for value in vector))
    floats = array.array("f", (value / norm for value in vector))
    return floats.tobytes()
