"""What Ollama's clients ask about models and about the server. Ollama's API documentation, "List models" and others."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from pydantic import Field, model_validator
from quart import Blueprint, Response

from api.ollama.answering import resolve
from api.ollama.body import Model
from api.ollama.render import timestamp
from api.parse import Body, parse, wrong
from api.ports import ModelCard
from api.services import Services, json_response
from backends.types import Capability, ModelMissing

VERSION = "0.13.5"  # of Ollama, whose API this is; clients refuse to work with too old a one
LATEST = 4_000_000_000.0  # for what never expires: clients want a time

_CAPABILITIES = {
    Capability.CHAT: "completion",
    Capability.COMPLETION: "completion",
    Capability.EMBEDDING: "embedding",
    Capability.VISION: "vision",
}


class ShowBody(Body):
    """The body of /api/show. Older clients say `name`."""

    model: Model | None = None
    name: Annotated[str, Field(max_length=512)] | None = None

    @model_validator(mode="after")
    def _some(self) -> ShowBody:
        if not self.model and not self.name:
            raise wrong("required", "model", kind="missing")
        return self


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("ollama_models", __name__)

    @routes.get("/api/tags")
    async def tags() -> Response:
        """Ollama's dialect: the models that can be asked for."""
        return json_response({"models": [_listed(card) for card in services.node.models()]})

    @routes.get("/api/ps")
    async def ps() -> Response:
        """Ollama's dialect: the models that are loaded."""
        return json_response({"models": [_running(card) for card in services.node.models() if card.loaded]})

    @routes.post("/api/show")
    async def show() -> Response:
        """Ollama's dialect: one model."""
        body = await parse(ShowBody)
        name = body.model or body.name or ""
        card = services.card(resolve(services, name))
        if card is None:
            raise ModelMissing(f"model '{name[:200]}' not found")
        return json_response(
            {
                "modelfile": f"FROM {card.name}\n",
                "parameters": "",
                "template": "",
                "details": _details(card),
                "model_info": _info(card),
                "capabilities": _capabilities(card),
                "modified_at": timestamp(card.created),
            }
        )

    @routes.get("/api/version")
    async def version() -> Response:
        """Ollama's dialect: the version of Ollama whose API this is."""
        return json_response({"version": VERSION})

    return routes


def _listed(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "model": card.name,
        "modified_at": timestamp(card.created),
        "size": card.size_bytes,
        "digest": card.digest or hashlib.sha256(card.name.encode()).hexdigest(),
        "details": _details(card),
    }


def _running(card: ModelCard) -> dict[str, Any]:
    listed = _listed(card)
    del listed["modified_at"]
    return {
        **listed,
        "size": card.memory_bytes,
        "expires_at": timestamp(min(card.expires_at, LATEST)),
        "size_vram": card.memory_bytes if card.details.get("gpu_layers") else 0,
        "context_length": card.context_tokens,
    }


def _details(card: ModelCard) -> dict[str, Any]:
    family = str(card.details.get("architecture", ""))
    return {
        "parent_model": "",
        "format": "gguf" if card.backend == "llama-cpp" else card.backend,
        "family": family,
        "families": [family] if family else [],
        "parameter_size": str(card.details.get("parameters", "")),
        "quantization_level": str(card.details.get("quantisation", "")),
    }


def _info(card: ModelCard) -> dict[str, Any]:
    family = str(card.details.get("architecture", "")) or "general"
    return {"general.architecture": family, f"{family}.context_length": card.context_tokens}


def _capabilities(card: ModelCard) -> list[str]:
    found = {name for capability, name in _CAPABILITIES.items() if capability in card.capabilities}
    if Capability.CHAT in card.capabilities:  # models whose template knows no tools are told of them in the prompt
        found.add("tools")
    return sorted(found)
