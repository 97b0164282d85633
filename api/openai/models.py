"""GET /v1/models. OpenAI API reference, "List models" and "Retrieve model"; `filter` is LocalAI's."""

from __future__ import annotations

import re
from typing import Any

from quart import Blueprint, Response, request

from api.ports import ModelCard
from api.services import Services, json_response
from backends.types import CallerError, ModelMissing

MAX_FILTER_CHARS = 128
MAX_QUANTIFIERS = 4


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_models", __name__)

    async def list_models() -> Response:
        """The models that can be asked for; `?filter=` keeps the names in which the expression is found."""
        found = services.node.models()
        if wanted := request.args.get("filter", ""):
            pattern = compile_filter(wanted)
            found = [card for card in found if pattern.search(card.name)]
        return json_response({"object": "list", "data": [_object(card) for card in found]})

    async def retrieve_model(model: str) -> Response:
        """One model, by its name or an alias; 404 when there is none."""
        if card := services.card(model):
            return json_response(_object(card))
        raise ModelMissing(f'model "{model}" not found. To see available models, call GET /v1/models')

    async def reload_models() -> Response:
        """Read the model files again, after one was added, changed or removed."""
        services.node.reload()
        return json_response({"message": "The model files were read again."})

    for prefix in ("/v1", ""):
        routes.add_url_rule(f"{prefix}/models", view_func=list_models, methods=["GET"])
        routes.add_url_rule(f"{prefix}/models/<path:model>", view_func=retrieve_model, methods=["GET"])
    routes.add_url_rule("/models/reload", view_func=reload_models, methods=["POST"])
    return routes


def compile_filter(text: str) -> re.Pattern[str]:
    """`text` as an expression that cannot hang the node. Raises CallerError.

    Python's matcher backtracks: `(a+)+$` can run for hours on a short name, and nothing can interrupt it. Without a
    quantified group, without back references, and with few quantifiers, the work is a small power of the length.
    """
    if len(text) > MAX_FILTER_CHARS:
        raise _bad_filter(f"it is longer than {MAX_FILTER_CHARS} characters")
    plain = re.sub(r"\\.", "x", text)  # escaped characters mean themselves, or a class of one character
    if re.search(r"\\[1-9]|\(\?P=", text):
        raise _bad_filter("back references are not supported")
    if re.search(r"\)[*+?{]", plain):
        raise _bad_filter("a repeated group is not supported")
    if len(re.findall(r"[*+?{]", plain)) > MAX_QUANTIFIERS:
        raise _bad_filter(f"it has more than {MAX_QUANTIFIERS} quantifiers")
    try:
        return re.compile(text)
    except (re.error, OverflowError) as error:
        raise _bad_filter(str(error)) from None


def _bad_filter(reason: str) -> CallerError:
    return CallerError(f"Invalid 'filter': {reason}.", param="filter", code="invalid_value")


def _object(card: ModelCard) -> dict[str, Any]:
    return {"id": card.name, "object": "model", "created": card.created, "owned_by": "mesh"}
