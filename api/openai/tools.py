"""`tools`, `tool_choice` and their legacy forms, `functions` and `function_call`.

OpenAI API reference, "Create chat completion". The flat and the JSON-string forms of `tool_choice` are LocalAI's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from api.openai.generation import check_schema
from api.parse import Body, wrong
from backends.types import Tool, ToolChoice

MAX_TOOLS = 512
NAME = r"^[a-zA-Z0-9_.:/-]{1,256}$"
_MODES = ("none", "auto", "required")

Name = Annotated[str, Field(pattern=NAME)]


class FunctionBody(Body):
    """What the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _sane(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_schema(value)

    def tool(self) -> Tool:
        """The function as an engine knows it."""
        return Tool(
            name=self.name,
            description=self.description or "",
            parameters=self.parameters,
            strict=bool(self.strict),
        )


class ToolBody(Body):
    """One of `tools`."""

    type: Literal["function"]
    function: FunctionBody

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """The Responses API has the function's fields beside `type`."""
        if isinstance(value, dict) and "function" not in value and "name" in value:
            return {"type": value.get("type"), "function": {key: value[key] for key in value if key != "type"}}
        return value


def read_tools(tools: list[ToolBody] | None, functions: list[FunctionBody] | None) -> tuple[Tool, ...]:
    """The tools of either form. Raises (as a validator of the whole body does) for two of one name."""
    field = "functions" if functions else "tools"
    if tools and functions:
        raise wrong("cannot be combined with 'tools'", "functions")
    offered = [item.function for item in tools or ()] or list(functions or ())
    seen: set[str] = set()
    for number, function in enumerate(offered):
        if function.name in seen:
            raise wrong(f"there are two functions of the name '{function.name}'", field, number)
        seen.add(function.name)
    return tuple(function.tool() for function in offered)


def read_choice(value: Any, names: Collection[str], *, parallel: bool) -> ToolChoice:
    """`tool_choice` in any of its forms. Raises as a field's validator does."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong("not valid JSON") from None
    if value is None:
        return ToolChoice(parallel=parallel)
    if isinstance(value, str):
        if value not in _MODES:
            raise wrong(f"must be one of {', '.join(_MODES)}, or an object that names a function")
        if value == "required" and not names:
            raise wrong("there are no tools to be required")
        return ToolChoice(mode=value, parallel=parallel)  # type: ignore[arg-type]  # one of _MODES
    if not isinstance(value, dict):
        raise wrong("expected a string or an object", kind="invalid_type")
    if value.get("type") == "allowed_tools":
        return _allowed(value.get("allowed_tools"), names, parallel=parallel)
    if value.get("type", "function") != "function":
        raise wrong("only functions can be chosen", "type", kind="unsupported_value")
    return ToolChoice(mode="required", allowed=(_named(value, names),), parallel=False)


def read_function_call(value: Any, names: Collection[str]) -> ToolChoice:
    """The legacy `function_call`: "none", "auto", or the name of a function in an object."""
    if isinstance(value, str) and value not in ("none", "auto"):
        raise wrong("must be 'none', 'auto', or an object that names a function")
    return read_choice(value, names, parallel=False)


def _allowed(value: Any, names: Collection[str], *, parallel: bool) -> ToolChoice:
    if not isinstance(value, dict) or not isinstance(value.get("tools"), list) or not value["tools"]:
        raise wrong("expected an object with a list of tools", "allowed_tools", kind="invalid_type")
    mode = value.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise wrong("must be 'auto' or 'required'", "allowed_tools", "mode")
    allowed = tuple(_named(item, names, "allowed_tools", "tools", number) for number, item in enumerate(value["tools"]))
    return ToolChoice(mode=mode, allowed=allowed, parallel=parallel)


def _named(value: Any, names: Collection[str], *path: str | int) -> str:
    """The name in `{"function": {"name": …}}` or `{"name": …}`, which a function must have."""
    inner = value.get("function", value) if isinstance(value, dict) else value
    name = inner if isinstance(inner, str) else inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not re.match(NAME, name):
        raise wrong("expected the name of a function", *path, "function", "name", kind="invalid_type")
    if name not in names:
        raise wrong(f"there is no function '{name}'", *path, "function", "name")
    return name
