"""How one choice's next token is drawn: llama.cpp's sampler chain, a grammar beside it, and log-probabilities.

The chain's order is llama.cpp's own (common/sampling.cpp). The final draw is seeded by (seed, choice, position), so
that a token is a pure function of its logits and place: a resumed generation draws what the undisturbed one would
have drawn. Mirostat alone carries state that a resume cannot rebuild exactly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import llama_cpp as native
import numpy as np

from backends.llama_cpp.native import Floats, Model
from backends.types import CallerError, Sampling, TokenLogprob, TopLogprob

_CANDIDATES = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_MIN_KEEP = 1
MAX_GRAMMAR_CHARS = 256 << 10
_MAX_GRAMMAR_DEPTH = 128  # llama.cpp parses groups by recursion


class Sampler:
    """The state of one choice. Made on the prepare thread, then used on the engine's."""

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        *,
        seed: int,
        choice: int,
        grammar: str | None,
        grammar_param: str,
        banned: Sequence[int],
    ) -> None:
        """`banned` tokens are never drawn. Raises CallerError, naming `grammar_param`, for a grammar that llama.cpp
        cannot parse."""
        self._model = model
        self._seed = (seed % (1 << 64)).to_bytes(8, "little") + choice.to_bytes(4, "little")
        self._chain: Any = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        self._grammar: Any = None
        self._grammar_param = grammar_param
        self._draws = False  # whether the chain's last sampler is a `dist` to be seeded for each position
        self.penalised_tokens = _fill_chain(self._chain, model, sampling, self._position_seed(0), banned)
        if _mirostat(sampling):
            pass
        elif _temperature(sampling) > 0:
            self._draws = True
            native.llama_sampler_chain_add(self._chain, native.llama_sampler_init_dist(0))
        else:
            native.llama_sampler_chain_add(self._chain, native.llama_sampler_init_greedy())
        if grammar is not None:
            self._grammar = _compile(model, grammar, grammar_param)

    def __del__(self) -> None:
        # A call may be cancelled between prepare and submit, where nobody else knows of this sampler.
        if getattr(self, "_chain", None):
            native.llama_sampler_free(self._chain)
        if getattr(self, "_grammar", None):
            native.llama_sampler_free(self._grammar)

    def accept(self, token: int) -> None:
        """Take note of a token that was emitted elsewhere (a resumed generation). Raises CallerError if the grammar
        does not admit it."""
        if self._grammar is not None:
            if not self._admits(token):
                raise CallerError("The resumed tokens do not follow the grammar.", param="resume")
            native.llama_sampler_accept(self._grammar, token)
        native.llama_sampler_accept(self._chain, token)

    def see_prompt(self, tokens: Sequence[int]) -> None:
        """Let the penalties count the end of the prompt too, as llama.cpp does."""
        if self.penalised_tokens:
            for token in tokens[-self.penalised_tokens :]:
                native.llama_sampler_accept(self._chain, token)

    def sample(self, context: object, index: int, logits: Floats, position: int) -> int:
        """The token after batch position `index`, the `position`-th of the answer. Raises CallerError when the
        grammar admits no token at all."""
        if self._draws:
            self._reseed(position)
        if self._grammar is None:
            return int(native.llama_sampler_sample(self._chain, context, index))
        token = self._choose(logits, grammar_first=False)
        if not self._admits(token):
            if self._draws:
                self._reseed(position)
            token = self._choose(logits, grammar_first=True)
        native.llama_sampler_accept(self._grammar, token)
        native.llama_sampler_accept(self._chain, token)
        return token

    def _position_seed(self, position: int) -> int:
        digest = blake2b(position.to_bytes(4, "little"), digest_size=4, key=self._seed).digest()
        return int.from_bytes(digest, "little")

    def _reseed(self, position: int) -> None:
        last = native.llama_sampler_chain_n(self._chain) - 1
        native.llama_sampler_free(native.llama_sampler_chain_remove(self._chain, last))
        native.llama_sampler_chain_add(self._chain, native.llama_sampler_init_dist(self._position_seed(position)))

    def _choose(self, logits: Floats, *, grammar_first: bool) -> int:
        candidates = np.empty(len(logits), _CANDIDATES)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        candidates["logit"] = logits
        candidates["p"] = 0.0
        array = _as_array(candidates)
        if grammar_first:
            native.llama_sampler_apply(self._grammar, ctypes.byref(array))
            if not np.isfinite(candidates["logit"]).any():
                raise CallerError(
                    "The grammar admits no further token of this model's vocabulary.", param=self._grammar_param
                )
        native.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _admits(self, token: int) -> bool:
        candidates = np.array([(token, 1.0, 0.0)], _CANDIDATES)
        native.llama_sampler_apply(self._grammar, ctypes.byref(_as_array(candidates)))
        return bool(np.isfinite(candidates["logit"][0]))


