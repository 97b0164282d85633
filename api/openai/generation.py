"""The fields that chat and completions share, and what they mean to an engine.

OpenAI API reference, "Create chat completion" and "Create completion"; the extensions carry the names of LocalAI and
llama.cpp. Ranges are checked here, because engines rely on them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from api.parse import Body, check_depth, wrong
from backends.types import Sampling, Usage

MAX_INT = 2**31 - 1  # token ids and counts are 32 bits wide in every engine
MAX_STOPS = 16
MAX_STOP_CHARS = 1000  # text is held back while it may be the start of a stop string
MAX_WINDOW_TOKENS = 2**20  # beyond any context; engines set memory aside for the window
TOP_P_FLOOR = 1e-6  # OpenAI allows 0; engines want a positive number, and this keeps the best token alone

Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]

_TYPES = {"null", "boolean", "object", "array", "number", "integer", "string"}


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = None


class JsonSchemaFormat(Body):
    """`response_format.json_schema`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _sane(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_schema(value)


class ResponseFormat(Body):
    """`response_format`. `schema` beside json_object is llama.cpp's older spelling."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @field_validator("schema_")
    @classmethod
    def _sane(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return check_schema(value)

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise wrong("required when 'type' is 'json_schema'", "json_schema")
        return self


class GenerationFields(Body):
    """What chat and completions have in common."""

    model: Annotated[str, Field(max_length=512)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Any = ()
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    top_k: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repeat_penalty: Annotated[float, Field(ge=0, le=100)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=MAX_WINDOW_TOKENS)] | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=1000)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1000)] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: Any) -> tuple[str, ...]:
        items = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise wrong("expected a string or a list of strings", kind="invalid_type")
        for number, item in enumerate(items):
            if not isinstance(item, str):
                raise wrong("expected a string", number, kind="invalid_type")
            if len(item) > MAX_STOP_CHARS:
                path = (number,) if isinstance(value, list) else ()
                raise wrong(f"a stop string has at most {MAX_STOP_CHARS} characters", *path)
        if len(items) > MAX_STOPS:
            raise wrong(f"at most {MAX_STOPS} stop strings are allowed, got {len(items)}")
        return tuple(item for item in items if item)  # an empty one could stop nothing

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not re.fullmatch(r"[0-9]{1,10}", key) or int(key) > MAX_INT:
                raise wrong("keys must be token ids", key)
        return value

    @model_validator(mode="after")
    def _together(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise wrong("only allowed when 'stream' is true", "stream_options")
        if self.grammar and self.response_format is not None and self.response_format.type != "text":
            raise wrong("cannot be combined with 'response_format'", "grammar")
        return self

    @property
    def choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage event."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> Sampling:
        """The sampling fields, absent ones left to the model's own defaults."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=None if self.top_p is None else max(self.top_p, TOP_P_FLOOR),
            min_p=self.min_p,
            # LocalAI's clients write 0 for "not set" where 0 has no meaning of its own.
            typical_p=self.typical_p or None,
            repeat_penalty=self.repeat_penalty or None,
            repeat_last_n=self.repeat_last_n,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            mirostat=self.mirostat,
            mirostat_tau=self.mirostat_tau,
            mirostat_eta=self.mirostat_eta,
            seed=self.seed,
            logit_bias=None if not self.logit_bias else {int(key): bias for key, bias in self.logit_bias.items()},
        )

    def json_schema(self) -> dict[str, Any] | None:
        """The schema that the answer must satisfy; {} for any JSON object, None for any text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_schema" and wanted.json_schema is not None:
            return wanted.json_schema.schema_ or {}
        return wanted.schema_ or {}

    def shared(self) -> dict[str, Any]:
        """Keyword arguments for `backends.types.Generation`, but for `model`, `max_tokens` and `logprobs`."""
        return {
            "sampling": self.sampling(),
            "stop": self.stop,
            "n": self.choices,
            "ignore_eos": bool(self.ignore_eos),
            "grammar": self.grammar or None,
            "json_schema": self.json_schema(),
        }


def check_schema(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """Enough of a look at a JSON schema to name a gross mistake; the engine's compiler judges the rest."""
    if schema is None:
        return None
    check_depth(schema)
    kinds = schema.get("type")
    for kind in kinds if isinstance(kinds, list) else [] if kinds is None else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise wrong("not a JSON Schema type", "type")
    if not isinstance(schema.get("properties", {}), dict):
        raise wrong("expected an object", "properties")
    return schema


def usage_object(usage: Usage, *, timings: bool, reasoning_tokens: int | None = None) -> dict[str, Any]:
    """OpenAI's `usage`; with `timings` also LocalAI's two figures, in milliseconds."""
    value: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if reasoning_tokens is not None:
        value["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    if timings:
        value["timing_prompt_processing"] = usage.prefill_s * 1000
        value["timing_token_generation"] = usage.decode_s * 1000
    return value
