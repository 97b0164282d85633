"""The bodies of Anthropic's requests and what they mean to an engine. Anthropic API reference, "Messages"."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from api.images import inline, named
from api.openai.generation import MAX_INT, MAX_STOP_CHARS, MAX_STOPS, TOP_P_FLOOR, Share, check_schema
from api.parse import Body, wrong
from backends.types import ChatRequest, ImagePart, Message, Part, Sampling, TextPart, Tool, ToolCall, ToolChoice

MAX_TOOLS = 512
IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})

_IGNORED_BLOCKS = frozenset({"redacted_thinking"})  # encrypted by somebody else

StopText = Annotated[str, Field(max_length=MAX_STOP_CHARS)]


class ToolBody(Body):
    """One of `tools`. Anthropic's own server tools have a `type` of their own, and nobody here to run them."""

    type: str | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("input_schema")
    @classmethod
    def _sane(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_schema(value)

    @model_validator(mode="after")
    def _custom(self) -> ToolBody:
        if self.type not in (None, "custom"):
            raise wrong("only custom tools are supported", "type", kind="unsupported_value")
        if self.input_schema is None:
            raise wrong("required for a custom tool", "input_schema")
        return self

    def tool(self) -> Tool:
        """The tool as an engine sees it."""
        return Tool(
            name=self.name,
            description=self.description or "",
            parameters=self.input_schema,
            strict=bool(self.strict),
        )


class ToolChoiceBody(Body):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> ToolChoiceBody:
        if self.type == "tool" and not self.name:
            raise wrong("required when 'type' is 'tool'", "name")
        return self

    def choice(self) -> ToolChoice:
        """The choice as an engine sees it."""
        parallel = not self.disable_parallel_tool_use
        match self.type:
            case "tool":
                return ToolChoice(mode="required", allowed=(self.name or "",), parallel=parallel)
            case "any":
                return ToolChoice(mode="required", parallel=parallel)
            case mode:
                return ToolChoice(mode=mode, parallel=parallel)


class Thinking(Body):
    """`thinking`. How long a model thinks is its own affair: a budget is checked and not enforced."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=1024, le=MAX_INT)] | None = None
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def _budget(self) -> Thinking:
        if self.type == "enabled" and self.budget_tokens is None:
            raise wrong("required when 'type' is 'enabled'", "budget_tokens")
        return self


class OutputFormat(Body):
    """`output_config.format`: a schema that the answer must satisfy."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]

    @field_validator("schema_")
    @classmethod
    def _sane(cls, value: dict[str, Any]) -> dict[str, Any] | None:
        return check_schema(value)


class OutputConfig(Body):
    """`output_config`."""

    format: OutputFormat | None = None
    effort: str | None = None


class MessageBody(Body):
    """One of `messages`. Its content is checked here and becomes messages of a chat template further on."""

    role: Literal["user", "assistant", "system"]
    content: Any

    @field_validator("content")
    @classmethod
    def _blocks(cls, value: Any) -> list[dict[str, Any]]:
        return blocks(value)


class CountBody(Body):
    """The body of count_tokens: all that is input."""

    model: Annotated[str, Field(max_length=512)] | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=100_000)]
    system: Any = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: Thinking | None = None

    @field_validator("system")
    @classmethod
    def _text(cls, value: Any) -> str:
        parts = [] if value is None else blocks(value)
        for number, part in enumerate(parts):
            if part["type"] != "text":
                raise wrong("only text blocks are allowed here", number, "type")
        return "\n".join(part["text"] for part in parts)

    @model_validator(mode="after")
    def _known_tool(self) -> CountBody:
        names = [tool.name for tool in self.tools or ()]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise wrong("tool names must be unique", "tools", number, "name")
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool") and not names:
            raise wrong("there are no tools to choose from", "tool_choice")
        if choice is not None and choice.type == "tool" and choice.name not in names:
            raise wrong("no tool has this name", "tool_choice", "name")
        return self

    @model_validator(mode="after")
    def _possible_prefill(self) -> CountBody:
        """A last message of the assistant's is the beginning of the answer."""
        if not self.prefilled:
            return self
        last = len(self.messages) - 1
        content = self.messages[last].content
        if not content or content[-1]["type"] != "text":
            raise wrong("the beginning of an answer must end with text", "messages", last, "content")
        text = content[-1]["text"]
        if not text or text != text.rstrip():
            why = "the beginning of an answer must not be empty, nor end with white space"
            raise wrong(why, "messages", last, "content", len(content) - 1, "text")
        if self.thinks:
            raise wrong("an answer that has begun cannot be thought about first", "thinking")
        if self.tool_choice is not None and self.tool_choice.type in ("any", "tool"):
            raise wrong("an answer that has begun cannot be a tool's call", "tool_choice")
        return self

    @property
    def prefilled(self) -> bool:
        """Whether the answer has begun already, and is to be continued."""
        return self.messages[-1].role == "assistant"

    @property
    def thinks(self) -> bool:
        """Whether the model is to think first."""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def shows_thinking(self) -> bool:
        """Whether the caller wants to see the thoughts."""
        return self.thinking is not None and self.thinks and self.thinking.display != "omitted"

    def chat(self) -> dict[str, Any]:
        """Keyword arguments for `ChatRequest`: the conversation and its tools."""
        messages = [Message(role="system", content=self.system)] if self.system else []
        names: dict[str, str] = {}  # of the tools that were called, by the call's id
        for message in self.messages:
            messages += _messages(message, names)
        return {
            "messages": _merged(messages),
            "tools": tuple(tool.tool() for tool in self.tools or ()),
            "tool_choice": self.tool_choice.choice() if self.tool_choice else ToolChoice(),
            "template_kwargs": {"enable_thinking": self.thinks},
            "continues": self.prefilled,
        }


