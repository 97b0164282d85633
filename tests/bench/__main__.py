"""`python -m tests.bench [--quick] [--list] [NAME…]`."""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from pathlib import Path

import trio
from rich.console import Console

from tests.bench import report
from tests.bench.harness import Bench, Row, Session, all_cores
from tests.bench.load import load_process
from tests.bench.registry import BENCHES


def main() -> None:
    """Run the named benches, or all, and print their table."""
    names = [bench.name for bench in BENCHES]
    parser = argparse.ArgumentParser(prog="make bench", description="Measure a node side by side with others.")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"which to run: {', '.join(names)}; none: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and requests: a look, not a figure")
    parser.add_argument("--threads", type=int, default=all_cores(), help="of every engine; default: all cores")
    parser.add_argument("--list", action="store_true", help="say what there is")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in names]:
        parser.error(f"there is no bench {', '.join(unknown)}; there are: {', '.join(names)}")
    console = Console(width=None if Console().is_terminal else 160)
    if arguments.list:
        for bench in BENCHES:
            console.print(f"[bold]{bench.name:14}[/] {bench.line}")
        return
    chosen = [bench for bench in BENCHES if not arguments.names or bench.name in arguments.names]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers end with the bench
    console.print(f"{report.machine()}\nthreads of each engine: {arguments.threads}", highlight=False)
    trio.run(_run, chosen, console, arguments.quick, arguments.threads)


async def _run(benches: list[Bench], console: Console, quick: bool, threads: int) -> None:
    started = time.monotonic()
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as folder, load_process() as load:
        session = Session(
            quick=quick,
            folder=Path(folder),
            load=load,
            tell=lambda text: console.print(f"  {text}", highlight=False),
            threads=threads,
        )
        for number, bench in enumerate(benches, 1):
            console.print(f"[{number}/{len(benches)}] [bold]{bench.name}[/]: {bench.line}", highlight=False)
            rows[bench.name] = await bench.run(session)
    report.show(console, rows)
    for warning in session.warnings:
        console.print(f"[bold red]{warning}[/]", highlight=False)
    console.print(f"{time.monotonic() - started:.0f} s" + (", quick: no figures to quote" if quick else ""))


if __name__ == "__main__":
    main()
