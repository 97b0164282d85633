"""The table, and the machine it was measured on."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench.harness import Row

_VERSIONS = ("llama-cpp-python", "trio", "quart", "quart-trio", "hypercorn", "msgspec")


def show(console: Console, rows: Mapping[str, Sequence[Row]]) -> None:
    """One table of all benches that ran."""
    table = Table(title="What the node costs", title_justify="left", show_lines=False)
    for heading in ("bench", "measurement", "value", "against"):
        table.add_column(heading, overflow="fold")
    table.add_column("ratio", justify="right")
    table.add_column("target")
    table.add_column("met")
    for name, lines in rows.items():
        table.add_section()
        for number, row in enumerate(lines):
            met = {None: "", True: "[green]yes[/]", False: "[bold red]NO[/]"}[row.met]
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            table.add_row("" if number else name, row.what, row.value, row.against, ratio, row.target, met)
    console.print(table)


def machine() -> str:
    """Processor, cores, memory, system and versions, in a few lines."""
    cores = f"{psutil.cpu_count(logical=False)} cores ({psutil.cpu_count()} threads)"
    memory = f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB"
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {_processor()}, {cores}, {memory}, {platform.platform(terse=True)}",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in _VERSIONS),
    ]
    load = psutil.getloadavg()[0]
    lines.append(f"load average before the run: {load:.1f}" + (" (busy: trust the ratios alone)" if load > 0.5 else ""))
    return "\n".join(lines)


def _processor() -> str:
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
