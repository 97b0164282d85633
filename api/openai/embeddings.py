"""POST /v1/embeddings. OpenAI API reference, "Create embeddings"."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from quart import Blueprint, Response

from api import calls
from api.openai.completions import texts_or_tokens
from api.openai.generation import MAX_INT
from api.openai.messages import ChatMessage, read_messages
from api.parse import Body, parse, wrong
from api.services import Services, json_response
from backends.types import CallerError, Capability, Embedding, EmbeddingRequest, EngineFault

PATHS = ("/v1/embeddings", "/embeddings", "/v1/engines/<path:model>/embeddings")
MAX_INPUTS = 2048
FLOAT_BYTES = 4


class EmbeddingBody(Body):
    """The body of the request."""

    model: Annotated[str, Field(max_length=512)] | None = None
    input: Any = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None  # LocalAI's: a conversation is one input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    user: str | None = None

    @field_validator("input")
    @classmethod
    def _inputs(cls, value: Any) -> tuple[str | tuple[int, ...], ...] | None:
        if value is None:
            return None
        inputs = texts_or_tokens(value, MAX_INPUTS)
        for number, item in enumerate(inputs):
            if not item:
                raise wrong("must not be an empty string", *([number] if isinstance(value, list) else []))
        return inputs

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("input") is None and value.get("messages") is None:
                raise PydanticCustomError("missing", "missing", {"path": ("input",)})
            if value.get("input") is not None and value.get("messages") is not None:
                raise wrong("cannot be combined with 'input'", "messages")
        return value

    @property
    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """What is to be embedded."""
        if self.messages is None:
            return tuple(self.input)
        messages = read_messages(self.messages)
        for number, message in enumerate(messages):
            if not message.is_text:
                raise CallerError(
                    "Only text can be embedded.", param=f"messages[{number}].content", code="unsupported_value"
                )
        return ("\n".join(message.text for message in messages),)


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_embeddings", __name__)

    async def create_embeddings(model: str | None = None) -> Response:
        """One vector for each input (text or token ids), as numbers or in base64."""
        body = await parse(EmbeddingBody)
        name = services.model(body.model, Capability.EMBEDDING)
        request = EmbeddingRequest(model=name, inputs=body.inputs)
        chunks, usage = await calls.only(services.dispatcher, request, services.context())
        vectors = {chunk.index: chunk.vector for chunk in chunks if isinstance(chunk, Embedding)}
        if sorted(vectors) != list(range(len(request.inputs))):
            raise EngineFault("The engine ended the call before its answer was complete.")
        cut = [shortened(vectors[index], body.dimensions) for index in range(len(vectors))]
        return json_response(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
                    for index, vector in enumerate(cut)
                ],
                "model": name,
                "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
            }
        )

    for path in PATHS:
        routes.add_url_rule(path, view_func=create_embeddings, methods=["POST"])
    return routes


def _encoded(vector: bytes, encoding: str | None) -> str | list[float]:
    """`vector` (little-endian float32) as numbers, or as it is in base64."""
    if encoding == "base64":
        return base64.b64encode(vector).decode()
    return floats(vector)


def shortened(vector: bytes, dimensions: int | None) -> bytes:
    """The first `dimensions` of a vector, of unit length again. Only models that were trained for it (Matryoshka) lose
    little by that; that this is one, whoever asks for it knows. Raises CallerError for more than there are."""
    size = len(vector) // FLOAT_BYTES
    if dimensions is None or dimensions == size:
        return vector
    if dimensions > size:
        message = f"Invalid 'dimensions': this model's vectors have {size} dimensions."
        raise CallerError(message, param="dimensions", code="invalid_value")
    head = floats(vector)[:dimensions]
    length = math.sqrt(sum(number * number for number in head)) or 1.0
    numbers = array("f", (number / length for number in head))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def floats(vector: bytes) -> list[float]:
    """The numbers of a vector (little-endian float32)."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
