"""POST /v1/chat/completions. OpenAI API reference, "Create chat completion"."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from quart import Blueprint, Response

from api import calls, sse
from api.openai.generation import MAX_INT, GenerationFields
from api.openai.render import CHAT, Answer, StreamRenderer, wants_timings
from api.parse import Body, check_depth, parse, wrong
from api.services import Services, json_response
from backends.types import Capability, ChatRequest, Message

PATHS = ("/v1/chat/completions", "/chat/completions")


class ChatMessage(Body):
    """One of `messages`. Its content becomes one string: text parts are joined by line breaks."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Any = None
    name: str | None = None
    tool_calls: Any = None
    function_call: Any = None

    @field_validator("content")
    @classmethod
    def _text(cls, value: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise wrong("expected a string or a list of content parts", kind="invalid_type")
        return "\n".join(_part_text(part, number) for number, part in enumerate(value))

    @model_validator(mode="after")
    def _complete(self) -> ChatMessage:
        for field in ("tool_calls", "function_call"):
            if getattr(self, field):
                raise wrong("tool calls are not supported yet", field, kind="unsupported_parameter")
        if self.content is None and self.role != "assistant":
            raise wrong(f"required for a message of role '{self.role}'", "content")
        return self

    def message(self) -> Message:
        """The message as a chat template sees it."""
        # "developer" is OpenAI's newer word for "system"; the templates of open models know only the older one.
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content=self.content or "", name=self.name)


class ChatBody(GenerationFields):
    """The body of the request."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    functions: Any = None

    @field_validator("tools", "functions")
    @classmethod
    def _not_yet(cls, value: Any) -> None:
        if value:
            raise wrong("tools are not supported yet", kind="unsupported_parameter")

    @field_validator("chat_template_kwargs")
    @classmethod
    def _shallow(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        check_depth(value)
        return value

    @model_validator(mode="after")
    def _logprobs_first(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("only allowed when 'logprobs' is true", "top_logprobs")
        return self

    def request(self, model: str) -> ChatRequest:
        """What an engine is asked."""
        return ChatRequest(
            model=model,
            messages=tuple(message.message() for message in self.messages),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            template_kwargs=self.chat_template_kwargs or {},
            **self.shared(),
        )


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_chat", __name__)

    async def create_chat_completion() -> Response:
        """Answer a conversation, whole or as a stream of events."""
        body = await parse(ChatBody)
        request = body.request(services.model(body.model, Capability.CHAT))
        answer = Answer(
            shape=CHAT,
            model=request.model,
            version=services.options.version,
            choices=request.n,
            logprobs=request.logprobs,
            timings=wants_timings(),
        )
        if body.stream:
            renderer = StreamRenderer(answer, include_usage=body.include_usage)
            return await sse.stream(services.dispatcher, [request], services.context(), renderer)
        async with calls.running(services.dispatcher, [request], services.context()) as call:
            choices = await calls.collect(call, answer.choices)
        return json_response(answer.whole(choices, call.usage))

    for path in PATHS:
        routes.add_url_rule(path, view_func=create_chat_completion, methods=["POST"])
    return routes


def _part_text(part: Any, number: int) -> str:
    """The text of one content part. Only text is understood so far."""
    if not isinstance(part, dict):
        raise wrong("expected a content part (an object)", number, kind="invalid_type")
    kind = part.get("type")
    if kind not in ("text", "refusal"):  # an assistant's earlier refusal is text of the conversation, too
        if not isinstance(kind, str):
            raise wrong("expected the name of a content part", number, "type", kind="invalid_type")
        raise wrong(
            f"content of type '{kind[:40]}' is not supported by this model", number, "type", kind="unsupported_value"
        )
    text = part.get(kind)
    if not isinstance(text, str):
        raise wrong("expected a string", number, kind, kind="invalid_type")
    return text
