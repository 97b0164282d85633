"""Conversations: messages with their parts, the tools that a model may call, and how a model writes such calls.

No dialect's own spelling is in here: api/ makes these of what a client sends, an engine renders them through the
model's template.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """Text of a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="image"):
    """An encoded image; nobody has looked into it yet."""

    data: bytes
    media_type: str = ""  # as the sender names it: image/png, ...
    detail: str | None = None


class AudioPart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="audio"):
    """Encoded sound; nobody has listened to it yet."""

    data: bytes
    format: str = ""  # as the sender names it: wav, mp3, ...


Part: TypeAlias = TextPart | ImagePart | AudioPart


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that a model has made. `arguments` are JSON, as the model wrote them; they may be invalid."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation. Role "tool" carries the result of the call `tool_call_id`, by the tool `name`."""

    role: str
    content: str | tuple[Part, ...] = ""
    name: str | None = None
    reasoning: str = ""  # what an assistant thought before it said `content`
    tool_calls: tuple[ToolCall, ...] = ()  # what an assistant called
    tool_call_id: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether text is all that the message holds."""
        return isinstance(self.content, str) or all(isinstance(part, TextPart) for part in self.content)

    @property
    def text(self) -> str:
        """The text of the message alone, its parts joined by line breaks."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


class Tool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may call. `parameters` is the JSON schema of its arguments; None: an empty object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether the model calls tools. "required" is enforced by a grammar; `allowed` narrows what may be called.

    One named tool is "required" with that one name in `allowed`. Names that no tool has are the edge's to refuse.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    allowed: tuple[str, ...] = ()  # empty: every tool
    parallel: bool = True  # several calls in one answer


CallSyntax: TypeAlias = Literal["json", "hermes", "llama3", "mistral", "gemma", "deepseek", "functionary"]
"""How a family of models writes its tool calls in its text. "json" is what models are told to do whose template knows
no tools. api/answer reads them all."""


THINK_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought", "<channel|>"),
)
"""What models put around their reasoning."""


class AnswerFormat(msgspec.Struct, frozen=True, array_like=True):
    """What of an answer's text is not content, so that its reader can tell. Told by the engine, in `Accepted`.

    `think` are the tags around reasoning, empty if the template has none. `thinking`: the prompt ends within them, so
    the answer begins with reasoning. `raw`: the text is content from end to end (a grammar of the client's own).
    """

    calls: CallSyntax = "json"
    think: tuple[str, str] | None = None
    thinking: bool = False
    raw: bool = False
