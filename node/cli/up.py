"""`mesh up`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from node.cli.console import CommandError, DataOption, err, out, settings_of
from node.config import Settings


def up(
    data: DataOption = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings, instead of config.toml in the data folder.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; anything but loopback needs an API key.", metavar="ADDR")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes any free one.", min=0, max=65535)] = None,
    memory_budget_bytes: Annotated[
        int | None, typer.Option(help="Memory that loaded models may take together.", min=0)
    ] = None,
    idle_unload_s: Annotated[
        float | None, typer.Option(help="Unload a model after so many idle seconds; 0: never.", min=0)
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the URL as one line of JSON.")] = False,
) -> None:
    """Start a node and serve until Ctrl-C.

    Without any model of its own the node serves the embedded SmolLM2-135M-Instruct.

    **Examples**

    - `mesh up` — on 127.0.0.1:8080

    - `mesh up --port 0 --data ./second` — another node on the same machine

    - `MESH_API_KEYS=secret mesh up --host 0.0.0.0` — for other machines too
    """
    settings = settings_of(
        config,
        data=data,
        host=host,
        port=port,
        memory_budget_bytes=memory_budget_bytes,
        idle_unload_s=idle_unload_s,
        log_level=log_level,
    )
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("mesh.http").setLevel(logging.WARNING)
    from node.datadir import DataDirError
    from node.runtime import StartError, run_node

    try:
        run_node(settings, started=lambda url: _greet(url, settings, as_json=as_json))
    except (StartError, DataDirError) as error:
        raise CommandError(str(error)) from error
    err.print("stopped", style="dim")


def _greet(url: str, settings: Settings, *, as_json: bool) -> None:
    if as_json:
        # On one line: who started this process reads it while the process goes on.
        typer.echo(json.dumps({"url": url, "data": str(settings.data)}))
        return
    key = " -H 'Authorization: Bearer $KEY'" if settings.api_keys else ""
    out.print(f"[bold green]The node answers at[/] [bold]{url}[/]   (Ctrl-C stops it)", highlight=False)
    out.print(
        f"Try:  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        '-d \'{"messages": [{"role": "user", "content": "Hello!"}], "stream": true}\'',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
