"""POST /api/embed and its older form /api/embeddings. Ollama's API documentation, "Generate embeddings"."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator
from quart import Blueprint, Response

from api import calls
from api.ollama.answering import keep
from api.ollama.body import ModelBody, Options
from api.ollama.render import NS
from api.openai.embeddings import floats, shortened
from api.openai.generation import MAX_INT
from api.parse import parse, wrong
from api.services import Services, json_response
from backends.types import (
    Capability,
    Chunk,
    ContextOverflow,
    Embedding,
    EmbeddingRequest,
    EngineFault,
    TokenIds,
    TokenizeRequest,
    Usage,
)

MAX_INPUTS = 2048
SPARE_TOKENS = 8  # of a shortened input: what the engine adds to it


class EmbedBody(ModelBody):
    """The body of /api/embed."""

    input: Any = None
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    options: Options | None = None

    @field_validator("input")
    @classmethod
    def _texts(cls, value: Any) -> tuple[str, ...]:
        items = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise wrong("expected a string or a list of strings", kind="invalid_type")
        if len(items) > MAX_INPUTS:
            raise wrong(f"at most {MAX_INPUTS} items are allowed, got {len(items)}")
        for number, item in enumerate(items):
            if not isinstance(item, str):
                raise wrong("expected a string", number, kind="invalid_type")
        return tuple(items)


class EmbeddingsBody(ModelBody):
    """The body of /api/embeddings."""

    prompt: str | None = None
    options: Options | None = None


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("ollama_embed", __name__)

    @routes.post("/api/embed")
    async def embed() -> Response:
        """Ollama's dialect: one vector for each input; inputs that are too long are cut unless told otherwise."""
        started = time.monotonic()
        body = await parse(EmbedBody)
        model = keep(services, body, Capability.EMBEDDING)
        inputs = tuple(item for item in body.input or () if item)
        vectors, usage = await _vectors(
            services, model, inputs, truncate=body.truncate is not False, dimensions=body.dimensions
        )
        return json_response(
            {
                "model": body.model,
                "embeddings": vectors,
                "total_duration": int((time.monotonic() - started) * NS),
                "load_duration": 0,
                "prompt_eval_count": usage.prompt_tokens,
            }
        )

    @routes.post("/api/embeddings")
    async def embeddings() -> Response:
        """Ollama's dialect: the vector of one prompt (older form of /api/embed)."""
        body = await parse(EmbeddingsBody)
        model = keep(services, body, Capability.EMBEDDING)
        inputs = (body.prompt,) if body.prompt else ()
        vectors, _ = await _vectors(services, model, inputs, truncate=True)
        return json_response({"embedding": vectors[0] if vectors else []})

    return routes


async def _vectors(
    services: Services, model: str, inputs: Sequence[str], *, truncate: bool, dimensions: int | None = None
) -> tuple[list[list[float]], Usage]:
    """One vector for each of `inputs`. Raises MeshError."""
    if not inputs:  # Ollama loads the model then, and answers nothing
        await calls.only(services.dispatcher, TokenizeRequest(model=model, content=""), services.context())
        return [], Usage()
    request = EmbeddingRequest(model=model, inputs=tuple(inputs))
    try:
        chunks, usage = await calls.only(services.dispatcher, request, services.context())
    except ContextOverflow:
        card = services.card(model)
        if not truncate or card is None or not card.context_tokens:
            raise
        cut = [await _cut(services, model, text, card.context_tokens - SPARE_TOKENS) for text in inputs]
        request = EmbeddingRequest(model=model, inputs=tuple(cut))
        chunks, usage = await calls.only(services.dispatcher, request, services.context())
    found = {chunk.index: chunk.vector for chunk in chunks if isinstance(chunk, Embedding)}
    if sorted(found) != list(range(len(inputs))):
        raise EngineFault("The engine ended the call before its answer was complete.")
    return [floats(shortened(found[index], dimensions)) for index in range(len(inputs))], usage


async def _cut(services: Services, model: str, text: str, limit: int) -> str | tuple[int, ...]:
    """`text` if it has at most `limit` tokens, else its first ones."""
    request = TokenizeRequest(model=model, content=text, add_special=True, parse_special=False)
    chunks: Sequence[Chunk]
    chunks, _ = await calls.only(services.dispatcher, request, services.context())
    tokens = next((chunk.tokens for chunk in chunks if isinstance(chunk, TokenIds)), ())
    return text if len(tokens) <= limit else tokens[:limit]
