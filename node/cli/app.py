"""The commands and what they share: --data, --json, one line for an error."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from node import __version__
from node.cli import chat, doctor, models, plan, requests, status, swarm, up
from node.cli.console import CommandError

app = typer.Typer(
    name="mesh",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Run your own AI: several machines as one inference service.

    **Start** the first node with `mesh up`; on every other machine run the `mesh join` line that it prints. **Talk** to
    any of them with `mesh chat` or an OpenAI client, **look** with `mesh status`, **ask why** with `mesh explain`.
    """,
    epilog="Shell completion: `mesh --install-completion`. Settings: docs/settings.md.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mesh {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before any command."""


app.command("up")(up.up)
app.command("join")(up.join)
app.command("status")(status.status)
app.command("chat")(chat.chat)
app.add_typer(models.app, name="models")
app.command("token")(swarm.token)
app.command("leave")(swarm.leave)
app.command("kick")(swarm.kick)
app.command("pardon")(swarm.pardon)
app.command("plan")(plan.plan)
app.command("explain")(requests.explain)
app.command("trace")(requests.trace)
app.command("doctor")(doctor.doctor)


def main() -> NoReturn:
    """Run the command line; an error is one line on standard error and exit status 1."""
    try:
        app()
    except CommandError as error:
        typer.secho(f"mesh: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    sys.exit(0)
