"""Grammars for answers that must be, or may be, tool calls: each family's notation around the tools' own schemas.

What is compiled of one schema is cached (backends/llama_cpp/schema.py); so is the whole, since agents repeat their
tools with every request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from backends.llama_cpp.schema import schema_grammar
from backends.types import AnswerFormat, CallerError, CallSyntax, Tool

MAX_CALLS = 8
"""In one answer. A weak model that may call again and again does."""

_BODY = re.compile(r'("(?:[^"\\]|\\.)*")|(\[(?:[^\]\\]|\\.)*\])|([a-zA-Z][a-zA-Z0-9-]*)')


def tool_grammar(source: str, form: AnswerFormat, tools: Sequence[Tool], *, parallel: bool, schema: str | None) -> str:
    """The GBNF of an answer that calls `tools`. `source` is the chat template's: notations have versions.

    With `schema`, an answer that satisfies it is as good as a call. Raises CallerError, naming `tools` or
    `response_format`.
    """
    described = tuple(
        (tool.name, json.dumps(tool.parameters or {"type": "object", "properties": {}})) for tool in tools
    )
    return _tool_grammar(_style(source, form.calls), described, parallel, schema, _thought(form))


def thoughtful(grammar: str, form: AnswerFormat) -> str:
    """`grammar` for an answer that begins within reasoning."""
    thought = _thought(form)
    return f"root ::= thought answer\n{thought}{_renamed(grammar, 'answer')}" if thought else grammar


@lru_cache(maxsize=64)
def _tool_grammar(
    style: _Style, tools: tuple[tuple[str, str], ...], parallel: bool, schema: str | None, thought: str
) -> str:
    rules = []
    for number, (_, parameters) in enumerate(tools):
        try:
            rules.append(_renamed(schema_grammar(parameters), f"t{number}"))
        except CallerError as error:
            raise CallerError(error.message, param="tools") from error
    calls = " | ".join(style.call(name, f"t{number}") for number, (name, _) in enumerate(tools))
    more = f"({_quoted(style.between)} call){{0,{MAX_CALLS - 1}}}" if parallel and style.between is not None else ""
    answer = f"{_quoted(style.before)} call {more} {_quoted(style.after)}".replace('""', "").strip()
    if schema is not None:
        answer = f"{answer} | answer"
        rules.append(_renamed(schema_grammar(schema), "answer"))
    if thought:
        return "\n".join([f"root ::= thought ({answer})", thought + f"call ::= {calls}", *rules])
    return "\n".join([f"root ::= {answer}", f"call ::= {calls}", *rules])


class _Style:
    """One notation: what stands around all calls and between two, and how one is written."""

    def __init__(self, before: str, after: str, between: str | None, call: Callable[[str, str], str]) -> None:
        self.before = before
        self.after = after
        self.between = between
        self.call = call


def _object_call(arguments: str) -> Callable[[str, str], str]:
    """A JSON object with the name first, so that arguments can be passed on as they come."""

    def call(name: str, rule: str) -> str:
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{arguments}": '
        return f'{_quoted(head)} {rule} "}}"'

    return call


def _framed_call(before: str, after: str) -> Callable[[str, str], str]:
    """Arguments between two texts; `NAME` in the first stands for the tool's."""

    def call(name: str, rule: str) -> str:
        return f"{_quoted(before.replace('NAME', name))} {rule} {_quoted(after)}".replace(' ""', "")

    return call


_JSON = _Style("", "", "\n", _object_call("arguments"))
_HERMES = _Style("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n", _object_call("arguments"))
_LLAMA3 = _Style("", "", "; ", _object_call("parameters"))
_MISTRAL = _Style("[TOOL_CALLS][", "]", ", ", _object_call("arguments"))
_MISTRAL_ARGS = _Style("", "", "", _framed_call("[TOOL_CALLS]NAME[ARGS]", ""))
_DEEPSEEK = _Style(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "\n",
    _framed_call("<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n", "\n```<｜tool▁call▁end｜>"),
)
_DEEPSEEK_31 = _Style(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "",
    _framed_call("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
)
_FUNCTIONARY_31 = _Style("", "", "", _framed_call("<function=NAME>", "</function>"))
_FUNCTIONARY_32 = _Style("", "", ">>>", _framed_call("NAME\n", ""))


def _style(source: str, syntax: CallSyntax) -> _Style:
    match syntax:
        case "hermes":
            return _HERMES
        case "llama3":
            return _LLAMA3
        case "mistral":
            return _MISTRAL_ARGS if "[ARGS]" in source else _MISTRAL
        case "deepseek":
            return _DEEPSEEK if "```json" in source else _DEEPSEEK_31
        case "functionary":
            return _FUNCTIONARY_32 if ">>>all" in source else _FUNCTIONARY_31
        case _:
            return _JSON


def _thought(form: AnswerFormat) -> str:
    """The rule of the reasoning that the answer begins with; empty if it does not."""
    if not form.thinking or form.think is None:
        return ""
    closer = form.think[1]
    first, second = (_in_class(character) for character in closer[:2])
    return f"thought ::= ([^{first}] | [{first}] [^{second}])* {_quoted(closer)} [\\n]{{0,2}}\n"


def _renamed(grammar: str, prefix: str) -> str:
    """`grammar` with its rules under `prefix`: `root` is `prefix` itself, any other rule `prefix-rule`."""

    def renamed(match: re.Match[str]) -> str:
        name = match[3]
        return match[0] if name is None else prefix if name == "root" else f"{prefix}-{name}"

    return _BODY.sub(renamed, grammar)


def _quoted(text: str | None) -> str:
    escaped = (text or "").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _in_class(character: str) -> str:
    return f"\\{character}" if character in "[]\\^-" else character
