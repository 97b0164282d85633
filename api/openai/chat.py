"""POST /v1/chat/completions. OpenAI API reference, "Create chat completion"."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from quart import Blueprint, Response

from api import calls, sse
from api.answer import Readers
from api.openai.generation import MAX_INT, GenerationFields, check_schema
from api.openai.messages import ChatMessage, read_messages
from api.openai.render import CHAT, Answer, StreamRenderer, wants_timings
from api.openai.tools import MAX_TOOLS, FunctionBody, ToolBody, read_choice, read_function_call, read_tools
from api.parse import check_depth, parse, wrong
from api.services import Services, json_response
from backends.types import Capability, ChatRequest, Tool, ToolChoice

PATHS = ("/v1/chat/completions", "/chat/completions", "/v1/engines/<path:model>/chat/completions")


class ChatBody(GenerationFields):
    """The body of the request."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionBody], Field(max_length=MAX_TOOLS)] | None = None
    function_call: Any = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    grammar_json_functions: dict[str, Any] | None = None
    modalities: list[str] | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _shallow(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        check_depth(value)
        return value

    @field_validator("grammar_json_functions")
    @classmethod
    def _sane(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_schema(value)

    @field_validator("modalities")
    @classmethod
    def _text_alone(cls, value: list[str] | None) -> list[str] | None:
        for number, item in enumerate(value or ()):
            if item != "text":
                raise wrong("only 'text' is supported", number, kind="unsupported_value")
        return value

    @model_validator(mode="after")
    def _fits(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("only allowed when 'logprobs' is true", "top_logprobs")
        if self.grammar_json_functions is not None and (self.grammar or self.json_schema() is not None):
            raise wrong("cannot be combined with 'grammar' or 'response_format'", "grammar_json_functions")
        _ = self.offered
        field = "function_call" if self.functions else "tool_choice"
        try:
            _ = self.choice
        except PydanticCustomError as error:  # raised as if the field were all there is
            inner = error.context or {}
            raise wrong(inner["reason"], field, *inner["path"], kind=error.type) from None
        if self.grammar and self.choice.mode == "required":
            raise wrong("cannot be combined with a call that is required", "grammar")
        return self

    @cached_property
    def offered(self) -> tuple[Tool, ...]:
        """What the model may call."""
        return read_tools(self.tools, self.functions)

    @cached_property
    def choice(self) -> ToolChoice:
        """Whether and what it is to call."""
        names = {tool.name for tool in self.offered}
        if self.functions:
            return read_function_call(self.function_call, names)
        return read_choice(self.tool_choice, names, parallel=self.parallel_tool_calls is not False)

    @property
    def legacy(self) -> bool:
        """Whether calls are told as `function_call`."""
        return bool(self.functions)

    def template_kwargs(self) -> dict[str, Any]:
        """Arguments of the chat template. LocalAI takes `enable_thinking` from `metadata`, where all is text."""
        kwargs: dict[str, Any] = {}
        thinking = (self.metadata or {}).get("enable_thinking")
        if isinstance(thinking, str):
            thinking = {"true": True, "false": False}.get(thinking.lower())
        if self.reasoning_effort is not None:
            kwargs["reasoning_effort"] = self.reasoning_effort
            thinking = self.reasoning_effort != "none" if thinking is None else thinking
        if isinstance(thinking, bool):
            kwargs |= {"enable_thinking": thinking, "thinking": thinking}
        return kwargs | (self.chat_template_kwargs or {})

    def request(self, model: str) -> ChatRequest:
        """What an engine is asked."""
        shared = self.shared()
        if self.grammar_json_functions is not None:
            shared["json_schema"] = self.grammar_json_functions
        return ChatRequest(
            model=model,
            messages=read_messages(self.messages),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            template_kwargs=self.template_kwargs(),
            tools=self.offered,
            tool_choice=self.choice,
            **shared,
        )


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_chat", __name__)

    async def create_chat_completion(model: str | None = None) -> Response:
        """Answer a conversation, whole or as a stream of events."""
        body = await parse(ChatBody)
        request = body.request(services.model(body.model, Capability.CHAT))
        readers = Readers(request)
        answer = Answer(
            shape=CHAT,
            model=request.model,
            version=services.options.version,
            choices=request.n,
            logprobs=request.logprobs,
            timings=wants_timings(),
            legacy_calls=body.legacy,
        )
        if body.stream:
            renderer = StreamRenderer(answer, include_usage=body.include_usage, readers=readers)
            return await sse.stream(services.dispatcher, [request], services.context(), renderer)
        async with calls.running(services.dispatcher, [request], services.context()) as call:
            choices = await calls.collect(call, answer.choices, readers)
        return json_response(answer.whole(choices, call.usage, readers.reasoning_tokens))

    for path in PATHS:
        routes.add_url_rule(path, view_func=create_chat_completion, methods=["POST"])
    return routes
