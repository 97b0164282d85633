"""Real nodes in real processes, each on a data folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

START_S = 30.0


@dataclass
class RunningNode:
    """A node's process and where it answers."""

    process: subprocess.Popen[str]
    url: str
    data: Path

    @property
    def http(self) -> httpx.Client:
        """A client for it. Close it."""
        return httpx.Client(base_url=self.url, timeout=60.0, trust_env=False)

    def workers(self) -> list[psutil.Process]:
        """Its child processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, *, signal_number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Signal it and wait; its exit status."""
        self.process.send_signal(signal_number)
        return self.process.wait(timeout_s)


def write_model(data: Path, name: str, **content: Any) -> Path:
    """Write a model's YAML into a data folder."""
    folder = data / "models"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **content}))
    return path


@contextmanager
def running_node(data: Path, *, module: str = "node.cli", **settings: str) -> Iterator[RunningNode]:
    """`mesh up` on a free port; killed at the end if it still runs. `settings` become MESH_* variables.

    `module` is what runs as `mesh`, for those who put something around it.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    environment["MESH_SOLO"] = "true"  # a test that wants peers says so
    environment |= {f"MESH_{name.upper()}": value for name, value in settings.items()}
    data.mkdir(parents=True, exist_ok=True)
    log = (data / "stderr.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", module, "up", "--port", "0", "--json", "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):  # the JSON that says where it answers; ends with the process
            line = process.stdout.readline()
            assert line, (data / "stderr.log").read_text()
            text += line
        yield RunningNode(process, json.loads(text)["url"], data)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        log.close()
