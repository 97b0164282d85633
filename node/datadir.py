"""One node a data folder: the lock that keeps a second one out, and the record by which commands find the node."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOCK_FILE = "node.lock"
RECORD_FILE = "node.json"


class DataDirError(Exception):
    """The data folder cannot be used: one sentence for a person."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """Where the running node writes how it can be reached."""

    path: Path

    def write(self, *, url: str, version: str) -> None:
        """Say where the node answers."""
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps({"url": url, "pid": os.getpid(), "version": version}), encoding="utf-8")
        draft.replace(self.path)


@contextmanager
def hold_data_dir(data: Path) -> Iterator[NodeRecord]:
    """Make the folder (mode 700) and hold its lock; the system frees it with the process, however that ends.

    Raises DataDirError when another node holds it or the folder cannot be written.
    """
    record = NodeRecord(data / RECORD_FILE)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise DataDirError(f"The data folder {data} cannot be used: {error.strerror or error}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise DataDirError(
                f"A node (process {pid}) already runs on {data}. Stop it, or give this one a folder of its own "
                "with --data DIR."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield record
        finally:
            record.path.unlink(missing_ok=True)


def running_url(data: Path) -> str | None:
    """The URL of the node that runs on `data`; None when none does (also after one was killed)."""
    try:
        record = json.loads((data / RECORD_FILE).read_text(encoding="utf-8"))
        with (data / LOCK_FILE).open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return str(record["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None
