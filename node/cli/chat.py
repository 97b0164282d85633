"""`mesh chat`: a conversation in the terminal, over the same HTTP API as any client."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import closing
from typing import Annotated, Any

import httpx
import typer
from rich.markup import escape

from node.cli.console import CommandError, DataOption, NodeClient, err, error_message, interactive, out, settings_of

# What a model says must not steer the terminal: no control characters (Unicode category Cc) but line break and tab.
_HARMLESS = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t")
_HELP = "/reset forgets the conversation, /system TEXT sets the system prompt, /quit or Ctrl-D leaves, Ctrl-C stops."


def chat(
    prompt: Annotated[str | None, typer.Argument(help="Ask this one question and exit.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="The model; without it the node's default.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.", min=0)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, tokens.", min=1)] = None,
    data: DataOption = None,
) -> None:
    """Talk to a model of the running node.

    **Examples**

    - `mesh chat` — a conversation

    - `mesh chat "Why is the sky blue?" --max-tokens 80` — one question

    - `git diff | mesh chat --system "Explain this."` — all of standard input as one question
    """
    client = NodeClient(settings_of(data=data))
    options = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
    conversation = _Conversation(client, {name: value for name, value in options.items() if value is not None}, system)
    if prompt is None and not interactive():
        prompt = typer.get_text_stream("stdin", errors="replace").read().strip()
        if not prompt:
            raise CommandError("There is nothing to ask: standard input is empty, and no PROMPT is given.")
    if prompt is not None:
        conversation.ask(prompt)
        return
    err.print(_HELP, style="dim", highlight=False)
    while True:
        try:
            line = out.input("[bold cyan]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/system"):
            conversation.reset(line.removeprefix("/system").strip())
        elif line.startswith("/"):
            err.print(_HELP, style="dim", highlight=False)
        elif line:
            try:
                conversation.ask(line)
            except CommandError as error:
                err.print(f"[red]{escape(str(error))}[/]", highlight=False)


class _Conversation:
    def __init__(self, client: NodeClient, options: dict[str, Any], system: str | None) -> None:
        self._client = client
        self._options = options
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Start anew, with `system` as its prompt."""
        self._messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def ask(self, question: str) -> None:
        """Print the answer as it comes. Ctrl-C stops it and keeps what has come."""
        turn = [*self._messages, {"role": "user", "content": question}]
        answer = ""
        started = time.monotonic()
        first = None
        usage: dict[str, int] = {}
        try:
            # Closed at once on Ctrl-C: the end of the connection is what stops the model.
            with closing(self._events(turn)) as events, err.status("waiting for the model") as waiting:
                for event in events:
                    if error := event.get("error"):
                        raise CommandError(error["message"])
                    usage = event.get("usage") or usage
                    for choice in event["choices"]:
                        if text := choice["delta"].get("content"):
                            waiting.stop()
                            first = first or time.monotonic()
                            answer += text
                            typer.echo(text.translate(_HARMLESS), nl=False)
        except KeyboardInterrupt:
            out.out(" …", end="")
        out.print()
        self._messages = [*turn, {"role": "assistant", "content": answer}]
        if usage and first:
            rate = usage["completion_tokens"] / max(time.monotonic() - first, 1e-6)
            err.print(
                f"{usage['completion_tokens']} tokens, {rate:.0f}/s, first after {first - started:.2f} s",
                style="dim",
                highlight=False,
            )

    def _events(self, messages: list[dict[str, str]]) -> Generator[dict[str, Any], None, None]:
        body = self._options | {
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            # No timeout on reading: a long prompt on a slow machine is silent for a while.
            with self._client.http.stream(
                "POST", "/v1/chat/completions", json=body, timeout=httpx.Timeout(10.0, read=None)
            ) as answer:
                if answer.is_error:
                    answer.read()
                    raise CommandError(error_message(answer))
                for line in answer.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield json.loads(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise CommandError(f"The node at {self._client.url} ended the connection: {error}") from error
