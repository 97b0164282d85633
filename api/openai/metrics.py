"""GET /v1/tokenMetrics: LocalAI's endpoint, which its own server describes and does not route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quart import Blueprint, Response, request

from api.services import Services, json_response
from backends.types import ModelMissing

PATHS = ("/v1/tokenMetrics", "/tokenMetrics")
_FIGURES = ("slots", "slots_leased", "queue", "prefill_tokens_per_s", "decode_tokens_per_s")


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_metrics", __name__)

    async def token_metrics() -> Response:
        """How fast this node's models answer now; `?model=` for one of them."""
        models: list[Mapping[str, Any]] = list(services.node.system().get("models", ()))
        wanted = request.args.get("model")
        if wanted is not None:
            models = [model for model in models if model["name"] == wanted]
            if not models:
                raise ModelMissing(f'model "{wanted}" not found. To see available models, call GET /v1/models')
        data = [{"model": model["name"], **{name: model.get(name, 0) for name in _FIGURES}} for model in models]
        return json_response({"object": "list", "data": data})

    for path in PATHS:
        routes.add_url_rule(path, view_func=token_metrics, methods=["GET"])
    return routes
