"""What a backend says of models that may be cut into layers, and of the servers that hold other nodes' layers.

The node plans and connects; the backend alone knows its files and what its engine and its servers say to each other.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from backends.types import LoadSpec, ModelNeeds


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A model as a row of layers: what each weighs, and what crosses a border between two machines."""

    layer_bytes: tuple[int, ...]
    """Weights of each layer, first to last."""
    layer_cache_bytes: tuple[int, ...]
    """What each layer keeps of all running sequences, beside its weights."""
    output_bytes: int
    """Weights that turn the last layer's result into an answer; they go where the last layers are."""
    head_bytes: int
    """What stays at the head in any case: its process, and what a token is looked up in."""
    scratch_bytes: int
    """Working memory of every machine that takes part."""
    border_bytes: int
    """Per token, over every border."""
    result_bytes: int
    """Per token, from where the last layer is back to the head."""


class RankShape(msgspec.Struct, frozen=True, kw_only=True):
    """A model that ranks share."""

    way: str
    """"tensor": each has a part of every layer; "pipeline": each has a stretch of them."""
    layers: tuple[int, ...]
    """Of each rank, the head's first."""
    weight_bytes: int
    """Of each rank."""
    exchanges: int
    """How often a token makes all ranks wait for each other."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Something that computes."""

    free_bytes: int
    total_bytes: int


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a shard server says of itself."""

    version: str
    devices: tuple[Device, ...]


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to run a shard server. It listens on 127.0.0.1 alone."""

    port: int
    cache: str = ""  # folder in which weights are kept for a next load; empty: none are
    memory_bytes: int | None = None  # that others' layers may take
    threads: int | None = None
    device: str = ""  # by the engine's own name; empty: all accelerators, else the CPU


class ServerReady(msgspec.Struct, frozen=True, kw_only=True):
    """A shard server's one line to its node, just before it listens."""

    devices: tuple[str, ...]
    bytes_per_s: float  # weights that it gets through while it decodes, measured


@runtime_checkable
class ShardingBackend(Protocol):
    """A backend whose models may be held by several machines. Beside backends.engine.Backend."""

    target: str
    """The name under which its servers are exposed to other nodes."""

    def server_command(self, settings: ServerSettings) -> list[str]:
        """The argument vector that starts a shard server. One more argument is appended: the number of a socket's
        descriptor, to which it writes `ServerReady` as a line of JSON, and whose end is the order to exit."""

    def shape(self, load: LoadSpec, needs: ModelNeeds) -> Shape:
        """The model that `load` names, opened with the numbers of `needs`. Reads the file's header only. Raises
        LoadFailed."""

    def refuses(self, version: str) -> str:
        """Why a shard server that says it is of that version cannot be used; empty: it can."""

    async def probe(self, port: int, *, timeout_s: float) -> ServerFacts:
        """Ask the shard server at 127.0.0.1:`port`, as an engine would. Raises LoadFailed: nobody answers, or of a
        version that this node's engine does not speak."""


@runtime_checkable
class RankingBackend(Protocol):
    """A backend whose models several machines may hold together, each a part of every layer or a stretch of them. All
    have the weights on their own disks. Beside backends.engine.Backend."""

    rank_target: str
    """The name under which a node exposes that it takes part."""

    def rank_needs(self, load: LoadSpec, size: int) -> ModelNeeds:
        """What each of `size` ranks takes. Raises LoadFailed where so many cannot share the model, with the reason, and
        OutOfMemory."""

    def rank_shape(self, load: LoadSpec, size: int) -> RankShape:
        """How `size` ranks would share the model; one has it as a whole. Raises LoadFailed as `rank_needs` does."""

    def refuses(self, version: str) -> str:
        """Why a rank's server that says it is of that version cannot be used; empty: it can."""

    async def check_rank(self, load: LoadSpec, port: int, *, memory_bytes: int, timeout_s: float) -> None:
        """Ask the rank server at 127.0.0.1:`port` whether it can take part in that model. Raises LoadFailed with the
        reason, to be read after the server's name."""
