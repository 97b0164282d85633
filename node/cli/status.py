"""`mesh status`."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from node.cli.console import DataOption, JsonOption, NodeClient, mib, out, print_json, settings_of
from node.cli.plan import layers


def status(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the running node: where it answers, what it has loaded, what waits."""
    client = NodeClient(settings_of(data=data))
    system = client.get("/system")
    swarm = client.get("/api/mesh") if system["swarm"] else None
    if as_json:
        print_json({"url": client.url} | system | {"swarm": swarm})
        return
    hardware = system["hardware"]
    out.print(f"[bold]{client.url}[/]  mesh {system['version']}, process {system['pid']}", highlight=False)
    devices = ", ".join(f"{gpu['name']} ({mib(gpu['memory_bytes'])})" for gpu in hardware["accelerators"])
    out.print(
        f"{hardware['processor']}, {hardware['physical_cores']} cores, {mib(hardware['memory_bytes'])}"
        f"{', ' + devices if devices else ''}; models may take {mib(system['memory_budget_bytes'])}",
        highlight=False,
        markup=False,
    )
    table = Table(
        Column("model", overflow="fold"), "state", "slots", "queue", "memory", "prefill tok/s", "decode tok/s"
    )
    for model in system["models"]:
        table.add_row(*_row(model))
    out.print(table)
    if swarm is not None:
        out.print(_peers(swarm))
        if lent := _lent(swarm):
            out.print(lent)
        if any(model["state"] == "ready" and model["name"] in _split_here(swarm) for model in system["models"]):
            out.print(layers(plan for plan in client.get("/api/mesh/plans")["plans"] if plan.get("loaded")))
        for variant in swarm["variants"]:
            out.print(f"[yellow]{escape(variant['model'])}[/] is not the same model on all nodes.", highlight=False)
    for name, reason in system["broken_model_files"].items():
        out.print(f"[red]{escape(name)}[/]: {escape(reason)}", highlight=False)


def _peers(swarm: dict[str, Any]) -> Table:
    table = Table(
        Column("node", overflow="fold"),
        "state",
        "round trip",
        "in flight",
        Column("models", overflow="fold"),
        "version",
    )
    for node in swarm["nodes"]:
        models = ", ".join(
            f"{model['model']} ({load['slots_used']}/{load['slots'] or model['slots']}"
            f"{', ' + load['state'] if load['state'] != 'ready' else ''})"
            if (load := model.get("load"))
            else model["model"]
            for model in node["models"]
        )
        trip = (
            "here" if node["self"] else f"{node['round_trip_s'] * 1000:.1f} ms{' relayed' if node['relayed'] else ''}"
        )
        state = node["state"] if node["state"] == "alive" else f"[red]{node['state']}[/]"
        table.add_row(
            escape(node["name"]), state, trip, str(node["in_flight"]), escape(models), escape(node["version"])
        )
    return table


def _lent(swarm: dict[str, Any]) -> Table | None:
    """What nodes lend to others' models."""
    table = Table(Column("lends", overflow="fold"), "node", "memory", "devices", "version", "leased by")
    for node in swarm["nodes"]:
        for target in node["targets"]:
            table.add_row(
                escape(target["name"]),
                escape(node["name"]),
                mib(target["memory_bytes"]),
                escape(", ".join(target["devices"])),
                escape(target["version"]),
                escape(target["leased_by"]) or "nobody",
            )
    return table if table.row_count else None


def _split_here(swarm: dict[str, Any]) -> set[str]:
    [own] = [node for node in swarm["nodes"] if node["self"]]
    return {model["model"] for model in own["models"] if model.get("sharded")}


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    state = model["state"]
    if state == "loading" and model.get("load_progress") is not None:
        state = f"loading {model['load_progress']:.0%}"
    if model["error"]:
        state = escape(f"{state}: {model['error']}")
    memory = model.get("engine_memory_bytes") or model["memory_bytes"]
    return (
        model["name"],
        state,
        f"{model['slots_leased']}/{model['slots']}",
        str(model["queue"]),
        mib(memory),
        str(model.get("prefill_tokens_per_s", "")),
        str(model.get("decode_tokens_per_s", "")),
    )
