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
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: str | None = None

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, value: Any) -> tuple[str | tuple[int, ...], ...]:
        return texts_or_tokens(value, MAX_PROMPTS)

    @model_validator(mode="after")
    def _fits(self) -> CompletionBody:
        if self.suffix and self.echo:
            raise wrong("cannot be combined with 'echo'", "suffix")
        if self.best_of is not None:
            if self.best_of < self.choices:
                raise wrong("must not be less than 'n'", "best_of")
            if self.stream and self.best_of > self.choices:
                raise wrong("candidates cannot be ranked before they are complete: not allowed in a stream", "best_of")
        if len(self.prompt) * self.candidates > MAX_CHOICES:
            field = "n" if self.candidates == self.choices else "best_of"
            raise wrong(f"at most {MAX_CHOICES} choices are allowed in all, prompts times '{field}'", field)
        return self

    @property
    def candidates(self) -> int:
        """How many answers each prompt gets before the best are picked."""
        return self.best_of or self.choices

    def requests(self, model: str) -> list[CompletionRequest]:
        """What an engine is asked, prompt by prompt."""
        shared = self.shared() | {"n": self.candidates}
        # Candidates are ranked by their log-probabilities, shown or not.
        logprobs = 0 if self.logprobs is None and self.candidates > self.choices else self.logprobs
        return [
            CompletionRequest(
                model=model,
                prompt=prompt,
                echo=bool(self.echo),
                max_tokens=self.max_tokens,
                logprobs=logprobs,
                suffix=self.suffix or None,
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
            choices = await calls.collect(call, body.candidates * len(requests))
        return json_response(answer.whole(best(choices, body.candidates, body.choices), call.usage))

    for path in PATHS:
        routes.add_url_rule(path, view_func=create_completion, methods=["POST"])
    return routes


def best(choices: list[calls.Choice], candidates: int, wanted: int) -> list[calls.Choice]:
    """Of each prompt's `candidates` the `wanted` ones that the model found likeliest, token by token."""
    if candidates == wanted:
        return choices
    picked: list[calls.Choice] = []
    for start in range(0, len(choices), candidates):
        ranked = sorted(choices[start : start + candidates], key=lambda choice: -choice.mean_logprob)
        picked += ranked[:wanted]
    return picked


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
