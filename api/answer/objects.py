"""Tool calls as models write them: JSON objects, function tags, Python, and Gemma's own notation."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from api.answer.deltas import Writer
from api.answer.source import Markers, Parser, Source
from backends.types import Tool

_NAME_KEYS = frozenset({"name", "function", "tool_name", "function_name"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters", "args", "input", "tool_arguments"})
_LIST_KEYS = frozenset({"tool_calls", "tool_call", "function_call", "function"})
_NAME = re.compile(r"[\w.:/-]")
MAX_NAME = 256
MAX_CODE = 1 << 16  # Python's parser is asked about no more


class Objects:
    """Reads calls from a source into a writer."""

    def __init__(self, source: Source, writer: Writer, tools: Mapping[str, Tool]) -> None:
        self._source = source
        self._writer = writer
        self._tools = tools

    def calls(self, *, known: bool, depth: int = 0) -> Parser[bool]:
        """A JSON object that is a call, or a list of them. False when the first is none.

        `known`: only of tools that were offered. A call that is none may have been read in part.
        """
        source = self._source
        first = yield from source.peek()
        if first == "{":
            return (yield from self._object(known=known, depth=depth))
        if first != "[":
            return False
        source.take(1)
        yield from source.space()
        if (yield from source.peek()) not in ("{", "]", ""):
            return (yield from self._python_list())
        found = False
        while True:
            yield from source.space()
            if (yield from source.peek()) != "{" or not (yield from self._object(known=known, depth=depth)):
                break
            found = True
            yield from source.space()
            if not (yield from source.follows(",")):
                break
        yield from source.space()
        yield from source.follows("]")
        return found

    def _python_list(self) -> Parser[bool]:
        """What follows the bracket of `[f(a=1), g()]`: Llama's other way to call several."""
        name = yield from self.name()
        if name not in self._tools or (yield from self._source.peek()) != "(":
            return False
        parts: list[str] = []
        yield from self._source.until(_NEVER, parts.append)
        return self.python(f"[{name}{''.join(parts)}")

    def _object(self, *, known: bool, depth: int) -> Parser[bool]:
        source, writer = self._source, self._writer
        source.take(1)
        name: str | None = None
        arguments: str | None = None  # as long as there is no name to go with them
        started = nested = False
        while True:
            yield from source.space()
            if (yield from source.follows("}")):
                break
            key = yield from self._string()
            if key is None:
                break
            yield from source.space()
            if not (yield from source.follows(":")):
                break
            yield from source.space()
            first = yield from source.peek()
            if key in _LIST_KEYS and first in ("{", "[") and depth < 2 and name is None:
                nested = yield from self.calls(known=known, depth=depth + 1)
                if not nested:
                    return False
            elif key in _NAME_KEYS and first == '"' and name is None:
                name = yield from self._string()
                if not name or (known and name not in self._tools):
                    return False
                if arguments is not None:
                    writer.start(name)
                    writer.arguments(arguments)
                    started = True
            elif key in _ARGUMENT_KEYS and arguments is None:
                if name is not None and first == "{":
                    writer.start(name)
                    started, arguments = True, ""
                    if not (yield from source.value(writer.arguments)):
                        break
                else:
                    arguments, whole = yield from self._held_arguments()
                    if name is not None:
                        writer.start(name)
                        writer.arguments(arguments)
                        started = True
                    if not whole:
                        break
            elif not (yield from source.value(_ignore)):
                break
            yield from source.space()
            yield from source.follows(",")
        if name is not None and not started and (arguments is not None or not known or not source.ended):
            writer.start(name)
            writer.arguments("{}")
            started = True
        return started or nested

    def _held_arguments(self) -> Parser[tuple[str, bool]]:
        """Arguments that are told when whole (an object in a string, or null), and whether they are."""
        parts: list[str] = []
        whole = yield from self._source.value(parts.append)
        text = "".join(parts)
        if text == "null":
            return "{}", whole
        if text.startswith('"'):
            try:
                inner = json.loads(text, strict=False)
            except ValueError:
                inner = text[1:]  # cut off
            return inner.strip() or "{}", whole
        return text, whole

    def _string(self) -> Parser[str | None]:
        if (yield from self._source.peek()) != '"':
            return None
        parts: list[str] = []
        if not (yield from self._source.value(parts.append)):
            return None
        try:
            return str(json.loads("".join(parts), strict=False))
        except ValueError:
            return None

    def name(self) -> Parser[str]:
        """A function's name."""
        return (yield from self._source.matching(_NAME, MAX_NAME))

    def arguments_of(self, name: str) -> Parser[None]:
        """A call of `name`, whose arguments follow as a JSON value."""
        self._writer.start(name)
        yield from self._source.space()
        if (yield from self._source.peek()) == "{":
            yield from self._source.value(self._writer.arguments)
            return
        text, _ = yield from self._held_arguments()
        self._writer.arguments(text or "{}")

    def function_tag(self) -> Parser[None]:
        """What follows `<function=`: a name, `>`, and either JSON or `<parameter=…>` tags, up to `</function>`."""
        source, writer = self._source, self._writer
        name = yield from self.name()
        yield from source.follows(">")
        yield from source.space()
        if not name:
            return
        if (yield from source.peek()) == "{":
            yield from self.arguments_of(name)
            yield from source.space()
            yield from source.follows("</function>")
            return
        writer.start(name)
        writer.arguments("{")
        separator = ""
        while True:
            parts: list[str] = []
            found = yield from source.until(_PARAMETERS, parts.append)
            if found != "<parameter=":
                break
            key = yield from self.name()
            yield from source.follows(">")
            parts = []
            found = yield from source.until(_PARAMETER_END, parts.append)
            value = self._typed(name, key, "".join(parts).removeprefix("\n").removesuffix("\n"))
            writer.arguments(f"{separator}{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
            separator = ", "
            if found is None:
                break
        writer.arguments("}")

    def _typed(self, name: str, key: str, text: str) -> Any:
        """`text` as the type that the tool's schema gives the parameter."""
        tool = self._tools.get(name)
        schema = ((tool.parameters or {}) if tool else {}).get("properties")
        wanted = schema.get(key) if isinstance(schema, dict) else None
        if isinstance(wanted, dict) and wanted.get("type") == "string":
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def python(self, text: str) -> bool:
        """Calls in Python: `f(a=1)`, `print(f(a=1))`, `[f(), g(b="x")]`, `f.call(a=1)`. False: `text` is none."""
        text = text.strip()
        if len(text) > MAX_CODE:
            return False
        try:
            body = ast.parse(text).body
            found = [call for statement in body for call in self._python_calls(statement)]
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return False
        if not found or len(found) < len(body):
            return False
        for name, arguments in found:
            self._writer.start(name)
            self._writer.arguments(arguments)
        return True

    def _python_calls(self, statement: ast.AST) -> list[tuple[str, str]]:
        if isinstance(statement, (ast.Expr, ast.Assign)):
            return self._python_calls(statement.value)
        if isinstance(statement, (ast.List, ast.Tuple)):
            return [call for item in statement.elts for call in self._python_calls(item)]
        if not isinstance(statement, ast.Call):
            return []
        name = _python_name(statement.func)
        if name == "print" and "print" not in self._tools and len(statement.args) == 1:
            return self._python_calls(statement.args[0])
        if name not in self._tools:
            name = name.removesuffix(".call")
        if name not in self._tools:
            return []
        tool = self._tools[name]
        names = list((tool.parameters or {}).get("properties") or ())
        arguments = dict(zip(names, map(ast.literal_eval, statement.args), strict=False))
        arguments |= {word.arg: ast.literal_eval(word.value) for word in statement.keywords if word.arg}
        return [(name, json.dumps(arguments, ensure_ascii=False))]

    def gemma(self, text: str) -> None:
        """`call:NAME{key:<escape>text<escape>,other:5}`, as FunctionGemma and Gemma 4 write it."""
        name, brace, rest = text.strip().removeprefix("call:").partition("{")
        if name := name.strip()[:MAX_NAME]:
            self._writer.start(name)
            self._writer.arguments(_gemma_json(brace + rest))


_NEVER = Markers([])
_PARAMETERS = Markers(["<parameter=", "</function>"])
_PARAMETER_END = Markers(["</parameter>"])
_GEMMA_TOKENS = re.compile(
    r'<escape>(.*?)<escape>|<\|"\|>(.*?)<\|"\|>|("(?:[^"\\]|\\.)*")|([{}\[\]:,])|([^{}\[\]:,]+)',
    re.DOTALL,
)


def _gemma_json(text: str) -> str:
    out = []
    for escaped, quoted, json_string, mark, bare in _GEMMA_TOKENS.findall(text):
        if mark:
            out.append(mark)
        elif json_string:
            out.append(json_string)
        elif bare:
            word = bare.strip()
            is_json = re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?|true|false|null", word)
            out.append(word if is_json or not word else json.dumps(word, ensure_ascii=False))
        else:
            out.append(json.dumps(escaped or quoted, ensure_ascii=False))
    return "".join(out) or "{}"


def _python_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_python_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _ignore(_: str) -> None:
    pass
