"""The bytes of each token, from tokenizer.json: what a token adds to a text, be it half a character.

Two ways of writing bytes as text are in use: GPT-2's, where each byte has a letter of its own, and SentencePiece's,
where a space is U+2581 and what has no letters is `<0xAB>`. The file's decoder says which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from backends.types import LoadFailed

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


class Pieces:
    """Of one tokenizer. Tokens marked as special have no bytes."""

    def __init__(self, tokenizer: Mapping[str, Any]) -> None:
        """Raises LoadFailed when `tokenizer` is none that is known."""
        try:
            words = _vocabulary(tokenizer["model"])
            added = [(int(item["id"]), str(item["content"]), bool(item["special"])) for item in _added(tokenizer)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LoadFailed(f"tokenizer.json is not understood: {error!r}") from error
        letters = _LETTERS if _has(tokenizer.get("decoder"), "ByteLevel") else None
        self._bytes = {token: _letters(word, letters) if letters else _sentence(word) for token, word in words.items()}
        for token, content, special in added:
            self._bytes[token] = b"" if special else content.encode()
        self.size = 1 + max(self._bytes, default=-1)

    def __getitem__(self, token: int) -> bytes:
        """What `token` adds to a text; nothing for one without a word (models have more rows than words)."""
        return self._bytes.get(token, b"")


def _vocabulary(model: Mapping[str, Any]) -> dict[int, str]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: words with their scores
        return {token: str(item[0]) for token, item in enumerate(vocabulary)}
    return {int(token): str(word) for word, token in vocabulary.items()}


def _added(tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    added = tokenizer.get("added_tokens")
    return added if isinstance(added, list) else []


def _has(decoder: Any, kind: str) -> bool:
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == kind or any(_has(inner, kind) for inner in decoder.get("decoders") or ())


def _letter_table() -> dict[str, int]:
    """GPT-2's letters: printable bytes are themselves, the others follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(others)}


_LETTERS = _letter_table()


def _letters(word: str, letters: Mapping[str, int]) -> bytes:
    return b"".join(
        bytes([letters[letter]]) if letter in letters else letter.encode("utf-8", "replace") for letter in word
    )


def _sentence(word: str) -> bytes:
    if found := _BYTE.fullmatch(word):
        return bytes.fromhex(found[1])
    return word.replace(_SPACE, " ").encode("utf-8", "replace")
