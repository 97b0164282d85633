"""From a request body to a checked pydantic model, or to an error that names the parameter.

`Content-Type` does not matter: a body is JSON or it is refused. Every refusal is a `CallerError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import msgspec
import trio
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError
from quart import request
from werkzeug.exceptions import RequestEntityTooLarge

from api.connection import MeshRequest
from api.errors import NotJSON
from backends.types import CallerError

MAX_DEPTH = 64  # of free-form values (schemas, template arguments); encoders further on recurse
LINGER_S = 2.0  # how long an oversized body is read and thrown away, so that its sender sees the 413

_decoder = msgspec.json.Decoder()
_HALF_SURROGATE = re.compile(rb"\\u[dD][89abcdefABCDEF]")


class Body(BaseModel):
    """Base of all request bodies: unknown fields are ignored, types are never coerced, null means absent."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())


BodyT = TypeVar("BodyT", bound=Body)


async def parse(cls: type[BodyT]) -> BodyT:
    """The current request's body as `cls`.

    Raises CallerError naming the parameter, NotJSON, and werkzeug's RequestEntityTooLarge or RequestTimeout.
    """
    return validate(cls, decode(await read()))


async def read() -> bytes:
    """The current request's raw body. Raises RequestEntityTooLarge or RequestTimeout."""
    incoming = cast(MeshRequest, request._get_current_object())  # type: ignore[attr-defined]
    try:
        return await incoming.get_data(cache=True, as_text=False, parse_form_data=False)
    except RequestEntityTooLarge:
        # Closing a socket with unread data resets it, and the reset may overtake the answer.
        with trio.move_on_after(LINGER_S):
            await incoming.body.arrived.wait()
        raise


def decode(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`.

    Strict: no NaN or Infinity, no numbers beyond a double, no invalid UTF-8, no half surrogate pairs. Raises NotJSON.
    """
    if not data.strip():
        raise NotJSON("The request body is empty; a JSON object is expected.")
    try:
        value = _decoder.decode(data)
    except RecursionError:
        raise NotJSON("The request body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise NotJSON("The request body is not valid UTF-8.") from None
    except msgspec.MsgspecError as error:
        hint = " Does a string hold half of a surrogate pair?" if _HALF_SURROGATE.search(data) else ""
        raise NotJSON(f"The request body is not valid JSON: {error}.{hint}") from None
    if not isinstance(value, dict):
        raise NotJSON("The request body is not a JSON object.")
    return value


def validate(cls: type[BodyT], value: dict[str, Any]) -> BodyT:
    """`value` as `cls`. Raises CallerError for the first field that is wrong."""
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    # A validator of a whole field says itself which part of it is wrong.
    inner = first.get("ctx", {}).get("path", ())
    param = spell((*first["loc"], *inner))
    kind = first["type"]
    if kind == "missing":
        raise CallerError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    if kind in ("unsupported_parameter", "unsupported_value"):
        code = kind
    message = first["msg"].removeprefix("Value error, ").removesuffix(".")
    raise CallerError(f"Invalid '{param}': {message}." if param else f"{message}.", param=param or None, code=code)


def spell(path: Iterable[str | int]) -> str:
    """A field's path as OpenAI writes it: `messages[0].content[1].type`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def wrong(message: str, *path: str | int, kind: str = "invalid_value") -> PydanticCustomError:
    """What a field validator raises. `path` leads from the field to the wrong part of it."""
    # The message is a template to pydantic; braces in it must stay braces.
    return PydanticCustomError(kind, "{reason}", {"reason": message, "path": path})


def check_depth(value: object, *path: str | int) -> None:
    """Raises (as a validator does) when `value` is nested deeper than `MAX_DEPTH`. Does not recurse."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise wrong(f"nested deeper than {MAX_DEPTH} levels", *path)
