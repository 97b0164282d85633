"""The only table from an exception to an HTTP status and to each dialect's error envelope.

`fault_of` says what an exception means to a client, `envelope` writes that in a dialect. Nothing of an unexpected
exception but its existence reaches the client; it is logged here, at the single edge.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import msgspec
from quart import Response, g, has_request_context, request, websocket
from werkzeug.exceptions import HTTPException

from backends.types import (
    Busy,
    CallerError,
    ContextOverflow,
    EngineCrashed,
    EngineFault,
    HoldersDown,
    LoadFailed,
    MeshError,
    ModelDisabled,
    ModelMissing,
    NodeGone,
    OutOfMemory,
    Unsupported,
)

log = logging.getLogger("mesh.api")

Dialect: TypeAlias = Literal["openai", "anthropic", "ollama"]  # Open Responses' answers are OpenAI's

# Whose dialect a path speaks, also where no handler has been reached: the key is missing, the body is too large.
_ANTHROPIC = re.compile(r"(/v1)?/messages(/|$)")
_OLLAMA = re.compile(r"/api/(chat|generate|embed|embeddings|tags|show|ps|version)/?$")


class Unauthorised(CallerError):
    """The request carries no key, or a wrong one."""

    kind = "unauthorised"


class Forbidden(CallerError):
    """The request comes from a page of another site, which nobody allowed."""

    kind = "forbidden"


class NoSwarm(CallerError):
    """The node takes part in no swarm."""

    kind = "no_swarm"


class UnknownRequest(CallerError):
    """This node knows nothing of a request of that id."""

    kind = "unknown_request"


class ResponseMissing(CallerError):
    """There is no response of that id, or the conversation that it ends is not whole any more."""

    kind = "response_missing"


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
    (NoSwarm, 404, CALLER, "no_swarm", None),
    (UnknownRequest, 404, CALLER, "unknown_request", None),
    (ModelMissing, 404, CALLER, "model_not_found", "model"),
    (ResponseMissing, 404, CALLER, "not_found", None),
    (ModelDisabled, 403, "model_disabled", "model_disabled", "model"),
    (ContextOverflow, 400, CALLER, "context_length_exceeded", None),
    (Unsupported, 400, CALLER, "unsupported", None),
    (CallerError, 400, CALLER, None, None),
    (HoldersDown, 503, SERVER, "holders_down", "model"),
    (Busy, 429, "rate_limit_exceeded", "rate_limit_exceeded", None),
    # 503: the model is sound, and the same request may succeed on another node or once memory is free.
    (OutOfMemory, 503, SERVER, "out_of_memory", None),
    # 500: the operator has to mend it; waiting does not help.
    (LoadFailed, 500, SERVER, "model_load_failed", None),
    # 502: what stands behind us died; a retry starts it again.
    (NodeGone, 502, SERVER, "node_gone", None),
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


def envelope(fault: Fault, dialect: Dialect, request_id: str | None = None) -> bytes:
    """`fault` as the JSON body of `dialect`; `request_id` where the dialect repeats it."""
    value = _ENVELOPES[dialect](fault)
    if dialect == "anthropic":
        value["request_id"] = request_id
    return msgspec.json.encode(value)


def dialect_of(path: str) -> Dialect:
    """The dialect in which clients of `path` expect an error."""
    if _ANTHROPIC.match(path):
        return "anthropic"
    return "ollama" if _OLLAMA.match(path) else "openai"


def response(error: BaseException) -> Response:
    """The whole answer to the current request, which failed with `error`."""
    path = request.path if has_request_context() else websocket.path
    fault = fault_of(error)
    body = envelope(fault, dialect_of(path), g.get("request_id"))
    answer = Response(body, status=fault.status, content_type="application/json")
    if fault.status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if fault.retry_after_s is not None:
        answer.headers["Retry-After"] = str(max(1, math.ceil(fault.retry_after_s)))  # whole seconds, RFC 9110
    if isinstance(error, HTTPException):
        for name, value in error.get_headers():
            if name in ("Allow", "Retry-After"):
                answer.headers[name] = value
    return answer


def openai_error(fault: Fault) -> dict[str, Any]:
    """OpenAI API reference, "Error codes": all four keys are always present."""
    return {"error": {"message": fault.message, "type": fault.type, "param": fault.param, "code": fault.code}}


# Anthropic API reference, "Errors": the type follows from the status. 503 is their 529, which no proxy knows.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _anthropic(fault: Fault) -> dict[str, Any]:
    """Anthropic API reference, "Errors"."""
    kind = _ANTHROPIC_TYPES.get(fault.status, "api_error" if fault.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": fault.message}}


def _ollama(fault: Fault) -> dict[str, Any]:
    """Ollama's API documentation, "Errors": a message and nothing else."""
    return {"error": fault.message}


_ENVELOPES: dict[Dialect, Callable[[Fault], dict[str, Any]]] = {
    "openai": openai_error,
    "anthropic": _anthropic,
    "ollama": _ollama,
}


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
