"""From a request to a response: the conversation that it continues, its call, and what is kept of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from api.errors import ResponseMissing
from api.ports import CallContext, ResponseStore, StoredResponse
from api.responses import items
from api.responses.body import CreateBody
from api.responses.ids import ResponseId
from api.responses.writer import ResponseWriter
from backends.types import CallerError, ChatRequest, ContextOverflow

_log = logging.getLogger("mesh.api")
RUNNING = frozenset({"queued", "in_progress"})

T = TypeVar("T")


@dataclass(slots=True)
class Making:
    """A response that is about to be made."""

    body: CreateBody
    identity: ResponseId
    own: list[items.Item]  # the items of the request itself
    before: list[items.Item]  # those of the conversation that it continues
    request: ChatRequest
    writer: ResponseWriter
    context: CallContext

    async def start(self, attempt: Callable[[ChatRequest], Awaitable[T]]) -> T:
        """What `attempt` returns for the request. Where the caller allows it, a conversation that is too long loses
        its oldest messages until it fits. Raises what `attempt` raises."""
        request = self.request
        while True:
            try:
                return await attempt(request)
            except ContextOverflow as error:
                error.param = "input"
                shorter = _shorter(request) if self.body.truncation == "auto" else None
                if shorter is None:
                    raise
                request = shorter

    def record(self) -> StoredResponse:
        """The response as it is to be kept."""
        return StoredResponse(
            id=str(self.identity),
            previous_id=self.body.previous_response_id,
            status=self.writer.resource["status"],
            input=msgspec.json.encode(self.own),
            resource=msgspec.json.encode(self.writer.resource),
        )

    async def keep(self, store: ResponseStore, events: bytes | None = None) -> None:
        """Store the response if it is to be. That this fails is the operator's trouble: the caller has the answer."""
        if not self.body.keeps:
            return
        try:
            await store.put(self.record(), events)
        except Exception:  # noqa: BLE001
            _log.exception("response %s could not be stored", self.identity)

    def conversation(self) -> list[items.Item]:
        """All items up to the end of the answer."""
        return [*self.before, *self.own, *self.writer.resource["output"]]


async def make(
    store: ResponseStore,
    body: CreateBody,
    model: str,
    context: CallContext,
    known: Sequence[items.Item] | None = None,
) -> Making:
    """What is needed to answer `body`. `known` are the items that it continues, where the caller has them already.

    Raises CallerError or ResponseMissing.
    """
    before = list(known) if known is not None else await _before(store, body.previous_response_id)
    identity = ResponseId.new(store.node)
    own = items.numbered(await _resolved(store, body.input, before), identity)
    request = body.request(model, items.messages([*before, *own]))
    if not request.messages:
        raise CallerError("Invalid 'input': it has no message.", param="input", code="invalid_value")
    writer = ResponseWriter(request, identity, body.echo(model))
    return Making(body, identity, own, before, request, writer, context)


async def _before(store: ResponseStore, previous: str | None) -> list[items.Item]:
    """The items of the whole conversation that ends with the response `previous`."""
    if previous is None:
        return []
    chain = await store.chain(previous)
    if not chain:
        raise _missing(f"Previous response with id '{previous}' not found.")
    if chain[0].previous_id is not None:
        raise _missing(f"The conversation of response '{previous}' is not whole: its beginning has been deleted.")
    if chain[-1].status in RUNNING:
        message = f"Response '{previous}' has not ended yet."
        raise CallerError(message, param="previous_response_id", code="response_in_progress")
    found: list[items.Item] = []
    for response in chain:
        found += msgspec.json.decode(response.input)
        found += msgspec.json.decode(response.resource)["output"]
    return found


def _missing(message: str) -> ResponseMissing:
    return ResponseMissing(message, param="previous_response_id", code="previous_response_not_found")


async def _resolved(
    store: ResponseStore, given: Sequence[items.Item], before: Sequence[items.Item]
) -> list[items.Item]:
    """`given`, with the items themselves in place of references to them."""
    out: list[items.Item] = []
    for number, item in enumerate(given):
        if item["type"] == "item_reference":
            found = _find(item["id"], [*before, *out]) or await _stored(store, item["id"])
            if found is None:
                param = f"input[{number}].id"
                raise ResponseMissing(f"Item with id '{item['id'][:100]}' not found.", param=param, code="not_found")
            item = found
        out.append(item)
    return out


async def _stored(store: ResponseStore, identity: str) -> items.Item | None:
    owner = ResponseId.of_item(identity)
    response = await store.get(str(owner)) if owner else None
    if response is None:
        return None
    output: list[items.Item] = msgspec.json.decode(response.resource)["output"]
    return _find(identity, [*msgspec.json.decode(response.input), *output])


def _find(identity: str, among: Sequence[dict[str, Any]]) -> items.Item | None:
    return next((item for item in among if item.get("id") == identity), None)


def _shorter(request: ChatRequest) -> ChatRequest | None:
    """`request` without the oldest quarter of its messages; instructions and the last question stay."""
    kept = [message for message in request.messages if message.role == "system"]
    rest = [message for message in request.messages if message.role != "system"]
    last = next((at for at in range(len(rest) - 1, 0, -1) if rest[at].role == "user"), 0)
    start = min(last, max(1, len(rest) // 4))
    while start < last and rest[start].role != "user":  # a tool's result without its call means nothing
        start += 1
    if not start:
        return None
    return msgspec.structs.replace(request, messages=(*kept, *rest[start:]))
