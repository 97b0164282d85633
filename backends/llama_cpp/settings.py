"""The `engine:` table of a llama.cpp model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from backends.types import LoadFailed

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]

CACHE_TYPES: dict[CacheType, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
"""ggml_type of each name."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What only llama.cpp knows."""

    cache_type: CacheType = "f16"  # of the KV cache: a smaller one saves memory and costs some quality
    threads_batch: Annotated[int, msgspec.Meta(ge=1)] | None = None  # for prompts; None: as for decoding


def read_settings(table: dict[str, Any]) -> Settings:
    """The settings in a model's `engine:` table. Raises LoadFailed naming what is wrong."""
    try:
        return msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise LoadFailed(f"The `engine:` table of a llama-cpp model is wrong: {error}") from error
