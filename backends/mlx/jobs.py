"""From a request to what the engine can take: rendered, tokenized, checked. Runs on the prepare thread."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from backends.chat.family import shown_tokens
from backends.chat.template import ChatTemplate
from backends.mlx.recipe import Recipe, recipe
from backends.textstream import TextStream
from backends.types import (
    AnswerFormat,
    CallerError,
    ChatRequest,
    Chunk,
    CompletionRequest,
    ContextOverflow,
    DetokenizedText,
    DetokenizeRequest,
    EmbeddingRequest,
    ImagePart,
    RankRequest,
    Request,
    TextPart,
    TokenIds,
    TokenizeRequest,
    Unsupported,
)


class Vocabulary(Protocol):
    """As much of backends/mlx/words.py as is asked here."""

    size: int

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def detokenize(self, tokens: Sequence[int]) -> str: ...

    def check(self, tokens: Iterable[int], param: str) -> None: ...


@dataclass(frozen=True, slots=True)
class AnswerJob:
    """A call whose answer is already known."""

    call: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """One vector for each of the token lists."""

    call: int
    inputs: tuple[list[int], ...]


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
        self._template = template
        self._bos = bos
        self._end_tokens = end_tokens
        self._embeds = embeds
        self._context_tokens = context_tokens
        self._shown = shown_tokens(words, template.calls) if template is not None else {}

    def prepare(self, call: int, request: Request) -> Job:
        """The job for `request`. Raises CallerError or a child of it."""
        match request:
            case TokenizeRequest():
                tokens = self._words.tokenize(
                    request.content, add_special=request.add_special, parse_special=request.parse_special
                )
                return AnswerJob(call, TokenIds(tuple(tokens)))
            case DetokenizeRequest():
                return AnswerJob(call, DetokenizedText(self._words.detokenize(request.tokens)))
            case RankRequest():
                raise Unsupported(f"Model {request.model} does not rank.", param="model")
            case EmbeddingRequest():
                if not self._embeds:
                    raise Unsupported(f"Model {request.model} does not embed.", param="model")
                return EmbeddingJob(call, tuple(self._embedding_input(item) for item in request.inputs))
            case _:
                return self._generation(call, request)

    def _embedding_input(self, item: str | tuple[int, ...]) -> list[int]:
        tokens = self._tokens(item, "input", parse_special=False)
        if not tokens:
            raise CallerError("An input to embed is empty.", param="input")
        if len(tokens) > self._context_tokens:
            raise ContextOverflow(
                f"An input has {len(tokens)} tokens; this model embeds at most {self._context_tokens}.", param="input"
            )
        return tokens

    def _tokens(self, item: str | tuple[int, ...], param: str, *, parse_special: bool) -> list[int]:
        if isinstance(item, str):
            return self._words.tokenize(item, add_special=True, parse_special=parse_special)
        self._words.check(item, param)
        return list(item)

    def _generation(self, call: int, request: ChatRequest | CompletionRequest) -> GenerationJob:
        if request.resume and request.n != 1:
            raise CallerError("A resumed generation has one choice.", param="resume")
        self._words.check(request.resume, "resume")
        self._refuse_grammars(request)
        form = AnswerFormat(raw=True)
        if isinstance(request, ChatRequest):
            prompt, form = self._chat_prompt(request)
        else:
            prompt = self._plain_prompt(request)
        room = self._context_tokens - len(prompt)
        if room <= 0:
            raise ContextOverflow(
                f"This model's context is {self._context_tokens} tokens; the prompt alone has {len(prompt)}.",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        self._words.check(request.sampling.logit_bias or (), "logit_bias")
        seed = next((seed for seed in (request.sampling.seed, request.salt) if seed is not None), secrets.randbits(63))
        return GenerationJob(
            call=call,
            prompt=prompt,
            resume=request.resume,
            limit=room if request.max_tokens is None else min(room, request.max_tokens),
            logprobs=request.logprobs,
            echo=self._echo(request, prompt),
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
            shown={} if form.raw else self._shown,
        )

    @staticmethod
    def _refuse_grammars(request: ChatRequest | CompletionRequest) -> None:
        if request.grammar is not None:
            raise Unsupported("The mlx backend has no grammars.", param="grammar")
        if request.json_schema is not None:
            raise Unsupported("The mlx backend cannot hold an answer to a schema.", param="response_format")
        if isinstance(request, ChatRequest) and request.tools and request.tool_choice.mode == "required":
            raise Unsupported("The mlx backend cannot make a model call a tool; it may, with `auto`.", param="tools")

    def _chat_prompt(self, request: ChatRequest) -> tuple[list[int], AnswerFormat]:
        template = self._template
        if template is None:
            raise Unsupported(
                f"Model {request.model} has no chat template; set template.chat in its YAML, or use completions.",
                param="model",
            )
        for number, message in enumerate(request.messages):
            for place, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
                if not isinstance(part, TextPart):
                    kind = "images" if isinstance(part, ImagePart) else "sound"
                    raise Unsupported(
                        f"Model {request.model} understands no {kind}.", param=f"messages[{number}].content[{place}]"
                    )
        tools = request.tools if request.tool_choice.mode != "none" else ()
        text = template.render(request.messages, request.template_kwargs, tools, continues=request.continues)
        # Many templates write the token of the beginning themselves; it must not stand there twice.
        add_special = not (self._bos and text.startswith(self._bos))
        tokens = self._words.tokenize(text, add_special=add_special, parse_special=True)
        thinking = template.think is not None and text.rstrip().endswith(template.think[0])
        return _not_empty(tokens, "messages"), AnswerFormat(template.calls, template.think, thinking)

    def _plain_prompt(self, request: CompletionRequest) -> list[int]:
        if request.suffix:
            raise Unsupported("The mlx backend cannot insert text before a suffix.", param="suffix")
        tokens = self._tokens(request.prompt, "prompt", parse_special=True)
        if not tokens and isinstance(request.prompt, str) and self._bos:
            tokens = self._words.tokenize(self._bos, add_special=False, parse_special=True)
        return _not_empty(tokens, "prompt")

    def _echo(self, request: ChatRequest | CompletionRequest, prompt: list[int]) -> str | None:
        if not isinstance(request, CompletionRequest) or not request.echo or request.resume:
            return None
        return request.prompt if isinstance(request.prompt, str) else self._words.detokenize(prompt)


def _not_empty(tokens: list[int], param: str) -> list[int]:
    if not tokens:
        raise CallerError("The prompt is empty.", param=param)
    return tokens
