"""From an engine's text to what it means: content, reasoning and tool calls. Sans-IO, and no dialect's spelling.

`Readers` reads the chunks of a chat; the rest of this package is what it is made of.
"""

from api.answer.deltas import CallArguments, CallStart, Content, Delta, Reasoning, Reply
from api.answer.reader import AnswerReader, Readers

__all__ = ["AnswerReader", "CallArguments", "CallStart", "Content", "Delta", "Readers", "Reasoning", "Reply"]
