"""One choice of a generation, from its prompt to its end: what is processed, drawn and shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backends.engine import Outlet
from backends.llama_cpp.jobs import GenerationJob
from backends.llama_cpp.native import Floats, Model
from backends.llama_cpp.sampler import Sampler, token_logprob
from backends.textstream import TextStream
from backends.types import Finished, FinishReason, Text, TokenLogprob

if TYPE_CHECKING:  # the library behind it may not be there
    from backends.llama_cpp.vision import Picture


@dataclass(slots=True, eq=False)
class Choice:
    """`tokens` must be in the cache before the next draw; the first `processed` of them are."""

    job: GenerationJob
    index: int
    sampler: Sampler
    text: TextStream
    tokens: list[int]  # prompt, resumed and drawn
    slot: int | None = None
    processed: int = 0
    started: bool = False  # the first token has been drawn: from now on one token a step
    waits_for_fork: bool = False
    finished: bool = False
    echoed: list[TokenLogprob] = field(default_factory=list)

    @property
    def position(self) -> int:
        """How many tokens of the answer there are, resumed ones included."""
        return len(self.tokens) - len(self.job.prompt)

    @property
    def before_picture(self) -> Picture | None:
        """The picture that is to be processed next, if there is one at this very place."""
        picture = self.job.pictures.next(self.processed) if self.job.pictures else None
        return picture if picture is not None and picture.start == self.processed else None

    @property
    def text_left(self) -> int:
        """Tokens to be processed up to the next picture, or in all."""
        picture = self.job.pictures.next(self.processed) if self.job.pictures else None
        return (len(self.tokens) if picture is None else picture.start) - self.processed

    @property
    def wants_every_logit(self) -> bool:
        """Whether the prompt's own log-probabilities are to be shown."""
        return self.job.echo is not None and self.job.logprobs is not None and self.processed < len(self.job.prompt)

    def note_prompt_logits(self, model: Model, logits: Floats, position: int) -> None:
        """Remember the log-probability of the prompt's token after `position`."""
        if self.job.logprobs is not None and position + 1 < len(self.job.prompt):
            self.echoed.append(token_logprob(model, logits, self.job.prompt[position + 1], self.job.logprobs))

    def show_echo(self, model: Model, outlet: Outlet) -> None:
        """Send the prompt itself, where it was asked for."""
        if self.job.echo is None:
            return
        first = self.job.prompt[0]
        logprobs = () if self.job.logprobs is None else (TokenLogprob(first, model.piece(first), None), *self.echoed)
        outlet.chunk(self.job.call, Text(self.index, self.job.echo, (), logprobs))

    def draw(self, model: Model, context: object, index: int, logits: Floats, outlet: Outlet) -> None:
        """Draw the next token from the logits of batch position `index`, and send what may be shown."""
        self.started = True
        if self.text.stop is not None:  # with the last of the resumed tokens
            self._end("stop", self.text.stop, outlet)
            return
        if self.position >= self.job.limit:
            self._finish("length", None, outlet)
            return
        token = self.sampler.sample(context, index, logits, self.position)
        if model.is_end(token):
            self._finish("stop", None, outlet)
            return
        self.tokens.append(token)
        shown = self.text.push(self.job.piece(model, token))
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.job.logprobs is not None:
            logprobs = (token_logprob(model, logits, token, self.job.logprobs),)
        outlet.chunk(self.job.call, Text(self.index, shown.text, (token,), logprobs))
        if shown.stop is not None:
            self._end("stop", shown.stop, outlet)
        elif self.position >= self.job.limit:
            self._finish("length", None, outlet)

    def _finish(self, reason: FinishReason, stop: str | None, outlet: Outlet) -> None:
        rest = self.text.finish()
        if rest.text:
            outlet.chunk(self.job.call, Text(self.index, rest.text))
        self._end("stop" if rest.stop else reason, rest.stop or stop, outlet)

    def _end(self, reason: FinishReason, stop: str | None, outlet: Outlet) -> None:
        self.finished = True
        outlet.chunk(self.job.call, Finished(self.index, reason, stop))
