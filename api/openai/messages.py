"""`messages` of a chat, with tool calls, their results, and content parts."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from api.images import named
from api.parse import Body, check_depth, wrong
from backends.types import AudioPart, Message, Part, TextPart, ToolCall

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_IMAGES = ("image_url", "image")
_SOUNDS = ("input_audio", "audio_url", "audio")


class CalledFunction(Body):
    """The function of a tool call, and the legacy `function_call`. Some clients send arguments that are objects."""

    name: str = Field(min_length=1, max_length=256)
    arguments: Any = ""

    @field_validator("arguments")
    @classmethod
    def _text(cls, value: Any) -> str:
        if isinstance(value, str):
            return value
        if not isinstance(value, dict):
            raise wrong("expected a string of JSON", kind="invalid_type")
        check_depth(value)
        return json.dumps(value, ensure_ascii=False)


class CallBody(Body):
    """One of an assistant's `tool_calls`."""

    id: str = Field(max_length=512)
    type: Literal["function"] | None = None
    function: CalledFunction


class ChatMessage(Body):
    """One of `messages`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Any = None
    name: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @field_validator("content")
    @classmethod
    def _parts(cls, value: Any) -> str | tuple[Part, ...] | None:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise wrong("expected a string or a list of content parts", kind="invalid_type")
        parts = tuple(_part(part, number) for number, part in enumerate(value))
        if all(isinstance(part, TextPart) for part in parts):
            return "\n".join(part.text for part in parts if isinstance(part, TextPart))
        return parts

    @model_validator(mode="after")
    def _complete(self) -> ChatMessage:
        for field in ("tool_calls", "function_call"):
            if getattr(self, field) and self.role != "assistant":
                raise wrong(f"not allowed in a message of role '{self.role}'", field)
        if self.content is None and self.role != "assistant":
            raise wrong(f"required for a message of role '{self.role}'", "content")
        if self.role == "tool" and not self.tool_call_id:
            raise wrong("required for a message of role 'tool'", "tool_call_id")
        if self.role == "function" and not self.name:
            raise wrong("required for a message of role 'function'", "name")
        return self

    def calls(self, number: int) -> tuple[ToolCall, ...]:
        """What the assistant has called; the legacy form has no id of its own."""
        calls = tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in self.tool_calls or ()
        )
        if self.function_call is None:
            return calls
        called = self.function_call
        return (*calls, ToolCall(id=f"call_{number}", name=called.name, arguments=called.arguments))


def read_messages(bodies: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The messages as a chat template sees them: one for each, results with the names of what was called."""
    messages: list[Message] = []
    names: dict[str, str] = {}
    last = ""  # id of the last legacy call
    for number, body in enumerate(bodies):
        calls = body.calls(number)
        names |= {call.id: call.name for call in calls}
        if body.function_call is not None:
            last = calls[-1].id
        # "developer" is OpenAI's newer word for "system"; the templates of open models know only the older one.
        role = {"developer": "system", "function": "tool"}.get(body.role, body.role)
        identity = body.tool_call_id if role == "tool" else None
        if body.role == "function":
            identity = last or f"call_{body.name}"
        messages.append(
            Message(
                role=role,
                content="" if body.content is None else body.content,
                name=names.get(identity or "", body.name) if role == "tool" else body.name,
                reasoning=body.reasoning_content or body.reasoning or "",
                tool_calls=calls,
                tool_call_id=identity,
            )
        )
    return tuple(messages)


def _part(part: Any, number: int) -> Part:
    if not isinstance(part, dict):
        raise wrong("expected a content part (an object)", number, kind="invalid_type")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise wrong("expected the name of a content part", number, "type", kind="invalid_type")
    if kind in ("text", "refusal"):  # an assistant's earlier refusal is text of the conversation, too
        text = part.get(kind)
        if not isinstance(text, str):
            raise wrong("expected a string", number, kind, kind="invalid_type")
        return TextPart(text)
    if kind in _IMAGES:
        url, path = _url(part, kind, number)
        return named(url, *path, detail=_detail(part, kind, number))
    if kind == "input_audio":
        return _audio(part.get(kind), number)
    if kind in _SOUNDS:
        url, path = _url(part, kind, number)
        found = _DATA_URI.match(url)
        if found is None:
            raise wrong("not a data URL in base64; sounds are not fetched", *path, kind="unsupported_value")
        return AudioPart(data=_decoded(url[found.end() :], *path), format=(found[1] or "").partition("/")[2])
    raise wrong(f"content of type '{kind[:40]}' is not supported", number, "type", kind="unsupported_value")


def _url(part: dict[str, Any], kind: str, number: int) -> tuple[str, tuple[int | str, ...]]:
    """The URL of a part, and the path to it."""
    value = part.get(kind, part.get("url"))
    url = value.get("url") if isinstance(value, dict) else value
    path = (number, kind, "url") if isinstance(value, dict) else (number, kind)
    if not isinstance(url, str):
        raise wrong("expected a URL", *path, kind="invalid_type")
    return url, path


def _detail(part: dict[str, Any], kind: str, number: int) -> str | None:
    value = part.get(kind)
    detail = value.get("detail") if isinstance(value, dict) else None
    if detail is not None and not isinstance(detail, str):
        raise wrong("expected a string", number, kind, "detail", kind="invalid_type")
    return detail


def _audio(value: Any, number: int) -> AudioPart:
    if not isinstance(value, dict):
        raise wrong("expected an object", number, "input_audio", kind="invalid_type")
    for key in ("data", "format"):
        if not isinstance(value.get(key), str):
            raise wrong("expected a string", number, "input_audio", key, kind="invalid_type")
    return AudioPart(data=_decoded(value["data"], number, "input_audio", "data"), format=value["format"])


def _decoded(text: str, *path: int | str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise wrong("not valid base64", *path) from None
    if not data:
        raise wrong("must not be empty", *path)
    return data
