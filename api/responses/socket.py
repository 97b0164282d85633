"""Responses over a WebSocket. OpenAI API reference, "Responses", WebSocket mode.

The client sends `response.create` with the fields of a request; the events of its response come back, each as one
message. A response that is not stored can be continued on the same connection, as long as it is the last one. With
`generate: false` the prompt is processed and nothing said: what continues that response finds it in a cache.
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
from backends.types import Accepted, CallerError, Capability, ChatRequest, Finished, ModelMissing, Usage


async def converse(services: Services) -> None:
    """Answer the current connection until it ends."""
    last: tuple[str, list[Item]] | None = None  # the last response's id, and the conversation up to its end
    context = CallContext(request_id=g.request_id, client=g.client, node=websocket.headers.get("X-Mesh-Node") or None)
    while True:
        message = await websocket.receive()
        try:
            body, speaks = _body(message)
            known = last[1] if last is not None and last[0] == body.previous_response_id else None
            making = await make(services.responses, body, _model(services, body), context, known)
        except Exception as error:  # noqa: BLE001  # the edge of this message; `fault_of` logs what it does not know
            await websocket.send(_refusal(error))
            continue
        await (_answer if speaks else _warm)(services, making)
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


async def _warm(services: Services, making: Making) -> None:
    async def attempt(request: ChatRequest) -> Usage:
        # An engine has no other way to process a prompt than to answer; the one token is thrown away.
        asked = msgspec.structs.replace(request, max_tokens=1)
        async with calls.running(services.dispatcher, [asked], making.context) as call:
            async with calls.reading(call) as batches:
                async for _ in batches:
                    pass
            return call.usage

    try:
        usage = await making.start(attempt)
    except Exception as error:  # noqa: BLE001  # as above
        await websocket.send(_refusal(error))
        return
    spent = msgspec.structs.replace(usage, completion_tokens=0)
    events = making.writer.events([Accepted(usage.prompt_tokens), Finished(0, "stop")])
    events += making.writer.ended(spent)
    await making.keep(services.responses)
    await _send(events)


async def _send(events: list[bytes]) -> None:
    for event in events:
        await websocket.send(event.decode())


def _body(message: str | bytes) -> tuple[CreateBody, bool]:
    """What is asked for, and whether it is to be answered."""
    value = decode(message.encode() if isinstance(message, str) else message)
    kind = value.pop("type", None)
    if kind != "response.create":
        raise CallerError("Invalid 'type': expected 'response.create'.", param="type", code="invalid_value")
    if value.get("background") is True:
        message = "Invalid 'background': not supported over a WebSocket."
        raise CallerError(message, param="background", code="unsupported_value")
    speaks = value.pop("generate", None)
    if speaks is not None and not isinstance(speaks, bool):
        raise CallerError("Invalid 'generate': expected a boolean.", param="generate", code="invalid_type")
    body = validate(CreateBody, {name: item for name, item in value.items() if name not in ("stream", "background")})
    return body, speaks is not False


def _model(services: Services, body: CreateBody) -> str:
    name = body.model or services.node.default_model(Capability.CHAT)
    if not name:
        raise ModelMissing("no model can answer this: none has the capability 'chat'")
    return name


def _refusal(error: BaseException) -> str:
    fault = errors.fault_of(error)
    told: dict[str, Any] = {"type": "error", "status": fault.status}
    return msgspec.json.encode({**told, **errors.openai_error(fault)}).decode()
