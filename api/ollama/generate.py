"""POST /api/generate. Ollama's API documentation, "Generate a completion"."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator, model_validator
from quart import Blueprint, Response

from api.ollama.answering import answer, keep, load
from api.ollama.body import GenerationBody, content, pictures
from api.parse import parse, wrong
from api.services import Services
from backends.types import Capability, ChatRequest, CompletionRequest, ImagePart, Message


class GenerateBody(GenerationBody):
    """The body of the request. Without a prompt it loads the model, or unloads it."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: Any = None
    raw: bool | None = None
    images: Any = None

    @field_validator("images")
    @classmethod
    def _pictures(cls, value: Any) -> tuple[ImagePart, ...]:
        return pictures(value)

    @model_validator(mode="after")
    def _possible(self) -> GenerateBody:
        if self.template:
            raise wrong("templates in Go's language are not supported", "template", kind="unsupported_parameter")
        if self.context:
            raise wrong("not supported, since no answer here has one; use /api/chat", "context")
        if self.images and (self.raw or self.suffix):
            raise wrong("not possible together with 'raw' or 'suffix'", "images")
        return self

    def request(self, model: str, *, templated: bool) -> ChatRequest | CompletionRequest:
        """What an engine is asked: a message of a conversation, or a text to continue."""
        prompt = self.prompt or ""
        if self.raw or self.suffix or not (templated or self.images):
            prompt = prompt if self.raw or not self.system else f"{self.system}\n\n{prompt}"
            return CompletionRequest(model=model, prompt=prompt, suffix=self.suffix or None, **self.shared())
        system = [Message(role="system", content=self.system)] if self.system else []
        user = Message(role="user", content=content(prompt, self.images or ()))
        return ChatRequest(
            model=model, messages=(*system, user), template_kwargs=self.template_kwargs(), **self.shared()
        )


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("ollama_generate", __name__)

    @routes.post("/api/generate")
    async def generate() -> Response:
        """Ollama's dialect: answer a prompt or continue a text, as lines of JSON or whole."""
        body = await parse(GenerateBody)
        model = keep(services, body, Capability.COMPLETION)
        if not body.prompt and not body.suffix and not body.images:
            return await load(services, body, model, "generate")
        card = services.card(model)
        request = body.request(model, templated=card is None or Capability.CHAT in card.capabilities)
        return await answer(services, body, request, "generate")

    return routes
