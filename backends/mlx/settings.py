"""The `engine:` table of an MLX model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from backends.types import LoadFailed

Dtype = Literal["float32", "float16", "bfloat16"]

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What only MLX knows."""

    dtype: Dtype | None = None  # of weights that are not quantised, and of the KV cache; None: as in the files
    prompt_tokens: Annotated[int, msgspec.Meta(ge=16, le=8192)] = 256  # of a prompt in one step


def read_settings(table: dict[str, Any]) -> Settings:
    """The settings in a model's `engine:` table. Raises LoadFailed naming what is wrong."""
    try:
        return msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise LoadFailed(f"The `engine:` table of an mlx model is wrong: {error}") from error