def token_logprob(model: Model, logits: Floats, token: int, count: int) -> TokenLogprob:
    """The log-probability of `token` and of the `count` best, under the model's own distribution."""
    shifted = logits - logits.max()
    normaliser = float(np.log(np.exp(shifted, dtype=np.float64).sum()))
    best: list[int] = []
    if count:
        unsorted = np.argpartition(shifted, -count)[-count:]
        best = sorted((int(other) for other in unsorted), key=lambda other: (-float(shifted[other]), other))
    top = tuple(TopLogprob(other, model.piece(other), float(shifted[other]) - normaliser) for other in best)
    return TokenLogprob(token, model.piece(token), float(shifted[token]) - normaliser, top)


def _fill_chain(chain: Any, model: Model, sampling: Sampling, seed: int, banned: Sequence[int]) -> int:
    """Everything but the final draw; returns the window of the penalties in tokens, 0 when there are none."""

    def add(sampler: Any) -> None:
        native.llama_sampler_chain_add(chain, sampler)

    biases = dict.fromkeys(banned, -float("inf")) | (sampling.logit_bias or {})
    if biases:
        model.check_tokens(biases, "logit_bias")
        array = (native.llama_logit_bias * len(biases))(*(native.llama_logit_bias(*item) for item in biases.items()))
        add(native.llama_sampler_init_logit_bias(model.vocabulary, len(biases), array))
    window = _penalty_window(model, sampling)
    if window:
        add(
            native.llama_sampler_init_penalties(
                model.vocabulary,
                window,
                _or(sampling.repeat_penalty, 1.0),
                _or(sampling.frequency_penalty, 0.0),
                _or(sampling.presence_penalty, 0.0),
            )
        )
    if _temperature(sampling) <= 0:
        return window  # the greedy draw needs no truncation
    if mode := _mirostat(sampling):
        tau, eta = _or(sampling.mirostat_tau, 5.0), _or(sampling.mirostat_eta, 0.1)
        add(native.llama_sampler_init_temp(_temperature(sampling)))
        if mode == 1:
            add(native.llama_sampler_init_mirostat(model.vocabulary, seed, tau, eta, 100))
        else:
            add(native.llama_sampler_init_mirostat_v2(seed, tau, eta))
        return window
    if (top_k := sampling.top_k if sampling.top_k is not None else 40) > 0:
        add(native.llama_sampler_init_top_k(top_k))
    if (typical := _or(sampling.typical_p, 1.0)) < 1.0:
        add(native.llama_sampler_init_typical(typical, _MIN_KEEP))
    if (top_p := _or(sampling.top_p, 0.95)) < 1.0:
        add(native.llama_sampler_init_top_p(top_p, _MIN_KEEP))
    if (min_p := _or(sampling.min_p, 0.05)) > 0.0:
        add(native.llama_sampler_init_min_p(min_p, _MIN_KEEP))
    add(native.llama_sampler_init_temp(_temperature(sampling)))
    return window


def _penalty_window(model: Model, sampling: Sampling) -> int:
    active = (
        _or(sampling.repeat_penalty, 1.0) != 1.0
        or _or(sampling.frequency_penalty, 0.0) != 0.0
        or _or(sampling.presence_penalty, 0.0) != 0.0
    )
    last_n = sampling.repeat_last_n if sampling.repeat_last_n is not None else 64
    if not active or last_n == 0:
        return 0
    return last_n if last_n > 0 else int(native.llama_model_n_ctx_train(model.handle))


def _temperature(sampling: Sampling) -> float:
    return _or(sampling.temperature, 0.8)


def _mirostat(sampling: Sampling) -> int:
    return (sampling.mirostat or 0) if _temperature(sampling) > 0 else 0


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _compile(model: Model, grammar: str, param: str) -> Any:
    what = "grammar" if param == "grammar" else "JSON schema's grammar"
    if len(grammar) > MAX_GRAMMAR_CHARS or _depth(grammar) > _MAX_GRAMMAR_DEPTH:
        raise CallerError(f"The {what} is too large or nested too deeply.", param=param)
    if "\0" in grammar or not grammar.strip():
        raise CallerError(f"The {what} is empty or holds a NUL character.", param=param)
    compiled = native.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    if not compiled:
        raise CallerError(f"The {what} cannot be parsed; it must be GBNF with a rule named root.", param=param)
    return compiled


def _depth(grammar: str) -> int:
    depth = deepest = 0
    for character in grammar:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest


def _as_array(candidates: Any) -> Any:
    pointer = candidates.ctypes.data_as(ctypes.POINTER(native.llama_token_data))
    return native.llama_token_data_array(data=pointer, size=len(candidates), selected=-1, sorted=False)
