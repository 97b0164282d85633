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

    cache_type: CacheType | None = None  # of the KV cache; a smaller one saves memory, costs quality. See cache_types
    threads_batch: Annotated[int, msgspec.Meta(ge=1)] | None = None  # for prompts; None: as for decoding


def cache_types(wanted: CacheType | None, *, on_cpu: bool) -> tuple[int, int]:
    """The ggml_type of keys and of values.

    Unasked, on a CPU, f16 and bf16. ggml's CPU flash attention has faster kernels for prompts of 64 tokens and more and
    for one long sequence alone, whose rounding differs from that of the plain kernel: with them the text of a call
    depends on its neighbours and on where its prompt was cut. They are taken only where both types are the same
    (ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext_f16). GPUs have kernels for equal types only.
    """
    if wanted is None and on_cpu:
        return CACHE_TYPES["f16"], CACHE_TYPES["bf16"]
    return CACHE_TYPES[wanted or "f16"], CACHE_TYPES[wanted or "f16"]


def read_settings(table: dict[str, Any]) -> Settings:
    """The settings in a model's `engine:` table. Raises LoadFailed naming what is wrong."""
    try:
        return msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise LoadFailed(f"The `engine:` table of a llama-cpp model is wrong: {error}") from error
