"""The `engine:` table of a fake model."""

from __future__ import annotations

from typing import Any

import msgspec

from backends.types import CallSyntax, LoadFailed


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong, on purpose. Token counts are of one call."""

    crash_after_tokens: int | None = None  # the process dies as if killed
    hang_after_tokens: int | None = None  # the engine stops answering, without closing anything
    refuse_load: str | None = None  # the load fails with this message


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speeds are per second of real time; 0 means as fast as this machine can."""

    load_s: float = 0.0
    prefill_tokens_per_s: float = 0.0  # one prompt at a time
    decode_tokens_per_s: float = 0.0  # of each sequence
    answer_tokens: int = 64  # length of an answer that no limit ends
    memory_bytes: int = 0  # what the node shall believe it needs; 0: little
    says: str | None = None  # every answer, in place of words
    obeys: bool = False  # a last message that begins with `say:` is answered with the rest of it
    calls: CallSyntax = "json"  # what the model claims to write its tool calls in
    think: tuple[str, str] | None = None  # the tags that it claims to think in
    thinking: bool = False  # whether answers begin within them
    fault: Fault = Fault()


def read_settings(table: dict[str, Any]) -> Settings:
    """The settings in a model's `engine:` table. Raises LoadFailed naming what is wrong."""
    try:
        return msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise LoadFailed(f"The `engine:` table of a fake model is wrong: {error}") from error