class MessagesBody(CountBody):
    """The body of a message."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)]
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    output_config: OutputConfig | None = None

    @model_validator(mode="after")
    def _free(self) -> MessagesBody:
        if self.prefilled and self.output_config and self.output_config.format:
            raise wrong("an answer that has begun has no schema", "output_config", "format")
        return self

    def request(self, model: str) -> ChatRequest:
        """What an engine is asked."""
        wanted = self.output_config.format if self.output_config else None
        return ChatRequest(
            model=model,
            max_tokens=self.max_tokens,
            stop=tuple(stop for stop in self.stop_sequences or () if stop),
            sampling=Sampling(
                temperature=self.temperature,
                top_p=None if self.top_p is None else max(self.top_p, TOP_P_FLOOR),
                top_k=self.top_k,
            ),
            json_schema=wanted.schema_ if wanted else None,
            **self.chat(),
        )


def blocks(value: Any, *path: int | str) -> list[dict[str, Any]]:
    """`string | [block]` as checked blocks. Raises (as a validator does) naming the first part that is wrong."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise wrong("expected a string or a list of content blocks", *path, kind="invalid_type")
    for number, block in enumerate(value):
        if not isinstance(block, dict):
            raise wrong("expected a content block (an object)", *path, number, kind="invalid_type")
        _check_block(block, *path, number)
    return value


def _check_block(block: dict[str, Any], *path: int | str) -> None:
    kind = block.get("type")
    match kind:
        case "text":
            _need(block, "text", str, *path)
        case "thinking":
            _need(block, "thinking", str, *path)
        case "tool_use":
            _need(block, "id", str, *path)
            _need(block, "name", str, *path)
            _need(block, "input", dict, *path)
        case "tool_result":
            _need(block, "tool_use_id", str, *path)
            if block.get("is_error") is not None:
                _need(block, "is_error", bool, *path)
            if block.get("content") is not None:
                inner = blocks(block["content"], *path, "content")
                for number, part in enumerate(inner):
                    if part["type"] not in ("text", "image"):
                        raise wrong("only text and images are allowed in a result", *path, "content", number, "type")
        case "image":
            _need(block, "source", dict, *path)
            _source(block["source"], *path, "source")
        case str() if kind in _IGNORED_BLOCKS:
            pass
        case str():
            raise wrong(f"content of type '{kind[:40]}' is not supported", *path, "type", kind="unsupported_value")
        case _:
            raise wrong("expected the name of a content block", *path, "type", kind="invalid_type")


