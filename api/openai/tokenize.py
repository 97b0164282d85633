"""POST /v1/tokenize and /v1/detokenize: LocalAI's endpoints, in the errors of OpenAI's dialect."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from quart import Blueprint, Response

from api import calls
from api.openai.generation import TokenId
from api.parse import Body, parse
from api.services import Services, json_response
from backends.types import Capability, DetokenizedText, DetokenizeRequest, EngineFault, TokenIds, TokenizeRequest


class TokenizeBody(Body):
    """`content` is the text; the two switches are llama.cpp's, with its defaults."""

    model: Annotated[str, Field(max_length=512)] | None = None
    content: str
    add_special: bool | None = None  # begin-of-text and the like
    parse_special: bool | None = None  # read "<|im_end|>" as the token it names


class DetokenizeBody(Body):
    """`tokens` are token ids."""

    model: Annotated[str, Field(max_length=512)] | None = None
    tokens: list[TokenId]


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_tokenize", __name__)

    async def tokenize() -> Response:
        """The token ids of a text."""
        body = await parse(TokenizeBody)
        request = TokenizeRequest(
            model=services.model(body.model, Capability.TOKENIZE),
            content=body.content,
            add_special=bool(body.add_special),
            parse_special=body.parse_special is not False,
        )
        chunks, _ = await calls.only(services.dispatcher, request, services.context())
        for chunk in chunks:
            if isinstance(chunk, TokenIds):
                return json_response({"tokens": chunk.tokens})
        raise EngineFault("The engine ended the call without an answer.")

    async def detokenize() -> Response:
        """The text of token ids."""
        body = await parse(DetokenizeBody)
        request = DetokenizeRequest(
            model=services.model(body.model, Capability.TOKENIZE),
            tokens=tuple(body.tokens),
        )
        chunks, _ = await calls.only(services.dispatcher, request, services.context())
        for chunk in chunks:
            if isinstance(chunk, DetokenizedText):
                return json_response({"content": chunk.text})
        raise EngineFault("The engine ended the call without an answer.")

    for prefix in ("/v1", ""):
        routes.add_url_rule(f"{prefix}/tokenize", view_func=tokenize, methods=["POST"])
        routes.add_url_rule(f"{prefix}/detokenize", view_func=detokenize, methods=["POST"])
    return routes
