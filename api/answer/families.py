"""How each family of models marks its tool calls. See CallSyntax in backends/types/conversation.py.

The notations are those of the families' own chat templates. A tag is never content, closed or not; JSON that turns out
to be no call is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from api.answer.deltas import Writer
from api.answer.objects import Objects
from api.answer.source import Markers, Parser, Source
from backends.types import CallSyntax, Tool

_FENCE = Markers(["```"])
_NEVER = Markers([])


class Family:
    """The tool calls of one family, found in a source. `bare` is tried where an answer may begin with a call."""

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()  # dropped where they stand alone

    def __init__(self, source: Source, writer: Writer, tools: Mapping[str, Tool]) -> None:
        self.source = source
        self.writer = writer
        self.tools = tools
        self.objects = Objects(source, writer, tools)

    def opened(self, marker: str) -> Parser[None]:
        """`marker`, one of `opens`, has been read."""
        raise NotImplementedError

    def bare(self) -> Parser[bool]:
        """Calls without a tag: JSON, or Python where the tokenizer has stripped what was around it."""
        first = yield from self.source.peek()
        if first not in ("{", "["):
            return False
        return (yield from self.attempt(self.objects.calls(known=True)))

    def attempt(self, parser: Parser[bool], before: str = "", *, tagged: bool = False) -> Parser[bool]:
        """Let `parser` look for a call; what it has read for nothing is content, after `before`.

        Not so the beginning of a call, after a tag or other calls, that the end of the answer has cut off.
        """
        self.source.remember()
        found = yield from parser
        read = self.source.recall()
        cut_off = self.source.ended and not self.source.text and (tagged or self.writer.calls)
        if not found and not cut_off:
            self.writer.content(before + read)
        return found


class Json(Family):
    """Plain JSON, alone or in a fence."""

    opens = ("```json", "```tool_call", "<tool_call>")
    closes = ("</tool_call>",)

    def opened(self, marker: str) -> Parser[None]:
        tagged = marker.startswith("<")
        found = yield from self.attempt(self._after_space(known=not tagged), "" if tagged else marker, tagged=tagged)
        if found:
            yield from self.source.space()
            yield from self.source.follows("```")

    def _after_space(self, *, known: bool) -> Parser[bool]:
        yield from self.source.space()
        return (yield from self.objects.calls(known=known))


class Hermes(Family):
    """Hermes and Qwen: `<tool_call>` around JSON, or around `<function=…>` tags (Qwen3-Coder)."""

    opens = ("<tool_call>", "<function=")
    closes = ("</tool_call>", "</function>")

    def opened(self, marker: str) -> Parser[None]:
        if marker == "<tool_call>":
            yield from self.source.space()
            if not (yield from self.source.follows("<function=")):
                yield from self.attempt(self.objects.calls(known=False), tagged=True)
                return
        yield from self.objects.function_tag()


class Llama3(Family):
    """Llama 3: JSON, several separated by semicolons; `<|python_tag|>` before JSON, `f.call(…)` or code."""

    opens = ("<|python_tag|>",)

    def opened(self, marker: str) -> Parser[None]:
        yield from self.source.space()
        first = yield from self.source.peek()
        if first == "{":
            yield from self.attempt(self.objects.calls(known=False), tagged=True)
            return
        parts: list[str] = []
        yield from self.source.until(_NEVER, parts.append)
        code = "".join(parts)
        if self.objects.python(code):
            return
        for name in ("python", "ipython", "code_interpreter"):
            if name in self.tools:
                self.writer.start(name)
                self.writer.arguments(json.dumps({"code": code}, ensure_ascii=False))
                return
        self.writer.content(code)

    def bare(self) -> Parser[bool]:
        if self.writer.calls:
            yield from self.source.follows(";")
            yield from self.source.space()
        return (yield from super().bare())


class Mistral(Family):
    """Mistral: `[TOOL_CALLS]` before a list of JSON, or before a name, `[ARGS]` and JSON."""

    opens = ("[TOOL_CALLS]",)
    closes = ("[/TOOL_CALLS]", "[CALL_ID]", "[ARGS]")

    def opened(self, marker: str) -> Parser[None]:
        yield from self.source.space()
        if (yield from self.source.peek()) in ("{", "["):
            yield from self.attempt(self.objects.calls(known=False), tagged=True)
            return
        name = yield from self.objects.name()
        yield from self.source.space()
        if (yield from self.source.follows("[CALL_ID]")):
            yield from self.objects.name()
        yield from self.source.follows("[ARGS]")
        if name:
            yield from self.objects.arguments_of(name)


class Gemma(Family):
    """Gemma: fences with Python or JSON (3), and the notations of FunctionGemma and of Gemma 4."""

    opens = ("```tool_code", "```python", "```json", "```tool_call", "<start_function_call>", "<|tool_call>")
    closes = ("<end_function_call>", "<tool_call|>")

    def opened(self, marker: str) -> Parser[None]:
        parts: list[str] = []
        if marker.startswith("<"):
            end = "<end_function_call>" if marker == "<start_function_call>" else "<tool_call|>"
            yield from self.source.until(Markers([end]), parts.append)
            self.objects.gemma("".join(parts))
            return
        if marker in ("```json", "```tool_call"):
            yield from Json(self.source, self.writer, self.tools).opened(marker)
            return
        fence = yield from self.source.until(_FENCE, parts.append)
        code = "".join(parts)
        if not self.objects.python(code):
            self.writer.content(marker + code + (fence or ""))


class DeepSeek(Family):
    """DeepSeek: `function`, a separator, the name and fenced JSON (V3, R1), or name, separator and JSON (V3.1)."""

    opens = ("<｜tool▁call▁begin｜>",)
    closes = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>")

    def opened(self, marker: str) -> Parser[None]:
        source = self.source
        yield from source.space()
        name = yield from self.objects.name()
        yield from source.space()
        if (yield from source.follows("<｜tool▁sep｜>")) and name == "function" and name not in self.tools:
            yield from source.space()
            name = yield from self.objects.name()
        yield from source.space()
        if (yield from source.follows("```")):
            yield from source.follows("json")
        if name:
            yield from self.objects.arguments_of(name)
        yield from source.space()
        yield from source.follows("```")


class Functionary(Family):
    """Functionary: `<function=NAME>` and JSON (v3.1), or `>>>NAME`, a line break and JSON (v3.2).

    The prompt of v3.2 ends with `>>>`, so its answer begins with a name.
    """

    opens = ("<function=", ">>>", "<|python_tag|>")
    closes = ("</function>",)

    def opened(self, marker: str) -> Parser[None]:
        if marker == "<function=":
            yield from self.objects.function_tag()
        elif marker == "<|python_tag|>":
            yield from Llama3(self.source, self.writer, self.tools).opened(marker)
        elif not (yield from self._recipient()):
            self.writer.content(marker)

    def bare(self) -> Parser[bool]:
        if self.writer.calls or not (yield from self._recipient()):
            return (yield from super().bare())
        return True

    def _recipient(self) -> Parser[bool]:
        names = ["all\n", *(f"{name}\n" for name in self.tools)]
        found = yield from self.source.follows(*names)
        if found is None:
            return False
        if found != "all\n":
            yield from self.objects.arguments_of(found[:-1])
        return True


FAMILIES: Mapping[CallSyntax, type[Family]] = {
    "json": Json,
    "hermes": Hermes,
    "llama3": Llama3,
    "mistral": Mistral,
    "gemma": Gemma,
    "deepseek": DeepSeek,
    "functionary": Functionary,
}
