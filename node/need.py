"""What a request needs, as far as routing has to know it before any tokenizer has seen it. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from backends.types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Generation,
    Part,
    RankRequest,
    Request,
    TextPart,
    capability_of,
)
from mesh.estimate import Need
from mesh.prefix import canonical, hash_chain
from mesh.transport import PeerId

CHARS_PER_TOKEN = 4.0
DEFAULT_OUTPUT_TOKENS = 128.0
_WEIGHT = 0.1  # of the newest answer in a model's average length


@dataclass(slots=True)
class OutputLengths:
    """How long answers of each model have been, on average."""

    _average: dict[str, float]

    def __init__(self) -> None:
        self._average = {}

    def expect(self, model: str) -> float:
        """Tokens of the next answer."""
        return self._average.get(model, DEFAULT_OUTPUT_TOKENS)

    def observe(self, model: str, tokens: int) -> None:
        """An answer had so many tokens."""
        average = self._average.setdefault(model, float(tokens))
        self._average[model] = average + _WEIGHT * (tokens - average)


def need_of(request: Request, expected_tokens: float, pinned: PeerId | None) -> Need:
    """`expected_tokens`: the model's usual answer; what the client allows bounds it."""
    text, tokens = _prompt(request)
    output = 0
    if isinstance(request, Generation):
        output = int(expected_tokens if request.max_tokens is None else min(expected_tokens, request.max_tokens))
    return Need(
        model=request.model,
        capability=capability_of(request).value,
        prompt_tokens=tokens or max(1, int(len(text) / CHARS_PER_TOKEN)),
        prefix=hash_chain(text, seed=request.model) if isinstance(request, Generation) else (),
        output_tokens=output,
        pinned=pinned,
        weight=request.n if isinstance(request, Generation) else 1,
    )


def _words(content: str | tuple[Part, ...]) -> str:
    """The content as far as it tells prompts apart, about as long as its tokens: an image counts as 256 of them."""
    if isinstance(content, str):
        return content
    return "\n".join(
        part.text if isinstance(part, TextPart) else 16 * hashlib.sha256(part.data).hexdigest() for part in content
    )


def _prompt(request: Request) -> tuple[str, int]:
    """The prompt's text, or the number of its tokens where it comes as ids."""
    match request:
        case ChatRequest():
            return canonical((message.role, _words(message.content)) for message in request.messages), 0
        case CompletionRequest(prompt=str(text)):
            return text, 0
        case CompletionRequest(prompt=ids):
            return " ".join(map(str, ids)), len(ids)
        case EmbeddingRequest():
            return "", sum(
                max(1, int(len(item) / CHARS_PER_TOKEN)) if isinstance(item, str) else len(item)
                for item in request.inputs
            )
        case RankRequest():
            characters = sum(len(request.query) + len(document) for document in request.documents)
            return "", max(1, int(characters / CHARS_PER_TOKEN))
        case _:
            return "", 1
