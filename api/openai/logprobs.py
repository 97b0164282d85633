"""Log probabilities in OpenAI's two formats: chat's list of objects, and the legacy one of completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from backends.types import TokenLogprob, TopLogprob

FLOOR = -9999.0  # what OpenAI sends for "so unlikely that it has no number"; JSON has no -Infinity


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion (object "The chat completion object", `logprobs.content`)."""
    content = [{**_entry(token), "top_logprobs": [_entry(top) for top in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


class LegacyLogprobs:
    """`choices[].logprobs` of one choice of a completion, also piece by piece in a stream.

    `text_offset` counts characters from the start of the choice's text. `top` is how many candidates were asked for.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset = 0
        # A character may be spread over several tokens; it counts where it becomes whole.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def render(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        """The object for the tokens that follow those of the last call."""
        names: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token in tokens:
            names.append(_name(token.text))
            values.append(_value(token.logprob))
            # The chosen token belongs to the candidates even when it is not among the best.
            candidates = {_name(top.text): max(top.logprob, FLOOR) for top in token.top}
            if token.logprob is not None:
                candidates.setdefault(_name(token.text), max(token.logprob, FLOOR))
            tops.append(candidates if token.logprob is not None else None)
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.text))
        return {
            "tokens": names,
            "token_logprobs": values,
            "top_logprobs": tops if self._top else None,
            "text_offset": offsets,
        }


def _entry(token: TokenLogprob | TopLogprob) -> dict[str, Any]:
    return {"token": _name(token.text), "bytes": list(token.text), "logprob": _value(token.logprob)}


def _name(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _value(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, FLOOR)
