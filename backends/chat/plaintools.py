"""Tools for a model whose template has no place for them: told in a system message, called in plain JSON.

api/answer reads such calls as the syntax "json".
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from backends.types import Message, Tool

_INTRODUCTION = """You can call functions. Each line is one function, as JSON:
{tools}
To call one, answer with nothing but JSON of this form: {{"name": "the function", "arguments": {{...}}}}
If no function helps, answer in plain words."""


def as_plain_messages(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """`messages` without calls and results, and with an introduction to `tools`.

    Many templates insist that users and assistants take turns, so results become a user's message, all of one turn
    together.
    """
    plain: list[Message] = []
    for message in messages:
        if message.tool_calls:
            calls = "\n".join(
                f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments.strip() or "{}"}}}'
                for call in message.tool_calls
            )
            text = f"{message.text}\n{calls}" if message.text else calls
            message = msgspec.structs.replace(message, content=text, tool_calls=())
        elif message.role == "tool":
            of = f" of {message.name}" if message.name else ""
            text = f"Result{of}: {message.text}"
            if plain and plain[-1].role == "user" and plain[-1].name == _RESULTS:
                plain[-1] = msgspec.structs.replace(plain[-1], content=f"{plain[-1].text}\n{text}")
                continue
            message = Message(role="user", content=text, name=_RESULTS)
        plain.append(message)
    plain = [msgspec.structs.replace(turn, name=None) if turn.name == _RESULTS else turn for turn in plain]
    if not tools:
        return plain
    lines = "\n".join(
        json.dumps({"name": tool.name, "description": tool.description, "parameters": tool.parameters or {}})
        for tool in tools
    )
    text = _INTRODUCTION.format(tools=lines)
    if plain and plain[0].role == "system":
        plain[0] = msgspec.structs.replace(plain[0], content=f"{plain[0].text}\n\n{text}")
        return plain
    return [Message(role="system", content=text), *plain]


_RESULTS = "\0results"  # no client's message can have this name: a mark while messages are gathered
