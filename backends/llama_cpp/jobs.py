"""From a request to what the engine can take: rendered, tokenized, checked, its samplers compiled.

Runs on the prepare thread, so nothing here may touch a context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.chat.jobs import AnswerJob, EmbeddingJob
from backends.chat.prompts import Prompts, seed_of
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
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RankRequest,
    Request,
    TokenizeRequest,
    Tool,
    Unsupported,
)

if TYPE_CHECKING:  # the library behind it may not be there
    from backends.llama_cpp.vision import Pictures, Sight


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
        self._prompts = Prompts(model, template, bos=model.bos, context_tokens=context_tokens, sees=sight is not None)
        self._end_tokens = tuple(model.end_tokens())

    def prepare(self, call: int, request: Request) -> Job:
        """The job for `request`. Raises CallerError or a child of it."""
        match request:
            case TokenizeRequest() | DetokenizeRequest():
                return self._prompts.answer(call, request)
            case EmbeddingRequest():
                if self._ranks:
                    raise Unsupported(f"Model {request.model} ranks; it does not embed.", param="model")
                return self._prompts.embedding(call, request)
            case RankRequest():
                if not self._ranks:
                    raise Unsupported(f"Model {request.model} does not rank.", param="model")
                pairs = (self._model.pair(request.query, document) for document in request.documents)
                return EmbeddingJob(call, tuple(self._prompts.fitting(pair, "documents") for pair in pairs))
            case _:
                return self._generation(call, request)

    def _generation(self, call: int, request: ChatRequest | CompletionRequest) -> GenerationJob:
        if not self._generates:
            raise Unsupported(f"Model {request.model} embeds text; it does not generate any.", param="model")
        self._prompts.check(request)
        form, pictures = AnswerFormat(raw=True), None
        if isinstance(request, ChatRequest):
            prompt, form, pictures = self._chat_prompt(request)
        else:
            prompt = self._infill_prompt(request) if request.suffix else self._prompts.plain(request)
        limit = self._prompts.limit(request, prompt, spare=pictures.spare_cells if pictures else 0)
        samplers = self._samplers(request, prompt, form)
        texts = tuple(TextStream(request.stop) for _ in samplers)
        job = GenerationJob(
            call=call,
            prompt=prompt,
            resume=request.resume,
            limit=limit,
            logprobs=request.logprobs,
            echo=self._prompts.echo(request, prompt),
            samplers=samplers,
            texts=texts,
            form=form,
            shown={} if form.raw else self._prompts.shown,
            pictures=pictures,
        )
        for token in request.resume:
            samplers[0].accept(token)
            texts[0].push(job.piece(self._model, token))
        return job

    def _chat_prompt(self, request: ChatRequest) -> tuple[list[int], AnswerFormat, Pictures | None]:
        messages, images = self._sight.mark(request.messages) if self._sight else (request.messages, [])
        text, add_special, form = self._prompts.render(request, messages)
        if self._sight and images:
            tokens, pictures = self._sight.prompt(text, images, add_special=add_special)
            return tokens, form, pictures
        return self._model.tokenize(text, add_special=add_special, parse_special=True), form, None

    def _infill_prompt(self, request: CompletionRequest) -> list[int]:
        marks = self._model.infill_tokens()
        if marks is None:
            raise Unsupported(f"Model {request.model} cannot insert text before a suffix.", param="suffix")
        prefix = self._prompts.ids(request.prompt, "prompt", add_special=False, parse_special=False)
        before, after, between = marks
        bos = self._model.tokenize("", add_special=True, parse_special=False)
        rest = self._model.tokenize(request.suffix or "", add_special=False, parse_special=False)
        return [*bos, before, *prefix, after, *rest, between]

    def _samplers(
        self, request: ChatRequest | CompletionRequest, prompt: list[int], form: AnswerFormat
    ) -> tuple[Sampler, ...]:
        grammar, param = self._grammar(request, form)
        if grammar is not None and request.ignore_eos:
            raise CallerError("A grammar decides itself where the answer ends.", param="ignore_eos")
        seed = seed_of(request)
        samplers = tuple(
            Sampler(
                self._model,
                request.sampling,
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


def _callable_tools(request: ChatRequest) -> tuple[Tool, ...]:
    allowed = request.tool_choice.allowed
    return tuple(tool for tool in request.tools if not allowed or tool.name in allowed)
