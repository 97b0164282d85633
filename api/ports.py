"""What the API asks of the node that serves it; node/ implements these and hands them to `create_app`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from backends.types import Capability, Chunk, Request, Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class CallContext:
    """Who asks, as far as the router needs to know."""

    request_id: str  # X-Correlation-ID
    client: str = "-"  # the fairness key: the API key's digest, or the address
    node: str | None = None  # X-Mesh-Node of the request: the one node that may answer
    keep_s: float | None = None  # how long the model stays loaded where this is answered; None: that node's own rule


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """One model as a client sees it."""

    name: str
    backend: str
    capabilities: tuple[Capability, ...]
    created: int  # Unix time, seconds, of the model's YAML
    aliases: tuple[str, ...] = ()  # other names that it answers to
    loaded: bool = False
    nodes: tuple[str, ...] = ()  # names of those that have it
    size_bytes: int = 0  # of its weights
    memory_bytes: int = 0  # that it needs when loaded
    context_tokens: int = 0  # of one sequence; 0: not known
    digest: str = ""  # of its weights, hexadecimal; empty: not known
    expires_at: float = math.inf  # Unix time at which it is unloaded unless it is used; only while loaded
    details: Mapping[str, Any] = field(default_factory=dict)  # only while loaded


class Call(Protocol):
    """A running call. Leaving its context cancels it and frees its slot."""

    @property
    def model(self) -> str:
        """The model that answers, by its own name (the request may have used an alias)."""

    @property
    def node(self) -> str:
        """The name of the node that answers."""

    def batches(self) -> AsyncIterator[Sequence[Chunk]]:
        """The chunks, all that are ready at once together. Ends when the call is done.

        Raises MeshError when the call fails. The first chunk of a generation is `Accepted`.
        """

    @property
    def usage(self) -> Usage:
        """What the call cost; complete once `batches` has ended."""


class Dispatcher(Protocol):
    """Runs requests, wherever that is."""

    def open(self, request: Request, context: CallContext) -> AbstractAsyncContextManager[Call]:
        """Queue for a slot, load the model if need be, and start the call.

        Raises ModelMissing, ModelDisabled, Unsupported, Busy, LoadFailed, OutOfMemory, EngineCrashed on entry.
        """


class ImageFetcher(Protocol):
    """Gets the image that a request names by its address."""

    async def __call__(self, url: str) -> bytes:
        """What lies at `url`; nobody has looked into it. Raises CallerError that says why it cannot be had, or Busy."""


class Node(Protocol):
    """What the API tells of the node itself."""

    def models(self) -> Sequence[ModelCard]:
        """The models that can be asked for, sorted by name."""

    def default_model(self, capability: Capability) -> str | None:
        """The model that answers a request which names none; None when no model has the capability."""

    def starting(self) -> bool:
        """True while the node is not ready to take requests (also while it shuts down)."""

    def system(self) -> Mapping[str, Any]:
        """What GET /system shows: hardware, budget, backends, loaded models."""

    def metrics(self) -> tuple[bytes, str]:
        """The Prometheus exposition and its content type."""

    def reload(self) -> None:
        """Read the model files again, after `mesh models add` or `remove`."""


@dataclass(frozen=True, slots=True)
class ForwardedAnswer:
    """What the node that owns a thing answers to a request for it."""

    status: int
    content_type: str
    body: AsyncIterator[bytes]
    """Raises NodeGone when it ends too early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardedCall:
    """A client's request, to be answered by the node that owns what it is about."""

    method: str
    path: str
    query: str
    content_type: str
    body: bytes
    request_id: str


ModelAction: TypeAlias = Literal["load", "unload", "pin", "unpin"]
"""What an operator may do to a model."""


class Mesh(Protocol):
    """What the API tells of the swarm, and does to it. All values are plain JSON."""

    def view(self) -> Mapping[str, Any]:
        """All that the roster knows: this node and its peers."""

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[Mapping[str, Any]]]:
        """Events from now on: joined, left, suspect, alive, dead, load, record, route, ended."""

    def token(self) -> str | None:
        """The join token with current addresses; None without a swarm."""

    def requests(self, count: int) -> Sequence[Mapping[str, Any]]:
        """The last requests that entered here, newest first."""

    def explain(self, request_id: str) -> Mapping[str, Any] | None:
        """Why a request went where it went; None when it is unknown here."""

    async def trace(self, request_id: str) -> Mapping[str, Any] | None:
        """The timeline of a request over all nodes; None when it is unknown here."""

    def plans(self, model: str | None) -> Sequence[Mapping[str, Any]]:
        """Which nodes can hold a model, or hold its layers together; of all models without `model`.

        Raises ModelMissing or ModelDisabled.
        """

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """What each node has, loaded or on disk: this node first."""

    def place_of(self, node: str) -> str | None:
        """The peer that a name or id means; None for this node. Raises CallerError, or NodeGone."""

    async def act(self, model: str, action: ModelAction) -> str:
        """Do something to a model of this node; its own name. Loading waits until it is loaded.

        Raises ModelMissing, ModelDisabled, CallerError, Busy, LoadFailed, OutOfMemory, EngineCrashed.
        """

    async def charts(self, node: str | None) -> Mapping[str, Any]:
        """The last quarter of an hour of all nodes, or of one by its name or id, in steps."""

    def kick(self, node: str) -> str:
        """Ban a node from the swarm; its id. Raises CallerError for an unknown one."""

    def pardon(self, node: str) -> str:
        """Lift a ban; the id. Raises CallerError for one that is not banned."""

    async def leave(self) -> None:
        """Say good-bye to the swarm and serve on alone."""

    def owner(self, part: str) -> str | None:
        """The live peer that made the ids with this node part; None for this node's own, and for what nobody made."""

    def forward(self, owner: str, call: ForwardedCall) -> AbstractAsyncContextManager[ForwardedAnswer]:
        """Have the owner answer. Raises NodeGone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredResponse:
    """A response of Open Responses as it is kept. `input` (its own items) and `resource` are JSON."""

    id: str
    previous_id: str | None
    status: str
    input: bytes
    resource: bytes


class ResponseStore(Protocol):
    """Keeps responses, also over a restart."""

    @property
    def node(self) -> str:
        """The part of an id that says on which node it was made: letters and digits."""

    async def put(self, response: StoredResponse, events: bytes | None = None) -> None:
        """Keep `response` in place of what was kept under its id; and the events of its stream."""

    async def get(self, identity: str) -> StoredResponse | None:
        """The response of that id."""

    async def chain(self, identity: str) -> Sequence[StoredResponse]:
        """The response of that id and all before it, oldest first; empty when there is none."""

    async def events(self, identity: str) -> bytes | None:
        """The events of a response's stream, where they were kept."""

    async def delete(self, identity: str) -> bool:
        """Forget a response; False when there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiOptions:
    """What the operator decided about the API."""

    version: str
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 15 << 20
