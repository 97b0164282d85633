"""From a request to what the engine can take: rendered, tokenized, checked. Runs on the prepare thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.chat.jobs import AnswerJob, EmbeddingJob
from backends.chat.prompts import Prompts, Vocabulary, seed_of
from backends.chat.template import ChatTemplate
from backends.mlx.recipe import Recipe, recipe
from backends.textstream import TextStream
from backends.types import (
    AnswerFormat,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RankRequest,
    Request,
    TokenizeRequest,
    Unsupported,
)


@dataclass(frozen=True, slots=True, eq=False)
class GenerationJob:
    """`len(recipes)` choices of one prompt."""

    call: int
    prompt: list[int]
    resume: tuple[int, ...]
    limit: int  # tokens of one choice, resumed ones included
    logprobs: int | None
    echo: str | None
    stop: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    form: AnswerFormat
    shown: Mapping[int, bytes]  # special tokens that are shown all the same

    def text(self) -> TextStream:
        """What assembles the text of one choice."""
        return TextStream(self.stop)


Job = AnswerJob | EmbeddingJob | GenerationJob


class Preparer:
    """Makes jobs of requests for one opened model."""

    def __init__(
        self,
        words: Vocabulary,
        template: ChatTemplate | None,
        *,
        bos: str,
        end_tokens: tuple[int, ...],
        embeds: bool,
        context_tokens: int,
    ) -> None:
        self._words = words
        self._prompts = Prompts(words, template, bos=bos, context_tokens=context_tokens)
        self._end_tokens = end_tokens
        self._embeds = embeds

    def prepare(self, call: int, request: Request) -> Job:
        """The job for `request`. Raises CallerError or a child of it."""
        match request:
            case TokenizeRequest() | DetokenizeRequest():
                return self._prompts.answer(call, request)
            case RankRequest():
                raise Unsupported(f"Model {request.model} does not rank.", param="model")
            case EmbeddingRequest():
                if not self._embeds:
                    raise Unsupported(f"Model {request.model} does not embed.", param="model")
                return self._prompts.embedding(call, request)
            case _:
                return self._generation(call, request)

    def _generation(self, call: int, request: ChatRequest | CompletionRequest) -> GenerationJob:
        self._refuse(request)
        self._prompts.check(request)
        form = AnswerFormat(raw=True)
        if isinstance(request, ChatRequest):
            text, add_special, form = self._prompts.render(request, request.messages)
            prompt = self._words.tokenize(text, add_special=add_special, parse_special=True)
        else:
            prompt = self._prompts.plain(request)
        limit = self._prompts.limit(request, prompt)
        self._words.check_tokens(request.sampling.logit_bias or (), "logit_bias")
        seed = seed_of(request)
        return GenerationJob(
            call=call,
            prompt=prompt,
            resume=request.resume,
            limit=limit,
            logprobs=request.logprobs,
            echo=self._prompts.echo(request, prompt),
            stop=request.stop,
            recipes=tuple(
                recipe(
                    request.sampling,
                    seed=seed,
                    choice=request.first_choice + choice,
                    banned=self._end_tokens if request.ignore_eos else (),
                )
                for choice in range(request.n)
            ),
            form=form,
            shown={} if form.raw else self._prompts.shown,
        )

    @staticmethod
    def _refuse(request: ChatRequest | CompletionRequest) -> None:
        """What MLX cannot do."""
        if request.grammar is not None:
            raise Unsupported("The mlx backend has no grammars.", param="grammar")
        if request.json_schema is not None:
            raise Unsupported("The mlx backend cannot hold an answer to a schema.", param="response_format")
        if isinstance(request, ChatRequest):
            if request.tools and request.tool_choice.mode == "required":
                raise Unsupported(
                    "The mlx backend cannot make a model call a tool; it may, with `auto`.", param="tools"
                )
        elif request.suffix:
            raise Unsupported("The mlx backend cannot insert text before a suffix.", param="suffix")
