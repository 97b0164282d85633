"""How the tokens of one choice are drawn, as plain data that can be sent to the other ranks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from backends.types import Sampling, Unsupported

_EVERY_TOKEN = 1 << 30


class Recipe(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Values are in force: defaults are filled in, and what is off has the value that changes nothing."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    window: int = 0  # tokens that the penalties look back on; 0: there are none
    bias: dict[int, float] = {}
    seed: bytes = b""

    def draw_seed(self, position: int) -> int:
        """The seed of the draw at a position: a resumed answer draws what the undisturbed one would have drawn."""
        digest = blake2b(position.to_bytes(4, "little"), digest_size=8, key=self.seed).digest()
        return int.from_bytes(digest, "little")


def recipe(sampling: Sampling, *, seed: int, choice: int, banned: Sequence[int]) -> Recipe:
    """The recipe of choice number `choice`; `banned` tokens are never drawn. Defaults are llama.cpp's, as in every
    engine. Raises Unsupported."""
    temperature = _or(sampling.temperature, 0.8)
    if sampling.mirostat and temperature > 0:
        raise Unsupported("The mlx backend has no mirostat.", param="mirostat")
    penalties = {
        "repeat_penalty": _or(sampling.repeat_penalty, 1.0),
        "frequency_penalty": _or(sampling.frequency_penalty, 0.0),
        "presence_penalty": _or(sampling.presence_penalty, 0.0),
    }
    last_n = 64 if sampling.repeat_last_n is None else sampling.repeat_last_n
    penalised = list(penalties.values()) != [1.0, 0.0, 0.0]
    return Recipe(
        temperature=temperature,
        top_k=max(0, 40 if sampling.top_k is None else sampling.top_k),
        top_p=_or(sampling.top_p, 0.95),
        min_p=_or(sampling.min_p, 0.05),
        typical_p=_or(sampling.typical_p, 1.0),
        window=(last_n if last_n >= 0 else _EVERY_TOKEN) if penalised else 0,
        bias=(sampling.logit_bias or {}) | dict.fromkeys(banned, -float("inf")),
        seed=(seed % (1 << 64)).to_bytes(8, "little") + choice.to_bytes(4, "little"),
        **penalties,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
