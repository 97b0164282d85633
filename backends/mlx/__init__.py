"""MLX in a child process, on mlx-lm's batching. Light to import: the libraries live in an environment of their own."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import msgspec

from backends.mlx.folder import read_folder
from backends.mlx.needs import estimate, rank_shape
from backends.mlx.ring import VERSION
from backends.mlx.settings import read_settings
from backends.sharding import RankShape
from backends.types import LoadFailed, LoadSpec, ModelNeeds, Shard


class MlxBackend:
    """Implements backends.engine.Backend and backends.sharding.RankingBackend."""

    name = "mlx"
    aliases: tuple[str, ...] = ("mlx-lm",)
    licence = "MIT"
    requirements: tuple[str, ...] = ("mlx-lm==0.32.2",)
    suffixes: tuple[str, ...] = ()  # a model is a folder
    rank_target = "mlx-rank"

    def unavailable(self) -> str | None:
        system, machine = platform.system(), platform.machine()
        if system != "Linux" and (system, machine) != ("Darwin", "arm64"):
            return f"MLX runs on Apple silicon and on Linux, not on {system} with {machine}."
        if not interpreter().exists() or not any(environment().glob("lib/python*/site-packages/mlx_lm")):
            return "MLX is not installed. Run `make mlx` in a source checkout, which makes an environment for it."
        return None

    def command(self) -> list[str]:
        return [str(interpreter()), "-m", "backends.mlx"]

    def environment(self) -> dict[str, str]:
        # A model is what lies in its folder: nothing is to be looked up elsewhere.
        return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def needs(self, load: LoadSpec) -> ModelNeeds:
        if not load.path:
            raise LoadFailed(f"Model {load.name} names no folder (parameters.model in its YAML).")
        read_settings(load.engine)
        return estimate(read_folder(load.path), load)

    def rank_needs(self, load: LoadSpec, size: int) -> ModelNeeds:
        read_folder(load.path).way(size)
        others = tuple(Shard(endpoint="", layers=0) for _ in range(size - 1))
        return self.needs(msgspec.structs.replace(load, shards=others))

    def rank_shape(self, load: LoadSpec, size: int) -> RankShape:
        return rank_shape(read_folder(load.path), load, size)

    def refuses(self, version: str) -> str:
        return "" if version == VERSION else f"its ranks speak version {version[:20]}; this node's speak {VERSION}."

    async def check_rank(self, load: LoadSpec, port: int, *, memory_bytes: int, timeout_s: float) -> None:
        from backends.mlx.lending import check_rank  # it imports this module

        await check_rank(load, port, memory_bytes=memory_bytes, timeout_s=timeout_s)


def environment() -> Path:
    """Where `make mlx` puts MLX and what it needs: inside the node's own environment, and apart from it."""
    return Path(sys.prefix) / "mlx"


def interpreter() -> Path:
    """The Python that workers run on."""
    return environment() / "bin" / "python"


backend = MlxBackend()
