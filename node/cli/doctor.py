"""`mesh doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict

import trio
from rich.markup import escape

from node.cli.console import CommandError, DataOption, JsonOption, NodeClient, out, print_json, settings_of
from node.datadir import running_url


def doctor(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Look at everything that a node and its swarm need, and say what is wrong and what to do. Exit status 1 if so."""
    settings = settings_of(data=data)
    view = None
    if running_url(settings.data) is not None:
        try:
            view = NodeClient(settings).get("/api/mesh")
        except CommandError:
            view = None  # solo, or it does not answer: the findings below say so
    from node.doctor import examine

    checks = trio.run(examine, settings, view)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            mark = "[green]ok[/]" if check.ok else "[red]no[/]"
            out.print(f"{mark}  [bold]{escape(check.name)}[/]: {escape(check.finding)}", highlight=False)
            if check.advice:
                out.print(f"      {escape(check.advice)}", style="dim" if check.ok else "", highlight=False)
    if not all(check.ok for check in checks):
        sys.exit(1)
