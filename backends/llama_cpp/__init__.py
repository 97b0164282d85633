"""llama.cpp in a child process, on llama-cpp-python's low-level API. Light to import: the bindings load there."""

from __future__ import annotations

import platform
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import msgspec

from backends.llama_cpp.gguf import Header, read_header
from backends.llama_cpp.needs import estimate, shape
from backends.llama_cpp.rpc.client import probe, refuses
from backends.llama_cpp.settings import read_settings
from backends.sharding import ServerFacts, ServerSettings, Shape
from backends.types import LoadFailed, LoadSpec, ModelNeeds


class LlamaCppBackend:
    """Implements backends.engine.Backend and backends.sharding.ShardingBackend."""

    name = "llama-cpp"
    aliases: tuple[str, ...] = ("llama", "llama-cpp-python")
    licence = "MIT"
    requirements: tuple[str, ...] = ("llama-cpp-python==0.3.36",)
    suffixes: tuple[str, ...] = (".gguf",)
    target = "rpc"

    def unavailable(self) -> str | None:
        if find_spec("llama_cpp") is None:
            return "llama-cpp-python is not installed. Run `make run` in a source checkout, which builds it."
        if native_libraries() is None and not _bundled_libraries():
            return "llama.cpp's libraries are not built. Run `make run` in a source checkout, which builds them."
        return None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "backends.llama_cpp"]

    def environment(self) -> dict[str, str]:
        libraries = native_libraries()
        return {"LLAMA_CPP_LIB_PATH": str(libraries), "MTMD_CPP_LIB": str(libraries)} if libraries else {}

    def needs(self, load: LoadSpec) -> ModelNeeds:
        if not load.path:
            raise LoadFailed(f"Model {load.name} names no file (parameters.model in its YAML).")
        read_settings(load.engine)
        return estimate(_header(load.path), load)

    def server_command(self, settings: ServerSettings) -> list[str]:
        return [sys.executable, "-m", "backends.llama_cpp.rpc", msgspec.json.encode(settings).decode()]

    def shape(self, load: LoadSpec, needs: ModelNeeds) -> Shape:
        return shape(_header(load.path), load, needs)

    def refuses(self, version: str) -> str:
        return refuses(version)

    async def probe(self, port: int, *, timeout_s: float) -> ServerFacts:
        return await probe(port, timeout_s=timeout_s)


def _header(path: str) -> Header:
    """The header of the file as it is now: a plan asks for it several times over."""
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):
        return read_header(path)  # which says what is wrong
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: str, _size: int, _mtime_ns: int) -> Header:
    return read_header(path)


def native_libraries() -> Path | None:
    """The folder into which the set-up builds llama.cpp for this machine, if it has."""
    folder = Path(sys.prefix) / "lib" / "mesh-native"
    return folder if (folder / _library()).exists() else None


def _library() -> str:
    return "libllama.dylib" if platform.system() == "Darwin" else "libllama.so"


def _bundled_libraries() -> bool:
    spec = find_spec("llama_cpp")
    return bool(spec and spec.origin and (Path(spec.origin).parent / "lib" / _library()).exists())


backend = LlamaCppBackend()
