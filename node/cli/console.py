"""What the commands share: options, errors, output, and how they find and ask the running node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from node.config import ConfigError, Settings, read_settings
from node.datadir import running_url

DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder of ALL the node's state. [env: MESH_DATA]", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_ASK_S = 10.0

out = Console()
err = Console(stderr=True)


class CommandError(Exception):
    """A command cannot do what was asked: one sentence that says what to do."""


def settings_of(config: Path | None = None, **flags: Any) -> Settings:
    """The settings in force. Raises CommandError."""
    try:
        return read_settings(config, **flags)
    except ConfigError as error:
        raise CommandError(str(error)) from error


def interactive() -> bool:
    """Whether a person types into this process, and not a pipe or a file."""
    return sys.stdin.isatty()


def print_json(value: Any) -> None:
    """`value` on standard output, for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


class NodeClient:
    """HTTP to the node that runs on a data folder. Raises CommandError when none does."""

    def __init__(self, settings: Settings) -> None:
        url = running_url(settings.data)
        if url is None:
            raise CommandError(f"No node runs on {settings.data}. Start one with: mesh up")
        keys = settings.plain_api_keys
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        self.url = url
        # Never through a proxy: the node is on this machine.
        self.http = httpx.Client(base_url=url, headers=headers, timeout=_ASK_S, trust_env=False)

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return self._answer("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON that a POST is answered with."""
        return self._answer("POST", path, body)

    def _answer(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = self.http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise CommandError(f"The node at {self.url} does not answer: {error}") from error
        if answer.is_error:
            raise CommandError(error_message(answer))
        return answer.json()


def error_message(answer: httpx.Response) -> str:
    """The message in an error envelope."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the node answered {answer.status_code}"


def mib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
