"""Errors that say whose fault they are, and their form on a wire.

The caller's: `CallerError` and its children. Nobody's, try later: `Busy`. The node's or its operator's: `LoadFailed`,
`OutOfMemory`. The engine's: `EngineCrashed` (the process died) and `EngineFault` (it lives, this call failed).
api/errors.py is the only table from these to HTTP statuses and dialect envelopes.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class MeshError(Exception):
    """Base of all errors that may reach a client. `message` is a full sentence for a person."""

    kind: ClassVar[str] = "internal"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the same request may succeed; None when waiting does not help."""
        return None


class CallerError(MeshError):
    """The request is wrong and will stay wrong. `param` names the field in the dialect's own spelling."""

    kind = "caller"


class ContextOverflow(CallerError):
    """The prompt, or prompt plus requested output, does not fit the model's context."""

    kind = "context_overflow"


class Unsupported(CallerError):
    """The model exists but cannot do what was asked (no embeddings, no chat template, ...)."""

    kind = "unsupported"


class ModelMissing(CallerError):
    """Nobody has a model of that name."""

    kind = "model_missing"


class ModelDisabled(CallerError):
    """The model exists and its operator has switched it off."""

    kind = "model_disabled"


class Busy(MeshError):
    """All slots and the queue are full, or the node is shutting down: the same request may succeed later."""

    kind = "busy"

    def __init__(
        self, message: str, *, retry_after_s: float = 1.0, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self._retry_after_s = retry_after_s

    @property
    def retry_after_s(self) -> float | None:
        return self._retry_after_s


class HoldersDown(Busy):
    """Somebody has the model, and nobody who has it can be reached now."""

    kind = "holders_down"


class NodeGone(MeshError):
    """The node that answered went away under the call, and no other could go on with it."""

    kind = "node_gone"


class LoadFailed(MeshError):
    """A model could not be opened: a bad file, a missing backend, a refused configuration."""

    kind = "load_failed"


class OutOfMemory(LoadFailed):
    """A model does not fit the node's memory budget."""

    kind = "out_of_memory"


class EngineCrashed(MeshError):
    """The child process died under the call. Before the first chunk the call may be retried."""

    kind = "engine_crashed"


class EngineFault(MeshError):
    """The engine reported a failure of this call and lives on."""

    kind = "engine_fault"


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A `MeshError` on a wire."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


_KINDS: dict[str, type[MeshError]] = {
    cls.kind: cls
    for cls in (
        MeshError,
        CallerError,
        ContextOverflow,
        Unsupported,
        ModelMissing,
        ModelDisabled,
        Busy,
        HoldersDown,
        NodeGone,
        LoadFailed,
        OutOfMemory,
        EngineCrashed,
        EngineFault,
    )
}


def to_failure(error: MeshError) -> Failure:
    """The wire form of `error`."""
    return Failure(
        kind=error.kind,
        message=error.message,
        param=error.param,
        code=error.code,
        retry_after_s=error.retry_after_s,
    )


def from_failure(failure: Failure) -> MeshError:
    """The exception that `failure` stands for; an unknown kind becomes a plain `MeshError`."""
    cls = _KINDS.get(failure.kind, MeshError)
    if issubclass(cls, Busy):
        return cls(failure.message, retry_after_s=failure.retry_after_s or 1.0, param=failure.param, code=failure.code)
    return cls(failure.message, param=failure.param, code=failure.code)
