"""From a request of chat or generate to its answer; and how long its model stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from quart import Response, g

from api import calls, sse
from api.ollama.body import GenerationBody, ModelBody
from api.ollama.render import AnswerWriter, Shape, empty
from api.services import Services, json_response
from api.turns import read_whole
from backends.types import Capability, ChatRequest, Chunk, CompletionRequest, TokenizeRequest


def keep(services: Services, body: ModelBody, capability: Capability) -> str:
    """The model that `body` means; it stays loaded, where it answers, as long after its last call as the body says."""
    g.keep_s = cast("float | None", body.keep_alive)
    return resolve(services, services.model(body.model, capability))


def resolve(services: Services, name: str) -> str:
    """Ollama's clients add the tag `:latest` to a name that has none."""
    plain = name.removesuffix(":latest")
    known = {card.name for card in services.node.models()}
    return plain if name not in known and plain in known else name


async def answer(
    services: Services, body: GenerationBody, request: ChatRequest | CompletionRequest, shape: Shape
) -> Response:
    """Run the request: one line for each piece, or the whole."""
    writer = AnswerWriter(request, body.model, shape, shows_thinking=body.shows_thinking)
    if body.streams:
        return await sse.stream(services.dispatcher, [request], services.context(), writer, media=sse.LINES)
    batches: list[Sequence[Chunk]] = []
    usage = await read_whole(services.dispatcher, request, services.context(), batches.append)
    return json_response(writer.whole(batches, usage))


async def load(services: Services, body: GenerationBody, model: str, shape: Shape) -> Response:
    """Load the model, or unload it where it is to stay for no time. Raises MeshError."""
    unloads = body.keep_alive == 0
    card = services.card(model)
    if not unloads or card is None or card.loaded:
        # Whoever asks for no tokens gets them from the engine itself, so the model is loaded then. Where it is to stay
        # for no time, it goes after this call as after any.
        await calls.only(services.dispatcher, TokenizeRequest(model=model, content=""), services.context())
    return json_response(empty(body.model, shape, "unload" if unloads else "load"))
