"""Steps that are skipped when nothing they depend on has changed, and that show how far they are."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

_NINJA = re.compile(r"\[(\d+)/(\d+)\]")
_TAIL_LINES = 15
_REDRAW_S = 0.25
_LOG_BYTES = 16 << 20


class StepError(Exception):
    """A step has failed; the message says which, where its log is, its last lines, and what to do."""


class Stamps:
    """Which step was last done with which key, in a small JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            done = json.loads(path.read_text())
        except (OSError, ValueError):
            done = None
        self._done: dict[str, str] = done if isinstance(done, dict) else {}

    def fresh(self, step: str, key: str) -> bool:
        """Whether `step` was done with this very key."""
        return self._done.get(step) == key

    def note(self, step: str, key: str) -> None:
        """`step` has been done with `key`."""
        self._done[step] = key
        self._path.write_text(json.dumps(self._done, indent=1, sort_keys=True))


def key_of(*parts: str | Path) -> str:
    """A digest of strings and files' contents, in order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def share_done(line: str) -> float | None:
    """The share of a ninja build that a line of its output announces, 0 to 1."""
    found = _NINJA.match(line)
    if not found or not int(found[2]):
        return None
    return min(1.0, int(found[1]) / int(found[2]))


class Progress:
    """One line on stderr that says what is being done, for how long, and how far it is.

    On a terminal the line is redrawn while the block runs, also when the command says nothing for a while; elsewhere
    one line is printed for each tenth.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._share: float | None = None
        self._tenth = 0
        self._live = sys.stderr.isatty()
        self._ended = threading.Event()
        self._drawer = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._live:
            self._drawer.start()
        else:
            self._say(f"  {self._title} …\n")
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._ended.set()
        if self._live:
            self._drawer.join()
            self._say("\r\033[K")
        if kind is None:
            self._say(f"  {self._title}: done in {self._elapsed()}\n")

    def show(self, share: float | None) -> None:
        """How far it is, 0 to 1; None says nothing."""
        if share is None:
            return
        self._share = share
        if not self._live and int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            self._say(f"  {self._title}: {share:.0%}, {self._elapsed()}\n")

    def _draw(self) -> None:
        while not self._ended.wait(_REDRAW_S):
            done = "" if self._share is None else f" {self._share:4.0%}"
            self._say(f"\r\033[K  {self._title} …{done} {self._elapsed()}")

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._started:.0f} s"

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def run(
    title: str,
    command: list[str],
    *,
    log: Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    advice: str = "",
) -> None:
    """Run a command with its output in `log` and its progress on one line. Raises StepError, `advice` being its end."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    mode = "a" if log.exists() and log.stat().st_size < _LOG_BYTES else "w"
    with log.open(mode, encoding="utf-8") as file, Progress(title) as progress:
        file.write(f"\n$ {' '.join(command)}\n")
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=env,
                cwd=cwd,
            )
        except OSError as error:
            raise StepError(f"{title}: {command[0]} cannot be started: {error}. {advice}") from error
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                tail.append(line)
                progress.show(share_done(line))
        if process.returncode:
            last = "".join(f"    {line.rstrip()}\n" for line in tail)
            failed = f"{title}: failed with status {process.returncode}. Its last lines:\n{last}"
            raise StepError(f"{failed}The whole output is in {log}. {advice}")
