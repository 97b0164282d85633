"""What every blueprint is handed, and what every handler needs before it can dispatch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from quart import Response, g, request

from api.ports import ApiOptions, CallContext, Dispatcher, Mesh, ModelCard, Node, ResponseStore
from api.responses.memory import MemoryResponses
from backends.types import Capability, ModelMissing


@dataclass(frozen=True, slots=True)
class Services:
    """The node, as the API sees it."""

    dispatcher: Dispatcher
    node: Node
    options: ApiOptions
    mesh: Mesh | None = None
    responses: ResponseStore = field(default_factory=MemoryResponses)

    def model(self, named: str | None, capability: Capability) -> str:
        """The model that the current request means: body, path, `?model=`, then the node's default (LocalAI's order).

        Raises ModelMissing when the request names none and no model has the capability. Whether a named one exists
        is for the dispatcher to say.
        """
        name = named or (request.view_args or {}).get("model") or request.args.get("model")
        name = name or self.node.default_model(capability)
        if not name:
            raise ModelMissing(f"no model can answer this: none has the capability {capability.value!r}")
        return name

    def card(self, model: str) -> ModelCard | None:
        """What is known of the model of that name or alias; None when there is none."""
        cards = self.node.models()
        named = (card for card in cards if card.name == model)
        return next(named, None) or next((card for card in cards if model in card.aliases), None)

    def context(self) -> CallContext:
        """Who sends the current request."""
        return CallContext(
            request_id=g.request_id,
            client=g.client,
            node=request.headers.get("X-Mesh-Node") or None,
            keep_s=g.get("keep_s"),
        )


def json_response(value: Mapping[str, Any], status: int = 200) -> Response:
    """`value` as JSON. What is no JSON type of its own is written as its `str`."""
    return Response(msgspec.json.encode(value, enc_hook=str), status=status, content_type="application/json")