def _source(source: dict[str, Any], *path: int | str) -> ImagePart:
    """The image of a source. Raises (as a validator does)."""
    match source.get("type"):
        case "url":
            _need(source, "url", str, *path)
            return named(source["url"], *path, "url")
        case "base64":
            _need(source, "media_type", str, *path)
            if source["media_type"] not in IMAGE_TYPES:
                raise wrong(f"expected one of {', '.join(sorted(IMAGE_TYPES))}", *path, "media_type")
            _need(source, "data", str, *path)
            image = inline(source["data"], *path, "data")
            if image.media_type != source["media_type"]:
                raise wrong(f"the image is of type {image.media_type}", *path, "media_type")
            return image
        case _:
            raise wrong("only base64 and url are supported", *path, "type", kind="unsupported_value")


def _need(block: dict[str, Any], key: str, kind: type, *path: int | str) -> None:
    if key not in block:
        raise wrong("required", *path, key, kind="missing")
    if not isinstance(block[key], kind):
        names = {str: "a string", dict: "an object", bool: "a boolean"}
        raise wrong(f"expected {names[kind]}", *path, key, kind="invalid_type")


def _messages(message: MessageBody, names: dict[str, str]) -> list[Message]:
    """The message as a chat template sees it: each tool result is a message of its own."""
    if message.role == "assistant":
        return [_assistant(message.content, names)]
    out: list[Message] = []
    parts: list[Part] = []
    for block in message.content:
        if block["type"] == "tool_result":
            _flush(message.role, parts, out)
            out.append(_result(block, names))
        elif part := _part(block):
            parts.append(part)
    _flush(message.role, parts, out)
    return out or [Message(role=message.role)]


def _merged(messages: list[Message]) -> tuple[Message, ...]:
    """Neighbours of one role as one message, as Anthropic promises; some templates insist on turns."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else None
        if last is None or last.role != message.role or message.role not in ("user", "assistant"):
            out.append(message)
            continue
        parts = [part for item in (last, message) for part in _parts(item)]
        out[-1] = Message(
            role=message.role,
            content=plain(parts),
            reasoning="\n".join(filter(None, (last.reasoning, message.reasoning))),
            tool_calls=last.tool_calls + message.tool_calls,
        )
    return tuple(out)


def _parts(message: Message) -> tuple[Part, ...]:
    if isinstance(message.content, str):
        return (TextPart(message.content),) if message.content else ()
    return message.content


def _assistant(content: list[dict[str, Any]], names: dict[str, str]) -> Message:
    calls = []
    for block in content:
        if block["type"] == "tool_use":
            names[block["id"]] = block["name"]
            arguments = json.dumps(block["input"], ensure_ascii=False)
            calls.append(ToolCall(id=block["id"], name=block["name"], arguments=arguments))
    return Message(
        role="assistant",
        content="\n".join(block["text"] for block in content if block["type"] == "text"),
        reasoning="\n".join(block["thinking"] for block in content if block["type"] == "thinking"),
        tool_calls=tuple(calls),
    )


def _result(block: dict[str, Any], names: dict[str, str]) -> Message:
    parts = [part for inner in blocks(block.get("content") or "") if (part := _part(inner))]
    if block.get("is_error"):  # templates have no word for it
        parts = [TextPart("Error:"), *parts]
    identity = block["tool_use_id"]
    return Message(role="tool", content=plain(parts), tool_call_id=identity, name=names.get(identity))


def _part(block: dict[str, Any]) -> Part | None:
    match block["type"]:
        case "text":
            return TextPart(block["text"])
        case "image":
            return _source(block["source"])
        case _:  # thoughts of an assistant in a user's message
            return None


def _flush(role: str, parts: list[Part], out: list[Message]) -> None:
    if parts:
        out.append(Message(role=role, content=plain(parts)))
        parts.clear()


def plain(parts: list[Part]) -> str | tuple[Part, ...]:
    """The parts as one string where all of them are text: every template takes that."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else tuple(parts)
