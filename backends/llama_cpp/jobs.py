"""From a request to what the engine can take: rendered, tokenized, checked, its samplers compiled.

Runs on the prepare thread, so nothing here may touch a context.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.chat.family import shown_tokens
from backends.chat.template import ChatTemplate
from backends.llama_cpp.native import Model
from backends.llama_cpp.sampler import Sampler
from backends.llama_cpp.schema import schema_grammar
from backends.llama_cpp.toolgrammar import thoughtful, tool_grammar
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
    Tool,
    Unsupported,
)

if TYPE_CHECKING:  # the library behind it may not be there
    from backends.llama_cpp.vision import Pictures, Sight


@dataclass(frozen=True, slots=True)
class AnswerJob:
    """A call whose answer is already known."""

    call: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """One vector for each of the token lists, or one score."""

    call: int
    inputs: tuple[list[int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class GenerationJob:
    """`len(samplers)` choices of one prompt."""

    call: int
    prompt: list[int]
    resume: tuple[int, ...]
    limit: int  # tokens of one choice, resumed ones included
    logprobs: int | None
    echo: str | None
    samplers: tuple[Sampler, ...]
    texts: tuple[TextStream, ...]
    form: AnswerFormat
    shown: Mapping[int, bytes]  # control tokens that are shown all the same
    pictures: Pictures | None = None  # in the prompt

    def piece(self, model: Model, token: int) -> bytes:
        """The bytes that `token` adds to the answer."""
        return self.shown.get(token) or model.piece(token)


Job = AnswerJob | EmbeddingJob | GenerationJob


class Preparer:
    """Makes jobs of requests for one opened model."""

    def __init__(
        self,
        model: Model,
        template: ChatTemplate | None,
        *,
        generates: bool,
        context_tokens: int,
        sight: Sight | None = None,
        ranks: bool = False,
    ) -> None:
        """`sight`: how it sees images, if it does. `ranks`: its answer to an input is a score."""
        self._model = model
        self._ranks = ranks
        self._sight = sight
        self._template = template
        self._generates = generates
        self._context_tokens = context_tokens
        self._end_tokens = tuple(model.end_tokens())
        self._shown = shown_tokens(model, template.calls) if template is not None else {}

    def prepare(self, call: int, request: Request) -> Job:
        """The job for `request`. Raises CallerError or a child of it."""
        match request:
            case TokenizeRequest():
                tokens = self._model.tokenize(
                    request.content, add_special=request.add_special, parse_special=request.parse_special
                )
                return AnswerJob(call, TokenIds(tuple(tokens)))
            case DetokenizeRequest():
                return AnswerJob(call, DetokenizedText(self._model.detokenize(request.tokens)))
            case EmbeddingRequest():
                if self._ranks:
                    raise Unsupported(f"Model {request.model} ranks; it does not embed.", param="model")
                return EmbeddingJob(call, tuple(self._embedding_input(item) for item in request.inputs))
            case RankRequest():
                if not self._ranks:
                    raise Unsupported(f"Model {request.model} does not rank.", param="model")
                pairs = tuple(self._model.pair(request.query, document) for document in request.documents)
                return EmbeddingJob(call, tuple(self._fitting(pair, "documents") for pair in pairs))
            case _:
                return self._generation(call, request)

    def _embedding_input(self, item: str | tuple[int, ...]) -> list[int]:
        if isinstance(item, str):
            tokens = self._model.tokenize(item, add_special=True, parse_special=False)
        else:
            self._model.check_tokens(item, "input")
            tokens = list(item)
        if not tokens:
            raise CallerError("An input to embed is empty.", param="input")
        return self._fitting(tokens, "input")

    def _fitting(self, tokens: list[int], param: str) -> list[int]:
        if len(tokens) > self._context_tokens:
            raise ContextOverflow(
                f"An input has {len(tokens)} tokens; this model takes at most {self._context_tokens}.", param=param
            )
        return tokens

    def _generation(self, call: int, request: ChatRequest | CompletionRequest) -> GenerationJob:
        if not self._generates:
            raise Unsupported(f"Model {request.model} embeds text; it does not generate any.", param="model")
        if request.resume and request.n != 1:
            raise CallerError("A resumed generation has one choice.", param="resume")
        self._model.check_tokens(request.resume, "resume")
        form, pictures = AnswerFormat(raw=True), None
        if isinstance(request, ChatRequest):
            prompt, form, pictures = self._chat_prompt(request)
        else:
            prompt = self._plain_prompt(request)
        taken = len(prompt) + (pictures.spare_cells if pictures else 0)
        room = self._context_tokens - taken
        if room <= 0:
            raise ContextOverflow(
                f"This model's context is {self._context_tokens} tokens; the prompt alone has {taken}.",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        samplers = self._samplers(request, prompt, form)
        texts = tuple(TextStream(request.stop) for _ in samplers)
        job = GenerationJob(
            call=call,
            prompt=prompt,
            resume=request.resume,
            limit=room if request.max_tokens is None else min(room, request.max_tokens),
            logprobs=request.logprobs,
            echo=self._echo(request, prompt),
            samplers=samplers,
            texts=texts,
            form=form,
            shown={} if form.raw else self._shown,
            pictures=pictures,
        )
        for token in request.resume:
            samplers[0].accept(token)
            texts[0].push(job.piece(self._model, token))
        return job

    def _chat_prompt(self, request: ChatRequest) -> tuple[list[int], AnswerFormat, Pictures | None]:
        template = self._template
        if template is None:
            raise Unsupported(
                f"Model {request.model} has no chat template; set template.chat in its YAML, or use completions.",
                param="model",
            )
        for number, message in enumerate(request.messages):
            for place, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
                if not isinstance(part, TextPart) and not (self._sight and isinstance(part, ImagePart)):
                    kind = "images" if isinstance(part, ImagePart) else "sound"
                    raise Unsupported(
                        f"Model {request.model} understands no {kind}.", param=f"messages[{number}].content[{place}]"
                    )
        tools = request.tools if request.tool_choice.mode != "none" else ()
        messages, images = self._sight.mark(request.messages) if self._sight else (request.messages, [])
        text = template.render(messages, request.template_kwargs, tools, continues=request.continues)
        # Many templates write the token of the beginning themselves; it must not stand there twice.
        bos = self._model.bos
        add_special = not (bos and text.startswith(bos))
        pictures = None
        if self._sight and images:
            tokens, pictures = self._sight.prompt(text, images, add_special=add_special)
        else:
            tokens = self._model.tokenize(text, add_special=add_special, parse_special=True)
        thinking = template.think is not None and text.rstrip().endswith(template.think[0])
        form = AnswerFormat(template.calls, template.think, thinking, raw=request.grammar is not None)
        return self._not_empty(tokens, "messages"), form, pictures

    def _infill_prompt(self, request: CompletionRequest, suffix: str) -> list[int]:
        marks = self._model.infill_tokens()
        if marks is None:
            raise Unsupported(f"Model {request.model} cannot insert text before a suffix.", param="suffix")
        if isinstance(request.prompt, str):
            prefix = self._model.tokenize(request.prompt, add_special=False, parse_special=False)
        else:
            self._model.check_tokens(request.prompt, "prompt")
            prefix = list(request.prompt)
        before, after, between = marks
        bos = self._model.tokenize("", add_special=True, parse_special=False)
        rest = self._model.tokenize(suffix, add_special=False, parse_special=False)
        return [*bos, before, *prefix, after, *rest, between]

    def _plain_prompt(self, request: CompletionRequest) -> list[int]:
        if request.suffix:
            return self._infill_prompt(request, request.suffix)
        if not isinstance(request.prompt, str):
            self._model.check_tokens(request.prompt, "prompt")
            return self._not_empty(list(request.prompt), "prompt")
        tokens = self._model.tokenize(request.prompt, add_special=True, parse_special=True)
        if not tokens and self._model.bos:
            tokens = self._model.tokenize(self._model.bos, add_special=False, parse_special=True)
        return self._not_empty(tokens, "prompt")

    @staticmethod
    def _not_empty(tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise CallerError("The prompt is empty.", param=param)
        return tokens

    def _echo(self, request: ChatRequest | CompletionRequest, prompt: list[int]) -> str | None:
        if not isinstance(request, CompletionRequest) or not request.echo or request.resume:
            return None
        return request.prompt if isinstance(request.prompt, str) else self._model.detokenize(prompt)

    def _samplers(
        self, request: ChatRequest | CompletionRequest, prompt: list[int], form: AnswerFormat
    ) -> tuple[Sampler, ...]:
        grammar, param = self._grammar(request, form)
        if grammar is not None and request.ignore_eos:
            raise CallerError("A grammar decides itself where the answer ends.", param="ignore_eos")
        sampling = request.sampling
        seed = _first_known(sampling.seed, request.salt)
        samplers = tuple(
            Sampler(
                self._model,
                sampling,
                seed=seed,
                choice=request.first_choice + choice,
                grammar=grammar,
                grammar_param=param,
                banned=self._end_tokens if request.ignore_eos else (),
            )
            for choice in range(request.n)
        )
        for sampler in samplers:
            sampler.see_prompt([token for token in prompt if token >= 0])  # below are images
        return samplers

    def _grammar(self, request: ChatRequest | CompletionRequest, form: AnswerFormat) -> tuple[str | None, str]:
        """What constrains the answer, and the parameter that asks for it."""
        if request.grammar is not None:
            if request.json_schema is not None:
                raise CallerError("A grammar and a JSON schema exclude each other.", param="grammar")
            return request.grammar, "grammar"
        schema = None if request.json_schema is None else json.dumps(request.json_schema or {"type": "object"})
        if isinstance(request, ChatRequest) and request.tools and self._template is not None:
            choice = request.tool_choice
            forced = choice.mode == "required"
            if forced or (choice.mode == "auto" and schema is not None):
                grammar = tool_grammar(
                    self._template.source,
                    form,
                    _callable_tools(request),
                    parallel=choice.parallel,
                    schema=None if forced else schema,
                )
                return grammar, "tools"
        if schema is None:
            return None, "grammar"
        return thoughtful(schema_grammar(schema), form), "response_format"


def _first_known(*seeds: int | None) -> int:
    return next((seed for seed in seeds if seed is not None), secrets.randbits(63))


def _callable_tools(request: ChatRequest) -> tuple[Tool, ...]:
    allowed = request.tool_choice.allowed
    return tuple(tool for tool in request.tools if not allowed or tool.name in allowed)
