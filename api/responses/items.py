"""Items of a conversation: checked, and as the messages that a chat template sees.

OpenAI API reference, "Responses", `input`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from api.images import named
from api.parse import wrong
from api.responses.ids import ResponseId
from backends.types import ImagePart, Message, Part, TextPart, ToolCall

MAX_ITEMS = 100_000
TEXT_PARTS = frozenset({"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"})

_ROLES = frozenset({"user", "assistant", "system", "developer"})
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}

Item = dict[str, Any]


def checked(value: Any) -> list[Item]:
    """`string | [item]` as items, with what may be left out put in.

    Raises (as a validator does) naming the first part that is wrong.
    """
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    if not isinstance(value, list):
        raise wrong("expected a string or a list of items", kind="invalid_type")
    if len(value) > MAX_ITEMS:
        raise wrong(f"at most {MAX_ITEMS} items are allowed, got {len(value)}")
    return [_item(item, number) for number, item in enumerate(value)]


def numbered(items: Iterable[Item], identity: ResponseId) -> list[Item]:
    """The items of a request with ids, those that came with one keep it; references have none of their own."""
    out = []
    for number, item in enumerate(items):
        prefix = _PREFIXES.get(item["type"])
        known = item.get("id") or prefix is None
        out.append(item if known else {**item, "id": identity.item(prefix or "", "i", number), "status": "completed"})
    return out


def messages(items: Iterable[Item]) -> list[Message]:
    """The conversation that `items` are. Neighbouring thoughts, calls and texts of the assistant are one message."""
    out: list[Message] = []
    turn = _Turn()
    names: dict[str, str] = {}
    for item in items:
        match item["type"]:
            case "reasoning":
                turn.reasoning += [part["text"] for part in (item.get("content") or item.get("summary") or ())]
            case "function_call":
                names[item["call_id"]] = item["name"]
                turn.calls.append(ToolCall(id=item["call_id"], name=item["name"], arguments=item["arguments"]))
            case "function_call_output":
                turn.end(out)
                identity = item["call_id"]
                output = _plain(_parts(item["output"]))
                out.append(Message(role="tool", content=output, tool_call_id=identity, name=names.get(identity)))
            case "message" if item["role"] == "assistant":
                if turn.calls:  # what follows calls is another answer
                    turn.end(out)
                turn.texts += [part.text for part in _parts(item["content"]) if isinstance(part, TextPart)]
            case "message":
                turn.end(out)
                # Templates of open models know only the older of the two words.
                role = "system" if item["role"] == "developer" else item["role"]
                out.append(Message(role=role, content=_plain(_parts(item["content"]))))
    turn.end(out)
    return out


class _Turn:
    """An assistant's message that is being put together."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.reasoning: list[str] = []
        self.texts: list[str] = []
        self.calls: list[ToolCall] = []

    def end(self, out: list[Message]) -> None:
        if self.reasoning or self.texts or self.calls:
            out.append(
                Message(
                    role="assistant",
                    content="\n".join(self.texts),
                    reasoning="\n".join(self.reasoning),
                    tool_calls=tuple(self.calls),
                )
            )
        self._clear()


def _item(item: Any, number: int) -> Item:
    if not isinstance(item, dict):
        raise wrong("expected an item (an object)", number, kind="invalid_type")
    kind = item.get("type", "message" if "role" in item else None)
    match kind:
        case "message":
            role = item.get("role")
            if not isinstance(role, str) or role not in _ROLES:
                raise wrong(f"expected one of {', '.join(sorted(_ROLES))}", number, "role")
            part = "output_text" if role == "assistant" else "input_text"
            return {**item, "type": "message", "content": _content(item, "content", part, number)}
        case "function_call":
            for key in ("call_id", "name", "arguments"):
                _need(item, key, number)
        case "function_call_output":
            _need(item, "call_id", number)
            return {**item, "output": _content(item, "output", "input_text", number)}
        case "reasoning":
            for key in ("content", "summary"):
                if item.get(key) is not None:
                    _content(item, key, "reasoning_text", number)
        case "item_reference":
            _need(item, "id", number)
        case str():
            message = f"items of type '{kind[:40]}' are not supported"
            raise wrong(message, number, "type", kind="unsupported_value")
        case _:
            raise wrong("expected the name of an item's type", number, "type", kind="invalid_type")
    return item


def _content(item: Mapping[str, Any], key: str, part: str, number: int) -> list[Any]:
    """The parts of an item's content; a string is one part."""
    value = item.get(key)
    if isinstance(value, str):
        return [{"type": part, "text": value}]
    if not isinstance(value, list):
        raise wrong("expected a string or a list of content parts", number, key, kind="invalid_type")
    for place, found in enumerate(value):
        _check_part(found, number, key, place)
    return value


def _check_part(part: Any, *path: int | str) -> None:
    if not isinstance(part, dict):
        raise wrong("expected a content part (an object)", *path, kind="invalid_type")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise wrong("expected the name of a content part", *path, "type", kind="invalid_type")
    if kind in TEXT_PARTS:
        key = "refusal" if kind == "refusal" else "text"
        if not isinstance(part.get(key), str):
            raise wrong("expected a string", *path, key, kind="invalid_type")
    elif kind == "input_image":
        _image(part, *path)
    else:
        message = f"content of type '{kind[:40]}' is not supported by this model"
        raise wrong(message, *path, "type", kind="unsupported_value")


def _image(part: Mapping[str, Any], *path: int | str) -> ImagePart:
    """The image of a part. Raises (as a validator does)."""
    url, detail = part.get("image_url"), part.get("detail")
    if not isinstance(url, str):
        raise wrong("expected a URL", *path, "image_url", kind="invalid_type")
    return named(url, *path, "image_url", detail=detail if isinstance(detail, str) else None)


def _need(item: Mapping[str, Any], key: str, number: int) -> None:
    if key not in item:
        raise wrong("required", number, key, kind="missing")
    if not isinstance(item[key], str):
        raise wrong("expected a string", number, key, kind="invalid_type")


def _parts(content: Iterable[Mapping[str, Any]]) -> list[Part]:
    return [
        _image(part) if part["type"] == "input_image" else TextPart(part.get("text", part.get("refusal", "")))
        for part in content
    ]


def _plain(parts: list[Part]) -> str | tuple[Part, ...]:
    """The parts as one string where all of them are text: every template takes that."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else tuple(parts)
