"""What those are told who get no slot (node/slots.py)."""

from __future__ import annotations

from backends.types import Busy, LoadFailed, MeshError, OutOfMemory


def shutting_down() -> Busy:
    """Nothing new begins."""
    return Busy("This node is shutting down.", code="shutting_down")


def full(model: str, wait_s: float) -> Busy:
    """The queue is as long as it may be; `wait_s`: until it has been served."""
    return Busy(f"Too many requests wait for model {model}.", retry_after_s=max(1.0, wait_s))


def too_large(model: str, need_bytes: int, budget_bytes: int) -> OutOfMemory:
    """It does not fit, whatever else goes."""
    return OutOfMemory(
        f"Model {model} needs {_gib(need_bytes)}; this node's memory budget is {_gib(budget_bytes)} "
        "(setting memory_budget_bytes)."
    )


def crowded_out(model: str, need_bytes: int, pinned_bytes: int) -> OutOfMemory:
    """It would fit, but for models that never go."""
    return OutOfMemory(
        f"Model {model} needs {_gib(need_bytes)}, and {_gib(pinned_bytes)} of the memory budget belong to pinned "
        "models."
    )


def again(error: MeshError) -> MeshError:
    """A copy to raise in another task: an exception instance must not collect several tracebacks."""
    kind = type(error) if isinstance(error, LoadFailed) else LoadFailed
    return kind(error.message, param=error.param, code=error.code)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
