"""Responses over a WebSocket. OpenAI API reference, "Responses", WebSocket mode.

The client sends `response.create` with the fields of a request; the events of its response come back, each as one
message. A response that is not stored can be continued on the same connection, as long as it is the last one.
"""

from __future__ import annotations

from typing import Any

import msgspec
from quart import g, websocket

from api import calls, errors
from api.parse import decode, validate
from api.ports import CallContext
from api.responses.body import CreateBody
from api.responses.items import Item
from api.responses.making import Making, make
from api.services import Services
from backends.types import CallerError, Capability, ChatRequest, ModelMissing, Usage


async def converse(services: Services) -> None:
    """Answer the current connection until it ends."""
    last: tuple[str, list[Item]] | None = None  # the last response's id, and the conversation up to its end
    context = CallContext(request_id=g.request_id, client=g.client, node=websocket.headers.get("X-Mesh-Node") or None)
    while True:
        message = await websocket.receive()
        try:
            body = _body(message)
            known = last[1] if last is not None and last[0] == body.previous_response_id else None
            making = await make(services.responses, body, _model(services, body), context, known)
        except Exception as error:  # noqa: BLE001  # the edge of this message; `fault_of` logs what it does not know
            await websocket.send(_refusal(error))
            continue
        await _answer(services, making)
        last = (str(making.identity), making.conversation())


async def _answer(services: Services, making: Making) -> None:
    async def attempt(request: ChatRequest) -> Usage:
        async with calls.running(services.dispatcher, [request], making.context) as call:
            async with calls.reading(call) as batches:
                async for batch in batches:
                    await _send(making.writer.events(batch))
            return call.usage

    try:
        events = making.writer.ended(await making.start(attempt))
    except Exception as error:  # noqa: BLE001  # as above
        if not making.writer.begun:
            await websocket.send(_refusal(error))
            return
        events = making.writer.failed(error)
    await making.keep(services.responses)
    await _send(events)


async def _send(events: list[bytes]) -> None:
    for event in events:
        await websocket.send(event.decode())


def _body(message: str | bytes) -> CreateBody:
    value = decode(message.encode() if isinstance(message, str) else message)
    kind = value.pop("type", None)
    if kind != "response.create":
        raise CallerError("Invalid 'type': expected 'response.create'.", param="type", code="invalid_value")
    for name in ("background", "generate"):
        if value.get(name) is (name == "background"):
            raise CallerError(
                f"Invalid '{name}': not supported over a WebSocket.", param=name, code="unsupported_value"
            )
    return validate(CreateBody, {name: item for name, item in value.items() if name not in ("stream", "background")})


def _model(services: Services, body: CreateBody) -> str:
    name = body.model or services.node.default_model(Capability.CHAT)
    if not name:
        raise ModelMissing("no model can answer this: none has the capability 'chat'")
    return name


def _refusal(error: BaseException) -> str:
    fault = errors.fault_of(error)
    told: dict[str, Any] = {"type": "error", "status": fault.status}
    return msgspec.json.encode({**told, **errors.openai_error(fault)}).decode()
