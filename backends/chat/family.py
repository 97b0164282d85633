"""To which family of tool notations a chat template belongs, and what of its vocabulary must be shown for it.

Told by the marks in the template's source, as llama.cpp's own server does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from backends.types import THINK_TAGS, CallSyntax

MARKS: Mapping[CallSyntax, tuple[str, ...]] = {
    "json": (),
    "hermes": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    "gemma": (
        "<start_function_call>",
        "<end_function_call>",
        "<escape>",
        "<|tool_call>",
        "<tool_call|>",
        '<|"|>',
    ),
    "deepseek": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "functionary": ("<|python_tag|>",),
}
"""What a tokenizer may hold as one control token, whose text would not be shown otherwise."""


class Vocabulary(Protocol):
    """As much of a model as is asked here."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""


def call_syntax(source: str) -> CallSyntax:
    """The notation of a template's tool calls; "json" where it has none that is known."""
    if ">>>all" in source or ("<function=" in source and "<tool_call>" not in source):
        return "functionary"
    if "[TOOL_CALLS]" in source:
        return "mistral"
    if "tool▁call▁begin" in source:
        return "deepseek"
    if "<tool_call>" in source:
        return "hermes"
    if "<start_function_call>" in source or "<|tool_call>" in source or "<start_of_turn>" in source:
        return "gemma"
    if "<|python_tag|>" in source or ("<|start_header_id|>" in source and '"parameters"' in source):
        return "llama3"
    return "json"


def think_tags(source: str) -> tuple[str, str] | None:
    """The tags of reasoning that a template knows. Some know the end alone, to cut it off from earlier answers."""
    for opener, closer in THINK_TAGS:
        if opener in source or closer in source:
            return opener, closer
    return None


def shown_tokens(vocabulary: Vocabulary, syntax: CallSyntax) -> dict[int, bytes]:
    """Tokens that are whole marks, with their text: a control token's own text is empty."""
    marks = (*MARKS[syntax], *(tag for pair in THINK_TAGS for tag in pair))
    shown = {}
    for mark in marks:
        tokens = vocabulary.tokenize(mark, add_special=False, parse_special=True)
        if len(tokens) == 1:
            shown[tokens[0]] = mark.encode()
    return shown
