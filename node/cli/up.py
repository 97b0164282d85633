"""`mesh up` and `mesh join`: start a node."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import SecretStr

from node.cli.console import CommandError, DataOption, err, out, settings_of
from node.config import Settings

if TYPE_CHECKING:
    from node.runtime import Started

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings, instead of config.toml in the data folder.")
]
HostOption = Annotated[
    str | None,
    typer.Option("--host", help="Address to listen on; anything but loopback needs an API key.", metavar="ADDR"),
]
PortOption = Annotated[
    int | None, typer.Option("--port", help="Port of the API; 0 takes any free one.", min=0, max=65535)
]
NameOption = Annotated[str | None, typer.Option("--name", help="What other nodes call this one.")]
MeshPortOption = Annotated[
    int | None, typer.Option("--mesh-port", help="Port for other nodes; 0 takes a free one.", min=0, max=65535)
]
MeshHostOption = Annotated[
    str | None,
    typer.Option("--mesh-host", help="Address for other nodes; 127.0.0.1 keeps the swarm on this machine."),
]
RelayOption = Annotated[
    bool | None, typer.Option("--relay", help="Carry peers that cannot reach each other.", show_default=False)
]
RpcOption = Annotated[
    bool | None,
    typer.Option(
        "--rpc-worker",
        help="Hold layers of models that are too large for other nodes; without --memory-budget-bytes nothing else.",
        show_default=False,
    ),
]
RankOption = Annotated[
    bool | None,
    typer.Option(
        "--mlx-rank",
        help="Take part in MLX models of other nodes as a rank; without --memory-budget-bytes nothing else.",
        show_default=False,
    ),
]
BudgetOption = Annotated[
    int | None, typer.Option("--memory-budget-bytes", help="Memory that loaded models may take together.", min=0)
]
IdleOption = Annotated[
    float | None, typer.Option("--idle-unload-s", help="Unload a model after so many idle seconds; 0: never.", min=0)
]
LogOption = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
UpJsonOption = Annotated[bool, typer.Option("--json", help="Print URL, name and data folder as one line of JSON.")]


def up(
    data: DataOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    name: NameOption = None,
    mesh_host: MeshHostOption = None,
    mesh_port: MeshPortOption = None,
    relay: RelayOption = None,
    rpc_worker: RpcOption = None,
    mlx_rank: RankOption = None,
    solo: Annotated[bool | None, typer.Option("--solo", help="Take part in no swarm.", show_default=False)] = None,
    memory_budget_bytes: BudgetOption = None,
    idle_unload_s: IdleOption = None,
    log_level: LogOption = None,
    as_json: UpJsonOption = False,
) -> None:
    """Start a node and serve until Ctrl-C. A node that is in no swarm yet makes one, and prints how others join it.

    Without any model of its own the node serves the embedded SmolLM2-135M-Instruct.

    **Examples**

    - `mesh up` — on 127.0.0.1:8080

    - `mesh up --port 0 --data ./second` — another node on the same machine, in a swarm of its own

    - `MESH_API_KEYS=secret mesh up --host 0.0.0.0` — clients on other machines, too
    """
    settings = settings_of(
        config,
        data=data,
        host=host,
        port=port,
        name=name,
        mesh_host=mesh_host,
        mesh_port=mesh_port,
        relay=relay,
        rpc_worker=rpc_worker,
        mlx_rank=mlx_rank,
        solo=solo,
        memory_budget_bytes=memory_budget_bytes,
        idle_unload_s=idle_unload_s,
        log_level=log_level,
    )
    serve(settings, as_json=as_json, joining=False)


def join(
    token: Annotated[
        str | None,
        typer.Argument(
            help="The token that `mesh up` printed, `-` to read it from standard input, or the path of a file that "
            "holds it. Without it: MESH_TOKEN.",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    name: NameOption = None,
    mesh_host: MeshHostOption = None,
    mesh_port: MeshPortOption = None,
    relay: RelayOption = None,
    rpc_worker: RpcOption = None,
    mlx_rank: RankOption = None,
    memory_budget_bytes: BudgetOption = None,
    idle_unload_s: IdleOption = None,
    log_level: LogOption = None,
    as_json: UpJsonOption = False,
) -> None:
    """Start a node in the swarm of a token, and serve until Ctrl-C. Later `mesh up` is enough: the token is kept.

    **Examples**

    - `mesh join mesh1…` — the line that `mesh up` printed on the first machine

    - `mesh join - < token.txt` — so that the token is in no shell history

    - `mesh join mesh1… --data ./second --port 8081` — a second node on the same machine

    - `mesh join mesh1… --rpc-worker` — lend this machine's memory to models that are too large for the others
    """
    settings = settings_of(
        config,
        data=data,
        token=_given(token),
        host=host,
        port=port,
        name=name,
        mesh_host=mesh_host,
        mesh_port=mesh_port,
        relay=relay,
        rpc_worker=rpc_worker,
        mlx_rank=mlx_rank,
        memory_budget_bytes=memory_budget_bytes,
        idle_unload_s=idle_unload_s,
        log_level=log_level,
    )
    if settings.token is None:
        raise CommandError(
            "Which swarm? Give the token that `mesh up` printed on the first machine (`mesh token` prints it again)."
        )
    serve(settings, as_json=as_json, joining=True)


def serve(settings: Settings, *, as_json: bool, joining: bool) -> None:
    """Run a node until it is told to stop. Raises CommandError."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    for chatty in ("httpx", "mesh.http", "libp2p", "multiaddr", "zeroconf", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    from node.datadir import DataDirError
    from node.runtime import StartError, run_node

    try:
        run_node(settings, started=lambda facts: _greet(facts, settings, as_json=as_json), joining=joining)
    except (StartError, DataDirError) as error:
        raise CommandError(str(error)) from error
    err.print("stopped", style="dim")


def _given(token: str | None) -> SecretStr | None:
    """The token itself, from the argument, standard input or a file."""
    if token is None:
        return None
    if token == "-":  # noqa: S105
        return SecretStr(sys.stdin.read(8192))
    if not token.startswith("mesh1") and Path(token).is_file():
        return SecretStr(Path(token).read_text(encoding="utf-8")[:8192])
    return SecretStr(token)


def _greet(facts: Started, settings: Settings, *, as_json: bool) -> None:
    if as_json:
        # On one line: who started this process reads it while the process goes on.
        typer.echo(json.dumps({"url": facts.url, "name": facts.name, "data": str(settings.data)}))
        return
    out.print(f"[bold green]The node answers at[/] [bold]{facts.url}[/]   (Ctrl-C stops it)", highlight=False)
    out.print(f"See:  {facts.url}/ in a browser shows the swarm", highlight=False)
    key = " -H 'Authorization: Bearer $KEY'" if settings.api_keys else ""
    plain = {"highlight": False, "markup": False, "soft_wrap": True}
    out.print(
        f"Try:  curl {facts.url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        '-d \'{"messages": [{"role": "user", "content": "Hello!"}], "stream": true}\'',
        **plain,  # type: ignore[arg-type]
    )
    if facts.token is not None:
        out.print("Join: on another machine, to make it part of this swarm:", **plain)  # type: ignore[arg-type]
        out.print(f"      mesh join {facts.token}", **plain)  # type: ignore[arg-type]
