"""GGUF files with weights in them, for models that are made here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tests.backends.ggufs import gguf

Weights: TypeAlias = npt.NDArray[np.float32]


class Tensors:
    """Named weights, drawn at random unless they are given."""

    def __init__(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        self.found: dict[str, Weights] = {}

    def __setitem__(self, name: str, values: Weights) -> None:
        self.found[name] = values

    def random(self, name: str, *shape: int, size: float | None = None) -> None:
        """`size` is the standard deviation: by default so that a product with it keeps its own."""
        scale = shape[-1] ** -0.5 if size is None else size
        self.found[name] = (self._draw.standard_normal(shape) * scale).astype(np.float32)

    def linear(self, name: str, wide: int, width: int) -> None:
        """A random matrix from `width` to `wide` numbers, and no bias to speak of."""
        self.random(f"{name}.weight", wide, width)
        self.found[f"{name}.bias"] = np.zeros(wide, np.float32)

    def norm(self, name: str, width: int) -> None:
        """A normalisation that changes nothing else."""
        self.found[f"{name}.weight"] = np.ones(width, np.float32)
        self.found[f"{name}.bias"] = np.zeros(width, np.float32)


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Tensors) -> Path:
    """Write a file of them."""
    infos, data = [], b""
    for name, values in tensors.found.items():
        infos.append((name, values.shape[::-1], len(data)))
        data += values.tobytes()
        data += b"\0" * (-len(data) % 32)
    path.write_bytes(gguf(metadata, infos, data=data))
    return path
