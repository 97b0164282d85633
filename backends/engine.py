"""The protocol between a worker's main loop and the engine it drives.

An engine is stepped, not run: `step` does one bounded unit of work (one batch through the model, say) and returns,
so that new calls, cancellations and statistics are never more than one step away. Everything but `prepare` is
called from one thread.
"""

from __future__ import annotations

from typing import Any, Protocol

from backends.types import Chunk, EngineInfo, EngineStats, LoadSpec, MeshError, ModelNeeds, Request, Usage


class Outlet(Protocol):
    """Where an engine puts its answers. Never blocks."""

    def chunk(self, call: int, chunk: Chunk) -> None:
        """Send one chunk of a call."""

    def done(self, call: int, usage: Usage) -> None:
        """End a call well."""

    def failed(self, call: int, error: MeshError) -> None:
        """End a call with an error."""

    def ready(self, call: int) -> bool:
        """Whether the call's reader keeps up. When not, pause the call's sequences; do not drop its chunks."""


class Engine(Protocol):
    """An opened model that answers several calls at once."""

    def info(self) -> EngineInfo:
        """What the engine can do. Constant over its life."""

    def prepare(self, call: int, request: Request) -> Any:
        """Check `request` and make of it what `submit` takes: render, tokenize, compile.

        Runs on another thread than `step` and may take its time. Raises CallerError or a child of it.
        """

    def submit(self, job: Any) -> None:
        """Take a prepared call; its chunks follow from `step`. Never refuses: it may queue."""

    def cancel(self, call: int) -> None:
        """Forget a call, if it is still known; its slot is free at the next step."""

    def step(self, outlet: Outlet) -> bool:
        """Do one unit of work. False when there was nothing to do."""

    def stats(self) -> EngineStats:
        """How the engine is doing. Cheap."""

    def close(self) -> None:
        """Free the model."""


class Backend(Protocol):
    """One engine as the node sees it, before any child process: found by the entry point group `mesh.backends`.

    Light to import: it must not pull in the engine's own libraries.
    """

    name: str
    aliases: tuple[str, ...]
    licence: str
    requirements: tuple[str, ...]  # what its environment must hold, as pip would be asked
    suffixes: tuple[str, ...]  # file endings it opens, with the dot

    def unavailable(self) -> str | None:
        """None if workers can be started here, else one sentence: what is missing and how to get it."""

    def command(self) -> list[str]:
        """The argument vector that starts a worker; its interpreter is the backend's own to name."""

    def environment(self) -> dict[str, str]:
        """Variables to set in the child on top of the node's."""

    def needs(self, load: LoadSpec) -> ModelNeeds:
        """What opening `load` would take. Reads the file's header only. Raises LoadFailed or OutOfMemory."""
