"""`mesh token`, `leave`, `kick`, `pardon`: the swarm and who is in it."""

from __future__ import annotations

from typing import Annotated

import typer

from mesh.errors import TokenError
from mesh.secretfile import SecretFileError
from node.cli.console import CommandError, DataOption, NodeClient, out, settings_of
from node.datadir import running_url
from node.swarmdir import SwarmDir

NodeArgument = Annotated[str, typer.Argument(help="The node's name or id, as `mesh status` shows it.")]


def token(
    qr: Annotated[bool, typer.Option("--qr", help="Show it as a QR code.")] = False, data: DataOption = None
) -> None:
    """Print the join token, alone, on standard output. Whoever has it can join: treat it like a password."""
    try:
        kept = SwarmDir(settings_of(data=data).data).token()
    except (TokenError, SecretFileError) as error:
        raise CommandError(str(error)) from error
    if kept is None:
        raise CommandError("This node is in no swarm yet. Start it once with: mesh up")
    text = kept.encode()
    if not qr:
        typer.echo(text)
        return
    import segno

    segno.make(text, error="l").terminal(compact=True)


def leave(data: DataOption = None) -> None:
    """Take this node out of its swarm: it says good-bye, forgets the token and serves on alone."""
    settings = settings_of(data=data)
    if running_url(settings.data) is not None:
        NodeClient(settings).post("/api/mesh/leave")
    else:
        SwarmDir(settings.data).forget_swarm()
    out.print("This node has left its swarm. `mesh join TOKEN` takes it into another; `mesh up` makes a new one.")


def kick(node: NodeArgument, data: DataOption = None) -> None:
    """Ban a node: every member refuses its identity from now on. Its owner still has the token."""
    banned = NodeClient(settings_of(data=data)).post("/api/mesh/kick", {"node": node})["banned"]
    out.print(f"{banned} is banned. `mesh pardon {banned}` lifts it.", highlight=False)


def pardon(node: NodeArgument, data: DataOption = None) -> None:
    """Lift a ban."""
    pardoned = NodeClient(settings_of(data=data)).post("/api/mesh/pardon", {"node": node})["pardoned"]
    out.print(f"{pardoned} may come back.", highlight=False)
