"""From a request to a job, as far as no model's arithmetic is needed: a vocabulary of letters stands in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import pytest

from backends import llama_cpp
from backends.types import (
    CallerError,
    ChatRequest,
    CompletionRequest,
    ContextOverflow,
    DetokenizeRequest,
    EmbeddingRequest,
    Message,
    TokenizeRequest,
    Unsupported,
)

os.environ.update(llama_cpp.backend.environment())  # where a worker would find llama.cpp; set before the import
jobs = import_module("backends.llama_cpp.jobs")
schema = import_module("backends.llama_cpp.schema")
template = import_module("backends.chat.template")

VOCABULARY = 128
CONTEXT = 16
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Letters:
    """The surface of backends.llama_cpp.native.Model that a Preparer uses before anything is sampled."""

    bos = "^"
    infill: tuple[int, int, int] | None = None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [*([ord("^")] if add_special else []), *text.encode("ascii", "replace")]

    def detokenize(self, tokens: Sequence[int]) -> str:
        self.check_tokens(tokens, "tokens")
        return bytes(tokens).decode()

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        for token in tokens:
            if not 0 <= token < VOCABULARY:
                raise CallerError(f"Token {token} is outside.", param=param)

    def infill_tokens(self) -> tuple[int, int, int] | None:
        return self.infill

    def end_tokens(self) -> list[int]:
        return [0]


def preparer(*, chat: str | None = PLAIN, generates: bool = True) -> Any:
    made = template.ChatTemplate(chat, bos="^", eos="$") if chat else None
    return jobs.Preparer(Letters(), made, generates=generates, context_tokens=CONTEXT)


def chat(content: str, **options: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=(Message(role="user", content=content),), **options)


def complete(prompt: str | tuple[int, ...], **options: Any) -> CompletionRequest:
    return CompletionRequest(model="m", prompt=prompt, **options)


def test_what_is_known_at_once() -> None:
    ids = preparer().prepare(7, TokenizeRequest(model="m", content="ab"))
    assert (ids.call, ids.chunk.tokens) == (7, (97, 98))
    assert preparer().prepare(7, DetokenizeRequest(model="m", tokens=(97, 98))).chunk.text == "ab"
    assert preparer().prepare(7, EmbeddingRequest(model="m", inputs=("a", (98,)))).inputs == ([94, 97], [98])


OBJECT = {"type": "object"}
WRONG: list[tuple[Any, type[CallerError], str]] = [
    (complete("x" * 16), ContextOverflow, "prompt"),
    (complete((97,) * 17), ContextOverflow, "prompt"),
    (chat("x" * 400), ContextOverflow, "messages"),
    (EmbeddingRequest(model="m", inputs=("a", "x" * 17)), ContextOverflow, "input"),
    (EmbeddingRequest(model="m", inputs=((),)), CallerError, "input"),
    (EmbeddingRequest(model="m", inputs=((1, 999),)), CallerError, "input"),
    (complete((1, 999)), CallerError, "prompt"),
    (complete(()), CallerError, "prompt"),
    (DetokenizeRequest(model="m", tokens=(-1,)), CallerError, "tokens"),
    (complete("a", resume=(999,)), CallerError, "resume"),
    (complete("a", resume=(5,), n=2), CallerError, "resume"),
    (complete("a", grammar='root ::= "a"', json_schema=OBJECT), CallerError, "grammar"),
    (complete("a", grammar='root ::= "a"', ignore_eos=True), CallerError, "ignore_eos"),
    (complete("a", json_schema={"type": "thing"}), CallerError, "response_format"),
]


@pytest.mark.parametrize(("request_", "error", "param"), WRONG)
def test_a_mistake_names_its_parameter(request_: Any, error: type[CallerError], param: str) -> None:
    with pytest.raises(error) as caught:
        preparer().prepare(1, request_)
    assert caught.value.param == param


def test_text_before_a_suffix() -> None:
    made = preparer()
    with pytest.raises(Unsupported) as caught:
        made.prepare(1, complete("a", suffix="b"))
    assert caught.value.param == "suffix"
    made._model.infill = (1, 2, 3)
    assert made._infill_prompt(complete("a", suffix="b")) == [94, 1, 97, 2, 98, 3]
    assert made._infill_prompt(complete((99,), suffix="b")) == [94, 1, 99, 2, 98, 3]


def test_what_a_model_cannot_do_is_not_supported() -> None:
    for made, request in (
        (preparer(chat=None), chat("a")),
        (preparer(generates=False), complete("a")),
        (preparer(generates=False), chat("a")),
    ):
        with pytest.raises(Unsupported) as caught:
            made.prepare(1, request)
        assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({"type": "string", "maxLength": 2000}, "char{0,2000}"),
        ({"type": "string", "minLength": 2}, "char{2,}"),
        ({"type": "string", "minLength": 3, "maxLength": 3}, "char{3,3}"),
        ({"type": "string", "maxLength": 0}, '"\\"" "" "\\""'),
        ({"type": "array", "items": OBJECT, "maxItems": 1}, '(item ("," space item){0,0})?'),
        ({"type": "array", "items": OBJECT, "minItems": 2, "maxItems": 1500}, 'item ("," space item){1,1499}'),
        ({"type": "array", "items": OBJECT}, '(item ("," space item){0,})?'),
        ({"type": "array", "items": OBJECT, "minItems": 1}, 'item ("," space item){0,}'),
        ({"type": "string", "pattern": "^a{2,900}$"}, "{2,900}"),
    ],
)
def test_a_repetition_is_written_as_one(wanted: dict[str, Any], holds: str) -> None:
    grammar = schema.schema_grammar(json.dumps(wanted))
    assert holds in grammar
    assert len(grammar) < 1000


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "string", "maxLength": 10**9},
        {"type": "string", "minLength": 2001},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "string", "maxLength": -1},
        {"type": "string", "maxLength": 1.5},
        {"type": "string", "maxLength": "9"},
        {"type": "array", "items": OBJECT, "minItems": 10**9},
        {"type": "array", "items": OBJECT, "maxItems": True},
        {"type": "array", "items": 7},
        {"type": "string", "pattern": "^a{1000000000}$"},
        {"type": "string", "pattern": "a"},
        {"type": "string", "pattern": "^a{x}$"},
        {"type": "string", "pattern": "^[a$"},
        {"type": "string", "pattern": "^(?=a)$"},
        {"type": "string", "pattern": 7},
        {"type": "string", "pattern": "^" + "(" * 3000 + "a" + ")" * 3000 + "$"},
        {"type": "string", "format": 7},
        {"$ref": "#/definitions/missing"},
        {"$ref": "https://schemas.invalid/x.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": 7},
        {"oneOf": 7},
        {"allOf": [1]},
        {"not": {}},
        {"type": "object", "properties": {"a": None}},
        {"type": "object", "properties": {"a": {}}, "required": 7},
    ],
    ids=lambda wanted: str(wanted)[:50],
)
def test_a_schema_that_cannot_be_used(wanted: dict[str, Any]) -> None:
    with pytest.raises(CallerError, match="This JSON schema cannot be used") as caught:
        schema.schema_grammar(json.dumps(wanted))
    assert caught.value.param == "response_format"
    assert len(caught.value.message) < 500
