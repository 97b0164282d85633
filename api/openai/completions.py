"""POST /v1/completions. OpenAI API reference, "Create completion" (legacy)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from quart import Blueprint, Response

from api import calls, sse
from api.openai.generation import MAX_INT, GenerationFields
from api.openai.render import COMPLETION, Answer, StreamRenderer, wants_timings
from api.parse import parse, wrong
from api.services import Services, json_response
from backends.types import Capability, CompletionRequest

PATHS = ("/v1/completions", "/completions", "/v1/engines/<path:model>/completions")
MAX_PROMPTS = 2048
MAX_CHOICES = 2048


class CompletionBody(GenerationFields):
    """The body of the request."""

    prompt: Any
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: int | None = None
    suffix: str | None = None

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, value: Any) -> tuple[str | tuple[int, ...], ...]:
        return texts_or_tokens(value, MAX_PROMPTS)

    @model_validator(mode="after")
    def _not_supported(self) -> CompletionBody:
        if self.suffix:
            raise wrong("inserting before a suffix is not supported yet", "suffix", kind="unsupported_parameter")
        if len(self.prompt) * self.choices > MAX_CHOICES:
            raise wrong(f"at most {MAX_CHOICES} choices are allowed in all, prompts times 'n'", "n")
        if self.best_of is not None and self.best_of != self.choices:
            raise wrong("must equal 'n': ranking of candidates is not supported", "best_of", kind="unsupported_value")
        return self

    def requests(self, model: str) -> list[CompletionRequest]:
        """What an engine is asked, prompt by prompt."""
        shared = self.shared()
        return [
            CompletionRequest(
                model=model,
                prompt=prompt,
                echo=bool(self.echo),
                max_tokens=self.max_tokens,
                logprobs=self.logprobs,
                **shared,
            )
            for prompt in self.prompt
        ]


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_completions", __name__)

    async def create_completion(model: str | None = None) -> Response:
        """Continue one prompt or several, whole or as a stream of events."""
        body = await parse(CompletionBody)
        name = services.model(body.model, Capability.COMPLETION)
        requests = body.requests(name)
        answer = Answer(
            shape=COMPLETION,
            model=name,
            version=services.options.version,
            choices=body.choices * len(requests),
            logprobs=body.logprobs,
            timings=wants_timings(),
        )
        if body.stream:
            renderer = StreamRenderer(answer, include_usage=body.include_usage)
            return await sse.stream(services.dispatcher, requests, services.context(), renderer)
        async with calls.running(services.dispatcher, requests, services.context()) as call:
            choices = await calls.collect(call, answer.choices)
        return json_response(answer.whole(choices, call.usage))

    for path in PATHS:
        routes.add_url_rule(path, view_func=create_completion, methods=["POST"])
    return routes


def texts_or_tokens(value: Any, limit: int) -> tuple[str | tuple[int, ...], ...]:
    """`string | [string] | [int] | [[int]]` as a list of prompts, none of them empty lists of tokens.

    Raises (as a validator does) naming the first item that is wrong. `limit` is the most prompts allowed.
    """
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise wrong("expected a string, a list of strings, or token ids", kind="invalid_type")
    if not value:
        raise wrong("must not be empty")
    if isinstance(value[0], int):
        return (_tokens(value),)
    if len(value) > limit:
        raise wrong(f"at most {limit} items are allowed, got {len(value)}")
    if isinstance(value[0], str):
        for number, item in enumerate(value):
            if not isinstance(item, str):
                raise wrong("expected a string", number, kind="invalid_type")
        return tuple(value)
    for number, item in enumerate(value):
        if not isinstance(item, list):
            raise wrong("expected a list of token ids", number, kind="invalid_type")
    return tuple(_tokens(item, number) for number, item in enumerate(value))


def _tokens(value: list[Any], *path: int) -> tuple[int, ...]:
    if not value:
        raise wrong("must not be empty", *path)
    for number, item in enumerate(value):
        # bool is an int to Python, not to JSON
        if type(item) is not int:
            raise wrong("expected a token id", *path, number, kind="invalid_type")
        if not 0 <= item <= MAX_INT:
            raise wrong("not a token id", *path, number)
    return tuple(value)
