"""The body of POST /v1/responses and what it means to an engine. OpenAI API reference, "Create a model response"."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from api.openai.generation import MAX_INT, TOP_P_FLOOR, Penalty, Share, check_schema
from api.parse import Body, wrong
from api.responses import items
from backends.types import ChatRequest, Message, Sampling, Tool, ToolChoice

MAX_TOOLS = 512
MAX_METADATA = 16

_NOT_SUPPORTED = ("conversation", "prompt")
_LOGPROBS = "message.output_text.logprobs"


class FunctionTool(Body):
    """One of `tools`. Only functions: nobody here runs the tools that OpenAI hosts."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _sane(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_schema(value)

    @model_validator(mode="after")
    def _function(self) -> FunctionTool:
        if self.type != "function":
            message = f"tools of type '{self.type[:40]}' are not supported, only functions"
            raise wrong(message, "type", kind="unsupported_value")
        if not self.name:
            raise wrong("required", "name", kind="missing")
        if len(self.name) > 256:
            raise wrong("a name has at most 256 characters", "name")
        return self

    def tool(self) -> Tool:
        """The tool as an engine sees it."""
        return Tool(
            name=self.name or "",
            description=self.description or "",
            parameters=self.parameters,
            strict=bool(self.strict),
        )

    def shown(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict is not False,
        }


class TextFormat(Body):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _sane(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_schema(value)

    @model_validator(mode="after")
    def _complete(self) -> TextFormat:
        if self.type == "json_schema":
            for key, value in (("name", self.name), ("schema", self.schema_)):
                if value is None:
                    raise wrong("required when 'type' is 'json_schema'", key, kind="missing")
        return self

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The schema that the answer must satisfy; {} for any JSON object, None for any text."""
        return None if self.type == "text" else self.schema_ or {}


class TextOptions(Body):
    """`text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(Body):
    """`reasoning`."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class CreateBody(Body):
    """The body of the request. What only a response repeats is checked as far as it is repeated."""

    model: Annotated[str, Field(max_length=512)] | None = None
    input: Any = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=256)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    text_format: TextFormat | None = None  # LocalAI's name for text.format
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    conversation: Any = None
    prompt: Any = None

    @field_validator("input")
    @classmethod
    def _items(cls, value: Any) -> list[items.Item]:
        return [] if value is None else items.checked(value)

    @field_validator("metadata")
    @classmethod
    def _few(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and (len(value) > MAX_METADATA or any(len(key) > 64 for key in value)):
            raise wrong(f"at most {MAX_METADATA} pairs with keys of at most 64 characters are allowed")
        return value

    @model_validator(mode="after")
    def _possible(self) -> CreateBody:
        for name in _NOT_SUPPORTED:
            if getattr(self, name) is not None:
                raise wrong("not supported", name, kind="unsupported_parameter")
        if not self.input and self.previous_response_id is None:
            raise wrong("required", "input", kind="missing")
        if self.background and self.store is False:
            raise wrong("only possible when 'store' is true", "background")
        self.choice()
        return self

    @property
    def keeps(self) -> bool:
        """Whether the response is stored."""
        return self.store is not False

    @property
    def format(self) -> TextFormat:
        """How the answer is to be written."""
        return (self.text and self.text.format) or self.text_format or TextFormat(type="text")

    def choice(self) -> ToolChoice:
        """`tool_choice` as an engine sees it. Raises (as a validator does)."""
        names = [tool.name for tool in self.tools or ()]
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case None | "auto":
                return ToolChoice(parallel=parallel)
            case "none":
                return ToolChoice(mode="none")
            case "required":
                if not names:
                    raise wrong("there are no tools to choose from", "tool_choice")
                return ToolChoice(mode="required", parallel=parallel)
            case {"type": "function", "name": str(name)}:
                if name not in names:
                    raise wrong("no tool has this name", "tool_choice", "name")
                return ToolChoice(mode="required", allowed=(name,), parallel=parallel)
            case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(tools)} if tools:
                allowed = []
                for number, tool in enumerate(tools):
                    if not isinstance(tool, dict) or tool.get("name") not in names:
                        raise wrong("no tool has this name", "tool_choice", "tools", number)
                    allowed.append(tool["name"])
                return ToolChoice(mode=mode, allowed=tuple(allowed), parallel=parallel)
            case _:
                raise wrong("expected 'none', 'auto', 'required', a function or allowed tools", "tool_choice")

    def request(self, model: str, conversation: list[Message]) -> ChatRequest:
        """What an engine is asked, `conversation` being all messages but the instructions."""
        wanted = self.top_logprobs or (0 if _LOGPROBS in (self.include or ()) else None)
        system = [Message(role="system", content=self.instructions)] if self.instructions else []
        effort = self.reasoning.effort if self.reasoning else None
        thinking = {"enable_thinking": effort != "none", "reasoning_effort": effort} if effort else {}
        return ChatRequest(
            model=model,
            messages=(*system, *conversation),
            max_tokens=self.max_output_tokens,
            sampling=Sampling(
                temperature=self.temperature,
                top_p=None if self.top_p is None else max(self.top_p, TOP_P_FLOOR),
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
            ),
            logprobs=wanted,
            json_schema=self.format.json_schema,
            tools=tuple(tool.tool() for tool in self.tools or ()),
            tool_choice=self.choice(),
            template_kwargs=thinking,
        )

    def echo(self, model: str) -> dict[str, Any]:
        """The fields of a response that repeat the request, with OpenAI's defaults for what it left out."""
        wanted = self.format
        shown: dict[str, Any] = {"type": wanted.type}
        if wanted.type == "json_schema":
            shown |= {
                "name": wanted.name,
                "description": wanted.description,
                "schema": wanted.schema_,
                "strict": wanted.strict is not False,
            }
        return {
            "model": model,
            "previous_response_id": self.previous_response_id,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "top_logprobs": self.top_logprobs or 0,
            "tools": [tool.shown() for tool in self.tools or ()],
            "tool_choice": self.tool_choice if self.tool_choice is not None else "auto",
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "text": {"format": shown, "verbosity": (self.text and self.text.verbosity) or "medium"},
            "reasoning": {
                "effort": self.reasoning.effort if self.reasoning else None,
                "summary": self.reasoning.summary if self.reasoning else None,
            },
            "metadata": self.metadata or {},
            "store": self.keeps,
            "background": bool(self.background),
            "truncation": self.truncation or "disabled",
            "service_tier": "default",
            "user": self.user,
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
        }
