"""Waiting for what ends, or changes, by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

LIMIT_S = 20.0  # of a test that would hang


def until(answers: Callable[[], Any]) -> Any:
    """The first true answer. `answers` asks a node over HTTP: the asking itself is the pause."""
    deadline = time.monotonic() + LIMIT_S
    while not (answer := answers()):
        assert time.monotonic() < deadline, "it did not happen"
    return answer


def all_end(processes: Sequence[psutil.Process]) -> bool:
    """Whether all of them end. One that has ended and that nobody waits for (an orphan in a container whose first
    process reaps none) has ended too."""
    alive = list(processes)
    deadline = time.monotonic() + LIMIT_S
    while alive and time.monotonic() < deadline:
        _, alive = psutil.wait_procs(alive, timeout=0.2)
        alive = [process for process in alive if not _is_zombie(process)]
    return not alive


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
