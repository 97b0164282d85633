"""`mesh plan`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Column, Table

from node.cli.console import DataOption, JsonOption, NodeClient, mib, out, print_json, settings_of


def plan(
    model: Annotated[str, typer.Argument(help="The model's name, as `mesh models list` shows it.", show_default=False)],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which nodes can hold a model, or how its layers would be split over several, and why.

    The figures are predictions from measured ones: rates, round trips, links, free memory. The running node is asked.
    """
    client = NodeClient(settings_of(data=data))
    [found] = client.get(f"/api/mesh/plans?model={quote(model, safe='')}")["plans"]
    if as_json:
        print_json(found)
        return
    if "error" in found:
        out.print(f"[bold]{escape(found['model'])}[/]: {escape(found['error'])}", highlight=False)
        return
    fits = ", ".join(found["fits"]) or "no node alone"
    state = ", and is loaded so" if found["loaded"] else ""
    out.print(
        f"[bold]{escape(found['model'])}[/] needs {mib(found['need_bytes'])} in one piece and fits {escape(fits)}.",
        highlight=False,
    )
    split = found["split"]
    if split is not None:
        out.print(
            f"Over {len(split['nodes'])} nodes{state}: about {split['tokens_per_s']} tokens/s, loaded in about "
            f"{split['load_s']} s, with {found['slots']} slots of {found['context_tokens']} tokens.",
            highlight=False,
        )
        out.print(layers([found]))
    for reason in found["why"]:
        out.print(f"- {reason}", highlight=False, markup=False, soft_wrap=True)


def layers(plans: Iterable[dict[str, Any]]) -> Table:
    """Which node holds how many layers of which model, or which part of all of them."""
    table = Table(
        Column("model", overflow="fold"), "layers", Column("node", overflow="fold"), "memory", "of", "round trip"
    )
    for found in plans:
        split = found.get("split") or {"way": "", "nodes": ()}
        part = f" × 1/{len(split['nodes'])}" if split["way"] == "tensor" else ""
        for share in split["nodes"]:
            table.add_row(
                escape(found["model"]),
                f"{share['layers']}{part}",
                escape(share["node"]) + (" (head)" if share["head"] else ""),
                mib(share["memory_bytes"]),
                mib(share["free_bytes"]),
                "here" if share["head"] else f"{share['round_trip_s'] * 1000:.1f} ms",
            )
    return table
