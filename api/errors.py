"""The only table from an exception to an HTTP status and to each dialect's error envelope.

`fault_of` says what an exception means to a client, `envelope` writes that in a dialect. Nothing of an unexpected
exception but its existence reaches the client; it is logged here, at the single edge.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import msgspec
from quart import Response, request
from werkzeug.exceptions import HTTPException

from backends.types import (
    Busy,
    CallerError,
    ContextOverflow,
    EngineCrashed,
    EngineFault,
    LoadFailed,
    MeshError,
    ModelDisabled,
    ModelMissing,
    OutOfMemory,
    Unsupported,
)

log = logging.getLogger("mesh.api")

Dialect: TypeAlias = Literal["openai"]


class Unauthorised(CallerError):
    """The request carries no key, or a wrong one."""

    kind = "unauthorised"


class Forbidden(CallerError):
    """The request comes from a page of another site, which nobody allowed."""

    kind = "forbidden"


class NotJSON(CallerError):
    """The body is not a JSON object."""

    kind = "not_json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """An error as a client sees it, before any dialect's spelling."""

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | int | None = None
    retry_after_s: float | None = None


CALLER = "invalid_request_error"
SERVER = "server_error"

# The table: exception -> status, OpenAI's error type, code unless the exception names one, parameter likewise. The
# first class that matches wins, so children stand before their parents.
_TABLE: tuple[tuple[type[MeshError], int, str, str | int | None, str | None], ...] = (
    (Unauthorised, 401, CALLER, 401, None),  # LocalAI's envelope: the code is the number
    (Forbidden, 403, CALLER, "cross_site", None),
    (ModelMissing, 404, CALLER, "model_not_found", "model"),
    (ModelDisabled, 403, "model_disabled", "model_disabled", "model"),
    (ContextOverflow, 400, CALLER, "context_length_exceeded", None),
    (Unsupported, 400, CALLER, "unsupported", None),
    (CallerError, 400, CALLER, None, None),
    (Busy, 429, "rate_limit_exceeded", "rate_limit_exceeded", None),
    # 503: the model is sound, and the same request may succeed on another node or once memory is free.
    (OutOfMemory, 503, SERVER, "out_of_memory", None),
    # 500: the operator has to mend it; waiting does not help.
    (LoadFailed, 500, SERVER, "model_load_failed", None),
    # 502: what stands behind us died; a retry starts it again.
    (EngineCrashed, 502, SERVER, "engine_crashed", None),
    (EngineFault, 500, SERVER, "engine_fault", None),
)

_INTERNAL = Fault(status=500, type=SERVER, message="The server had an internal error.", code="internal_error")


def fault_of(error: BaseException) -> Fault:
    """What `error` means to a client. An unexpected exception is logged with its traceback and not described."""
    error = _first(error)
    if isinstance(error, HTTPException):
        return _http_fault(error)
    for cls, status, kind, code, param in _TABLE:
        if isinstance(error, cls):
            fault = Fault(
                status=status,
                type=kind,
                message=_sendable(error.message),
                param=error.param or param,
                code=error.code or code,
                retry_after_s=error.retry_after_s,
            )
            if error.code == "shutting_down":  # not the caller's pace: this node is going away
                return replace(fault, status=503, type=SERVER)
            return fault
    log.error("unexpected error in a request", exc_info=error)
    return _INTERNAL


def envelope(fault: Fault, dialect: Dialect) -> bytes:
    """`fault` as the JSON body of `dialect`."""
    return msgspec.json.encode(_ENVELOPES[dialect](fault))


def response(error: BaseException, dialect: Dialect = "openai") -> Response:
    """The whole answer to a request that failed with `error`."""
    fault = fault_of(error)
    answer = Response(envelope(fault, dialect), status=fault.status, content_type="application/json")
    if fault.status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if fault.retry_after_s is not None:
        answer.headers["Retry-After"] = str(max(1, math.ceil(fault.retry_after_s)))  # whole seconds, RFC 9110
    if isinstance(error, HTTPException):
        for name, value in error.get_headers():
            if name in ("Allow", "Retry-After"):
                answer.headers[name] = value
    return answer


def _openai(fault: Fault) -> dict[str, Any]:
    """OpenAI API reference, "Error codes": all four keys are always present."""
    return {"error": {"message": fault.message, "type": fault.type, "param": fault.param, "code": fault.code}}


_ENVELOPES: dict[Dialect, Callable[[Fault], dict[str, Any]]] = {"openai": _openai}


def _http_fault(error: HTTPException) -> Fault:
    """What the framework refused: no such route, wrong method, body too large or too slow."""
    status = error.code or 500
    if status >= 500:
        log.error("the framework failed a request", exc_info=error)
        return replace(_INTERNAL, status=status)
    messages = {
        404: f"Invalid URL ({request.method} {request.path})",
        405: f"Not allowed to {request.method} on {request.path}.",
        408: "The request body did not arrive in time.",
        413: f"The request body is over the limit of {request.max_content_length} bytes.",
    }
    codes = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}
    message = messages.get(status) or error.description or error.name
    return Fault(status=status, type=CALLER, message=_sendable(message), code=codes.get(status))


def _first(error: BaseException) -> BaseException:
    """The first plain exception in a group: nurseries wrap what their tasks raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _sendable(text: str) -> str:
    """`text` without lone surrogates, which no encoder takes, and not longer than an error should be."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= 2000 else text[:2000] + "…"
