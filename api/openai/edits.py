"""POST /v1/edits: OpenAI's former endpoint, which LocalAI still serves. The edit is a chat with an instruction."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from quart import Blueprint, Response

from api import calls
from api.answer import Readers
from api.openai.generation import MAX_INT, Share, usage_object
from api.openai.render import wants_timings
from api.parse import Body, parse
from api.services import Services, json_response
from backends.types import Capability, ChatRequest, Message, Sampling

PATHS = ("/v1/edits", "/edits", "/v1/engines/<path:model>/edits")

_SYSTEM = "Apply the user's instruction to the text. Answer with the edited text and nothing else."


class EditBody(Body):
    """The body of the request."""

    model: Annotated[str, Field(max_length=512)] | None = None
    instruction: str
    input: str | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None

    def request(self, model: str) -> ChatRequest:
        """What an engine is asked."""
        text = f"{self.instruction}\n\n{self.input}" if self.input else self.instruction
        return ChatRequest(
            model=model,
            messages=(Message(role="system", content=_SYSTEM), Message(role="user", content=text)),
            n=self.n or 1,
            sampling=Sampling(temperature=self.temperature, top_p=self.top_p or None, seed=self.seed),
            max_tokens=self.max_tokens,
        )


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_edits", __name__)

    async def create_edit(model: str | None = None) -> Response:
        """Change a text as an instruction says."""
        body = await parse(EditBody)
        request = body.request(services.model(body.model, Capability.CHAT))
        async with calls.running(services.dispatcher, [request], services.context()) as call:
            choices = await calls.collect(call, request.n, Readers(request))
        return json_response(
            {
                "object": "edit",
                "created": calls.now(),
                "model": request.model,
                "choices": [
                    {
                        "index": index,
                        "text": choice.reply.content if choice.reply else "",
                        "finish_reason": choice.reason,
                    }
                    for index, choice in enumerate(choices)
                ],
                "usage": usage_object(call.usage, timings=wants_timings()),
            }
        )

    for path in PATHS:
        routes.add_url_rule(path, view_func=create_edit, methods=["POST"])
    return routes


def _choice(index: int, choice: calls.Choice) -> dict[str, Any]:
    text = choice.reply.content if choice.reply is not None else choice.text
    return {"index": index, "text": text, "finish_reason": choice.reason}
