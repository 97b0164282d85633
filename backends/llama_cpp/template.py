"""The model's own chat template, in jinja2's sandbox.

Follows the dialect of Hugging Face's templates (transformers, chat_template_utils): trimmed blocks, loop
controls, `raise_exception`, `strftime_now`, and a `tojson` that leaves HTML characters alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.types import CallerError, LoadFailed, Message


class ChatTemplate:
    """A compiled template. Raises LoadFailed when the source is no valid template."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            # The last three: what jinja2 makes of it is too deep for its own parser, or for Python's.
            raise LoadFailed(f"The model's chat template is broken: {error or type(error).__name__}") from error
        self._tokens = {"bos_token": bos, "eos_token": eos}

    def render(self, messages: Sequence[Message], kwargs: dict[str, Any]) -> str:
        """The prompt for an answer to `messages`. Raises CallerError when the template refuses them."""
        turns = [
            {"role": turn.role, "content": turn.content} | ({"name": turn.name} if turn.name else {})
            for turn in messages
        ]
        try:
            return self._template.render(kwargs | self._tokens | {"messages": turns, "add_generation_prompt": True})
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise CallerError(f"The model's chat template refuses these messages: {error}", param="messages") from error


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)  # the machine's own zone, as transformers does


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
