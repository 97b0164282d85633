"""POST /api/chat. Ollama's API documentation, "Generate a chat message"."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from quart import Blueprint, Response

from api.ollama.answering import answer, keep, load
from api.ollama.body import GenerationBody, content, pictures
from api.openai.generation import check_schema
from api.parse import Body, check_depth, parse, wrong
from api.services import Services
from backends.types import Capability, ChatRequest, ImagePart, Message, Tool, ToolCall

MAX_TOOLS = 512


class CalledFunction(Body):
    """`tool_calls[].function`."""

    name: str
    arguments: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it

    @field_validator("arguments")
    @classmethod
    def _shallow(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_depth(value)
        return value


class CallBody(Body):
    """One of a message's `tool_calls`."""

    id: str | None = None
    function: CalledFunction


class ChatMessage(Body):
    """One of `messages`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Any = None
    tool_calls: list[CallBody] | None = None
    tool_name: str | None = None
    name: str | None = None  # of a tool, as older clients call it
    tool_call_id: str | None = None

    @field_validator("images")
    @classmethod
    def _pictures(cls, value: Any) -> tuple[ImagePart, ...]:
        return pictures(value)

    def message(self) -> Message:
        """The message as a chat template sees it."""
        return Message(
            role=self.role,
            content=content(self.content or "", self.images or ()),
            name=self.tool_name or self.name,
            reasoning=self.thinking or "",
            tool_calls=tuple(
                ToolCall(
                    id=call.id or f"call_{number}",
                    name=call.function.name,
                    arguments=json.dumps(call.function.arguments, ensure_ascii=False),
                )
                for number, call in enumerate(self.tool_calls or ())
            ),
            tool_call_id=self.tool_call_id,
        )


class FunctionBody(Body):
    """`tools[].function`."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None

    @field_validator("parameters")
    @classmethod
    def _sane(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_schema(value)


class ToolBody(Body):
    """One of `tools`."""

    type: str | None = None
    function: FunctionBody

    @model_validator(mode="after")
    def _function(self) -> ToolBody:
        if self.type not in (None, "function"):
            raise wrong("only functions are supported", "type", kind="unsupported_value")
        return self


class ChatBody(GenerationBody):
    """The body of the request. Without messages it loads the model, or unloads it."""

    messages: list[ChatMessage] | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None

    def request(self, model: str) -> ChatRequest:
        """What an engine is asked."""
        return ChatRequest(
            model=model,
            messages=tuple(message.message() for message in self.messages or ()),
            tools=tuple(
                Tool(
                    name=tool.function.name,
                    description=tool.function.description or "",
                    parameters=tool.function.parameters,
                )
                for tool in self.tools or ()
            ),
            template_kwargs=self.template_kwargs(),
            **self.shared(),
        )


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("ollama_chat", __name__)

    @routes.post("/api/chat")
    async def chat() -> Response:
        """Ollama's dialect: answer a conversation, as lines of JSON or whole."""
        body = await parse(ChatBody)
        model = keep(services, body, Capability.CHAT)
        if not body.messages:
            return await load(services, body, model, "chat")
        return await answer(services, body, body.request(model), "chat")

    return routes
