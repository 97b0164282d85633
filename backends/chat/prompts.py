"""From a request to a prompt, as far as every engine does it alike: rendered, tokenized, checked."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Protocol

from backends.chat.family import shown_tokens
from backends.chat.jobs import AnswerJob, EmbeddingJob
from backends.chat.template import ChatTemplate
from backends.types import (
    AnswerFormat,
    CallerError,
    ChatRequest,
    CompletionRequest,
    ContextOverflow,
    DetokenizedText,
    DetokenizeRequest,
    EmbeddingRequest,
    ImagePart,
    Message,
    TextPart,
    TokenIds,
    TokenizeRequest,
    Unsupported,
)


class Vocabulary(Protocol):
    """As much of a model as is asked here."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids. Raises CallerError for a foreign one."""

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        """Raises CallerError, naming `param`, unless all ids are in the vocabulary."""


class Prompts:
    """Of one opened model. What is raised here is the caller's fault: CallerError or a child of it."""

    def __init__(
        self, words: Vocabulary, template: ChatTemplate | None, *, bos: str, context_tokens: int, sees: bool = False
    ) -> None:
        """`sees`: it understands images."""
        self._words = words
        self._template = template
        self._bos = bos
        self._context_tokens = context_tokens
        self._sees = sees
        self.shown = shown_tokens(words, template.calls) if template is not None else {}
        """Control tokens that are shown all the same."""

    def answer(self, call: int, request: TokenizeRequest | DetokenizeRequest) -> AnswerJob:
        """What can be answered at once."""
        if isinstance(request, DetokenizeRequest):
            return AnswerJob(call, DetokenizedText(self._words.detokenize(request.tokens)))
        tokens = self._words.tokenize(
            request.content, add_special=request.add_special, parse_special=request.parse_special
        )
        return AnswerJob(call, TokenIds(tuple(tokens)))

    def embedding(self, call: int, request: EmbeddingRequest) -> EmbeddingJob:
        """Inputs to embed, none of them empty or too long."""
        inputs = tuple(self.ids(item, "input", add_special=True, parse_special=False) for item in request.inputs)
        if not all(inputs):
            raise CallerError("An input to embed is empty.", param="input")
        return EmbeddingJob(call, tuple(self.fitting(tokens, "input") for tokens in inputs))

    def fitting(self, tokens: list[int], param: str) -> list[int]:
        """An input that is not too long."""
        if len(tokens) > self._context_tokens:
            raise ContextOverflow(
                f"An input has {len(tokens)} tokens; this model takes at most {self._context_tokens}.", param=param
            )
        return tokens

    def ids(self, item: str | tuple[int, ...], param: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """The token ids of a text, or those that were given, checked."""
        if isinstance(item, str):
            return self._words.tokenize(item, add_special=add_special, parse_special=parse_special)
        self._words.check_tokens(item, param)
        return list(item)

    def check(self, request: ChatRequest | CompletionRequest) -> None:
        """What of a generation can be refused before there is a prompt."""
        if request.resume and request.n != 1:
            raise CallerError("A resumed generation has one choice.", param="resume")
        self._words.check_tokens(request.resume, "resume")
        if not isinstance(request, ChatRequest):
            return
        if self._template is None:
            raise Unsupported(
                f"Model {request.model} has no chat template; set template.chat in its YAML, or use completions.",
                param="model",
            )
        for number, message in enumerate(request.messages):
            for place, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
                if not isinstance(part, TextPart) and not (self._sees and isinstance(part, ImagePart)):
                    kind = "images" if isinstance(part, ImagePart) else "sound"
                    raise Unsupported(
                        f"Model {request.model} understands no {kind}.", param=f"messages[{number}].content[{place}]"
                    )

    def render(self, request: ChatRequest, messages: Sequence[Message]) -> tuple[str, bool, AnswerFormat]:
        """The text of a conversation that was checked, whether the token of the beginning is to be added, and how to
        read the answer. `messages`: in place of the request's own."""
        template = self._template
        assert template is not None
        tools = request.tools if request.tool_choice.mode != "none" else ()
        text = template.render(messages, request.template_kwargs, tools, continues=request.continues)
        # Many templates write the token of the beginning themselves; it must not stand there twice.
        add_special = not (self._bos and text.startswith(self._bos))
        thinking = template.think is not None and text.rstrip().endswith(template.think[0])
        form = AnswerFormat(template.calls, template.think, thinking, raw=request.grammar is not None)
        return text, add_special, form

    def plain(self, request: CompletionRequest) -> list[int]:
        """The prompt of a completion; that of none is the token of the beginning."""
        tokens = self.ids(request.prompt, "prompt", add_special=True, parse_special=True)
        if not tokens and isinstance(request.prompt, str) and self._bos:
            tokens = self._words.tokenize(self._bos, add_special=False, parse_special=True)
        return tokens

    def limit(self, request: ChatRequest | CompletionRequest, prompt: Sequence[int], *, spare: int = 0) -> int:
        """How many tokens the answer may have. `spare`: what the prompt takes of the context beside its tokens."""
        param = "messages" if isinstance(request, ChatRequest) else "prompt"
        if not prompt:
            raise CallerError("The prompt is empty.", param=param)
        taken = len(prompt) + spare
        room = self._context_tokens - taken
        if room <= 0:
            raise ContextOverflow(
                f"This model's context is {self._context_tokens} tokens; the prompt alone has {taken}.", param=param
            )
        return room if request.max_tokens is None else min(room, request.max_tokens)

    def echo(self, request: ChatRequest | CompletionRequest, prompt: Sequence[int]) -> str | None:
        """What is shown of the prompt ahead of the answer, if it is to be."""
        if not isinstance(request, CompletionRequest) or not request.echo or request.resume:
            return None
        return request.prompt if isinstance(request.prompt, str) else self._words.detokenize(prompt)


def seed_of(request: ChatRequest | CompletionRequest) -> int:
    """The caller's, else the one that the entry node gave it, else any."""
    known = (seed for seed in (request.sampling.seed, request.salt) if seed is not None)
    return next(known, secrets.randbits(63))
