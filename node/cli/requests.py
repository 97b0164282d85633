"""`mesh explain` and `mesh trace`: why a request went where it went, and what happened to it on the way."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Column, Table

from node.cli.console import DataOption, JsonOption, NodeClient, out, print_json, settings_of

IdArgument = Annotated[
    str | None,
    typer.Argument(
        help="X-Correlation-ID of the answer; without it the last request is taken.", metavar="ID", show_default=False
    ),
]
_TERMS = ("queue_s", "load_s", "prefill_s", "decode_s", "round_trip_s", "penalty_s", "total_s")


def explain(request_id: IdArgument = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Print every node that was considered for a request, with the terms of its expected completion time."""
    client = NodeClient(settings_of(data=data))
    found = client.get(f"/api/mesh/requests/{_id(client, request_id)}/explain")
    if as_json:
        print_json(found)
        return
    out.print(f"[bold]{escape(found['id'])}[/]  {escape(found['model'])}  {found['outcome']}", highlight=False)
    for decision in found["decisions"]:
        out.print(
            f"\nat {decision['at_s']:.3f} s, policy {decision['policy']}: {decision['reason']}",
            highlight=False,
            markup=False,
        )
        table = Table("", "node", *(term.removesuffix("_s").replace("_", " ") for term in _TERMS))
        for row in decision["candidates"]:
            table.add_row("→" if row["chosen"] else "", escape(row["node"]), *(f"{row[term]:.3f}" for term in _TERMS))
        out.print(table)
        for row in decision["candidates"]:
            words = row["words"] if row["usable"] else f"out: {row['reason']}"
            out.print(f"  {row['node']}: {words}", highlight=False, markup=False)


def trace(request_id: IdArgument = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Print the timeline of a request over all nodes that worked on it."""
    client = NodeClient(settings_of(data=data))
    found = client.get(f"/api/mesh/requests/{_id(client, request_id)}/trace")
    if as_json:
        print_json(found)
        return
    out.print(f"[bold]{escape(found['id'])}[/]  {escape(found['model'])}  {found['outcome']}", highlight=False)
    table = Table(Column("at", justify="right"), "at node", "what", "about", Column("detail", overflow="fold"))
    for event in found["timeline"]:
        table.add_row(*_row(event))
    out.print(table)


def _row(event: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{event['at_s']:.3f} s",
        escape(event["where"]),
        event["what"],
        escape(event["node"]),
        escape(event["detail"]),
    )


def _id(client: NodeClient, given: str | None) -> str:
    if given is None:
        last = client.get("/api/mesh/requests?limit=1")["requests"]
        if not last:
            raise typer.BadParameter("no request has entered this node yet")
        given = str(last[0]["id"])
    return quote(given, safe="")
