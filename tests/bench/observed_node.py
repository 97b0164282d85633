"""`mesh`, with one addition: on SIGUSR1 it writes the number of living trio tasks to <data>/tasks.json."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType

import trio

from node.cli import main


def _write(_signal: int, _frame: FrameType | None) -> None:
    data = Path(sys.argv[sys.argv.index("--data") + 1])
    # Python runs the handler in the main thread, where trio's run is.
    draft = data / "tasks.tmp"
    draft.write_text(json.dumps({"tasks": trio.lowlevel.current_statistics().tasks_living}))
    draft.replace(data / "tasks.json")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _write)
    main()
