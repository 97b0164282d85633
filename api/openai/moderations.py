"""POST /v1/moderations. OpenAI API reference, "Create moderation".

No backend classifies yet, so this can only refuse.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator
from quart import Blueprint, Response

from api.parse import Body, parse, wrong
from api.services import Services
from backends.types import ModelMissing, Unsupported

PATHS = ("/v1/moderations", "/moderations")


class ModerationBody(Body):
    """The body of the request."""

    model: Annotated[str, Field(max_length=512)] | None = None
    input: Any

    @field_validator("input")
    @classmethod
    def _inputs(cls, value: Any) -> Any:
        if not isinstance(value, (str, list)) or not value:
            raise wrong("expected a string or a list of inputs", kind="invalid_type")
        return value


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_moderations", __name__)

    async def create_moderation() -> Response:
        """Classify texts; 404 as long as no model is configured for it."""
        body = await parse(ModerationBody)
        if body.model is None:
            raise ModelMissing("no model is configured for moderation")
        if body.model not in (card.name for card in services.node.models()):
            raise ModelMissing(f'model "{body.model}" not found. To see available models, call GET /v1/models')
        raise Unsupported(f"Model {body.model} does not classify texts.", param="model")

    for path in PATHS:
        routes.add_url_rule(path, view_func=create_moderation, methods=["POST"])
    return routes
