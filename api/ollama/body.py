"""What Ollama's requests have in common: options, format, thinking, how long a model stays.

Ollama's API documentation, "Parameters" of each endpoint.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, TypeAlias

from pydantic import Field, field_validator, model_validator

from api.images import inline
from api.openai.generation import (
    MAX_INT,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_WINDOW_TOKENS,
    TOP_P_FLOOR,
    Penalty,
    Share,
    check_schema,
)
from api.parse import Body, wrong
from backends.types import ImagePart, Part, Sampling, TextPart

Model: TypeAlias = Annotated[str, Field(min_length=1, max_length=512)]

_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Options(Body):
    """`options`, as far as they are the caller's: those that lay out memory are the model file's."""

    num_predict: Annotated[int, Field(ge=-2, le=MAX_INT)] | None = None  # negative: no limit
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=MAX_WINDOW_TOKENS)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=1000)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Any = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: Any) -> tuple[str, ...]:
        items = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise wrong("expected a list of strings", kind="invalid_type")
        if len(items) > MAX_STOPS or any(len(item) > MAX_STOP_CHARS for item in items):
            raise wrong(f"at most {MAX_STOPS} stop strings of at most {MAX_STOP_CHARS} characters are allowed")
        return tuple(item for item in items if item)

    def sampling(self) -> Sampling:
        """What of them says how tokens are chosen."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=None if self.top_p is None else max(self.top_p, TOP_P_FLOOR),
            min_p=self.min_p,
            typical_p=self.typical_p or None,
            repeat_last_n=self.repeat_last_n,
            repeat_penalty=self.repeat_penalty or None,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            mirostat=self.mirostat,
            mirostat_tau=self.mirostat_tau,
            mirostat_eta=self.mirostat_eta,
            seed=self.seed,
        )


class ModelBody(Body):
    """What every request about a model has."""

    model: Model
    keep_alive: Any = None

    @field_validator("keep_alive")
    @classmethod
    def _seconds(cls, value: Any) -> float | None:
        """Seconds to stay loaded after the call; infinite for a negative duration, None for the node's own rule."""
        if value is None:
            return None
        seconds = duration_s(value)
        return math.inf if seconds < 0 else seconds


class GenerationBody(ModelBody):
    """What chat and generate have in common."""

    stream: bool | None = None
    options: Options | None = None
    format: Any = None
    think: Any = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @field_validator("format")
    @classmethod
    def _schema(cls, value: Any) -> dict[str, Any] | None:
        """The schema that the answer must satisfy; {} for any JSON object."""
        if value is None or value == "":
            return None
        if value == "json":
            return {}
        if not isinstance(value, dict):
            raise wrong("expected 'json' or a JSON schema", kind="invalid_type")
        return check_schema(value)

    @field_validator("think")
    @classmethod
    def _level(cls, value: Any) -> bool | str | None:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str) and value in ("high", "medium", "low", "max"):
            return value
        raise wrong("expected true, false, 'high', 'medium' or 'low'")

    @model_validator(mode="after")
    def _logprobs_first(self) -> GenerationBody:
        if self.top_logprobs and not self.logprobs:
            raise wrong("only allowed when 'logprobs' is true", "top_logprobs")
        return self

    @property
    def streams(self) -> bool:
        """Ollama streams unless told not to."""
        return self.stream is not False

    @property
    def shows_thinking(self) -> bool:
        """Whether thoughts are told apart. The model's template decides unless the caller does."""
        return self.think is not False

    def template_kwargs(self) -> dict[str, Any]:
        """What a template is told about thinking."""
        if self.think is None:
            return {}
        effort = {"reasoning_effort": self.think} if isinstance(self.think, str) else {}
        return {"enable_thinking": bool(self.think), **effort}

    def shared(self) -> dict[str, Any]:
        """Keyword arguments for `backends.types.Generation`, but for `model`."""
        options = self.options or Options()
        wanted = options.num_predict
        return {
            "sampling": options.sampling(),
            "max_tokens": wanted if wanted is not None and wanted > 0 else None,
            "stop": options.stop or (),
            "json_schema": self.format,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }


def duration_s(value: Any) -> float:
    """Go's durations (`5m`, `1h30m`, `-1s`), or seconds. Raises (as a validator does)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    if isinstance(value, str) and len(value) <= 64:
        sign, text = (-1, value[1:]) if value[:1] == "-" else (1, value.removeprefix("+"))
        if re.fullmatch(r"\d+", text):  # Ollama takes a number in a string for seconds, too
            return float(sign * int(text))
        parts = _DURATION_PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)
    raise wrong("expected a duration such as '5m', or seconds")


def content(text: str, images: tuple[ImagePart, ...]) -> str | tuple[Part, ...]:
    """A message's text, with its images before it."""
    return (*images, TextPart(text)) if images else text


def pictures(value: Any) -> tuple[ImagePart, ...]:
    """A list of images in base64. Raises (as a validator does)."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong("expected a list of images in base64", kind="invalid_type")
    for number, item in enumerate(value):
        if not isinstance(item, str):
            raise wrong("expected an image in base64", number, kind="invalid_type")
    return tuple(inline(item, number) for number, item in enumerate(value))
