"""The model's own chat template, in jinja2's sandbox.

Follows the dialect of Hugging Face's templates (transformers, chat_template_utils): trimmed blocks, loop
controls, `raise_exception`, `strftime_now`, `generation` blocks, and a `tojson` that leaves HTML characters alone.
Tools and calls are given as transformers gives them; a template that knows no tools gets them as plain messages
(backends/chat/plaintools.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.chat.family import call_syntax, think_tags
from backends.chat.plaintools import as_plain_messages
from backends.types import CallerError, LoadFailed, Message, TextPart, Tool, ToolCall

_PROBE = "Probe_7f3a"
_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


class _GenerationBlock(Extension):
    """`{% generation %}`: marks an assistant's own words for training, and says nothing to us."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template. Raises LoadFailed when the source is no valid template."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            # The last three: what jinja2 makes of it is too deep for its own parser, or for Python's.
            raise LoadFailed(f"The model's chat template is broken: {error or type(error).__name__}") from error
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._short_ids = "length 9" in source  # Mistral's templates refuse other ids
        self.source = source
        self.calls = call_syntax(source)
        self.think = think_tags(source)

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template tells a model of tools."""
        return _PROBE in self._tried([Message(role="user", content="x")], (Tool(name=_PROBE, description="x"),))

    def render(
        self,
        messages: Sequence[Message],
        kwargs: dict[str, Any],
        tools: Sequence[Tool] = (),
        *,
        continues: bool = False,
    ) -> str:
        """The prompt for an answer to `messages`, or for the rest of the last one. Raises CallerError when the template
        refuses them."""
        if (tools or any(turn.tool_calls or turn.role == "tool" for turn in messages)) and not self.knows_tools:
            messages, tools = as_plain_messages(messages, tools), ()
        objects = self._takes_objects if any(turn.tool_calls for turn in messages) else True
        try:
            text = self._rendered(messages, kwargs, tools, objects=objects, generation=not continues)
        except _REFUSALS as error:
            text = ""
            if folded := _without_system(messages):  # some templates know no system message
                with contextlib.suppress(*_REFUSALS):
                    text = self._rendered(folded, kwargs, tools, objects=objects, generation=not continues)
            if not text:
                raise CallerError(
                    f"The model's chat template refuses these messages: {error}", param="messages"
                ) from error
        return _cut_after(text, messages[-1].text) if continues else text

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether a message's content is to be a list of parts; many templates of vision models know no other."""
        turns = (Message(role="user", content=_PROBE),)
        if _PROBE in self._tried(turns, (), parts=False):
            return False
        return _PROBE in self._tried(turns, (), parts=True)

    @cached_property
    def _takes_objects(self) -> bool:
        """Whether the arguments of earlier calls are to be objects; some templates want their JSON text."""
        call = ToolCall(id="abcdefgh1", name="f", arguments=json.dumps({_PROBE: "x"}))
        turns = (
            Message(role="user", content="x"),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="x", name="f", tool_call_id=call.id),
            Message(role="assistant", content="x"),
        )
        return f'"{_PROBE}"' in self._tried(turns, ()) or f'"{_PROBE}"' not in self._tried(turns, (), objects=False)

    def _tried(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, objects: bool = True, parts: bool | None = None
    ) -> str:
        try:
            return self._rendered(messages, {}, tools, objects=objects, generation=True, parts=parts)
        except _REFUSALS:
            return ""

    def _rendered(
        self,
        messages: Sequence[Message],
        kwargs: dict[str, Any],
        tools: Sequence[Tool],
        *,
        objects: bool,
        generation: bool,
        parts: bool | None = None,
    ) -> str:
        parts = self._wants_parts if parts is None else parts
        given: dict[str, Any] = {
            "messages": [self._turn(turn, objects=objects, parts=parts) for turn in messages],
            "add_generation_prompt": generation,
        }
        if tools:
            given["tools"] = [tool_object(tool) for tool in tools]
        return self._template.render(kwargs | self._tokens | given)

    def _turn(self, turn: Message, *, objects: bool, parts: bool) -> dict[str, Any]:
        value: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if parts:
            texts = (turn.text,) if isinstance(turn.content, str) else (part.text for part in _texts(turn))
            value["content"] = [{"type": "text", "text": text} for text in texts]
        if turn.name:
            value["name"] = turn.name
        if turn.reasoning:
            value["reasoning_content"] = turn.reasoning
        if turn.tool_call_id is not None:
            value["tool_call_id"] = self._id(turn.tool_call_id)
        if turn.tool_calls:
            value["tool_calls"] = [
                {
                    "id": self._id(call.id),
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": _object(call.arguments) if objects else call.arguments,
                    },
                }
                for call in turn.tool_calls
            ]
        return value

    def _call(self, call: ToolCall, *, objects: bool) -> dict[str, Any]:
        arguments = _object(call.arguments) if objects else call.arguments
        return {"id": self._id(call.id), "type": "function", "function": {"name": call.name, "arguments": arguments}}

    def _id(self, given: str) -> str:
        if not self._short_ids or re.fullmatch(r"[a-zA-Z0-9]{9}", given):
            return given
        return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:9]


def tool_object(tool: Tool) -> dict[str, Any]:
    """`tool` as templates and models know it: OpenAI's form."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """`messages` with the first one, a system message, as the beginning of the user's; None if that is not theirs."""
    if len(messages) < 2 or (messages[0].role, messages[1].role) != ("system", "user"):
        return None
    text = f"{messages[0].text}\n\n{messages[1].text}"
    return [msgspec.structs.replace(messages[1], content=text), *messages[2:]]


def _texts(turn: Message) -> list[TextPart]:
    return [part for part in turn.content if isinstance(part, TextPart)]


def _object(arguments: str) -> Any:
    """Arguments as an object. What is no JSON object stays text: a model's own mistake, shown to it as it was."""
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _cut_after(text: str, last: str) -> str:
    """`text` up to the end of the last message, without the marks that close it."""
    last = last.strip()
    at = text.rfind(last) if last else -1
    return text if at < 0 else text[: at + len(last)]


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)  # the machine's own zone, as transformers does


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
