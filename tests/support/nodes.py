"""Real nodes in real processes, each on a data folder of its own; alone, or as a swarm on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from typer.testing import CliRunner, Result

from node.cli.app import app

START_S = 30.0
END_S = 90.0
"""Until a node that was told to end has ended. Alone on a machine it takes 7 s at most, with its workers."""
MET_S = 30.0
"""Until nodes see of each other what a test waits for. Generous: it only bounds a test that would hang."""


@dataclass
class RunningNode:
    """A node's process and where it answers."""

    process: subprocess.Popen[str]
    url: str
    data: Path
    name: str = ""
    key: str = ""

    @property
    def http(self) -> httpx.Client:
        """A client for it. Close it."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60.0, trust_env=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every request to it needs."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """What it has written to standard error since its last start."""
        return (self.data / "stderr.log").read_text()

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        with self.http as client:
            return client.get(path).raise_for_status().json()

    def workers(self) -> list[psutil.Process]:
        """Its child processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, *, signal_number: int = signal.SIGTERM, timeout_s: float = END_S) -> int:
        """Signal it and wait; its exit status."""
        self.process.send_signal(signal_number)
        return self.process.wait(timeout_s)

    def until(self, holds: Callable[[dict[str, Any]], Any]) -> Any:
        """The first true answer of `holds` to /api/mesh, which is asked again after each of the swarm's events."""
        deadline = time.monotonic() + MET_S
        with self.http as client, client.stream("GET", "/api/mesh/events", timeout=MET_S) as events:
            for line in events.iter_lines():
                if line:
                    continue  # an event ends with an empty line; the first comes at once
                view = client.get("/api/mesh").raise_for_status().json()
                if answer := holds(view):
                    return answer
                assert time.monotonic() < deadline, f"{self.name} does not see it: {states(view)}\n{self.log}"
        raise AssertionError(f"{self.name} ended its events\n{self.log}")

    def until_sees(self, **expected: str) -> None:
        """Wait until it sees nodes in these states: `until_sees(b="alive", c="dead")`."""
        self.until(lambda view: expected.items() <= states(view).items())


def states(view: Mapping[str, Any]) -> dict[str, str]:
    """Who is how, in an answer of /api/mesh."""
    return {node["name"]: node["state"] for node in view["nodes"]}


def write_model(data: Path, name: str, **content: Any) -> Path:
    """Write a model's YAML into a data folder."""
    folder = data / "models"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **content}))
    return path


def environment_of(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these settings, as MESH_* variables, and no others."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    environment["MESH_SOLO"] = "true"  # a test that wants peers says so
    return environment | {f"MESH_{name.upper()}": value for name, value in settings.items()}


def _spawn(
    data: Path,
    *command: str,
    settings: Mapping[str, str],
    module: str = "node.cli",
    prefix: Sequence[str] = (),
    stdin: str = "",
) -> subprocess.Popen[str]:
    data.mkdir(parents=True, exist_ok=True)
    with (data / "stderr.log").open("w") as log:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *command, "--port", "0", "--json", "--data", str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment_of(settings),
        )
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    return process


def _answering(process: subprocess.Popen[str], data: Path, key: str = "") -> RunningNode:
    """Wait until it answers; an error, with its log, if it ends before."""
    assert process.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):  # the JSON that says where it answers; ends with the process
        line = process.stdout.readline()
        assert line, (data / "stderr.log").read_text()
        text += line
    facts = json.loads(text)
    return RunningNode(process, facts["url"], data, facts["name"], key)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def running_node(data: Path, *, module: str = "node.cli", **settings: str) -> Iterator[RunningNode]:
    """`mesh up` on a free port; killed at the end if it still runs. `settings` become MESH_* variables.

    `module` is what runs as `mesh`, for those who put something around it.
    """
    process = _spawn(data, "up", settings=settings, module=module)
    try:
        yield _answering(process, data)
    finally:
        _end(process)


@dataclass(frozen=True)
class _How:
    """What runs a node's process."""

    prefix: Sequence[str] = ()
    module: str = "node.cli"


Models = Mapping[str, Mapping[str, Any]]
"""The content of model files, by name."""


class Swarm:
    """Nodes that share a token, by name; those that have ended stay in `nodes`. Made by `swarm`."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._settings = {"solo": "false", "mesh_host": "127.0.0.1", "lan_discovery": "false", **settings}
        self._processes: list[subprocess.Popen[str]] = []
        self.folder = folder
        self.nodes: dict[str, RunningNode] = {}

    def __getitem__(self, name: str) -> RunningNode:
        return self.nodes[name]

    @property
    def running(self) -> list[RunningNode]:
        """The nodes whose processes run."""
        return [node for node in self.nodes.values() if node.running]

    @property
    def token(self) -> str:
        """As a running node gives it now."""
        with self.running[0].http as client:
            return client.get("/api/p2p/token").raise_for_status().text

    def start(self, *names: str, prefix: Sequence[str] = (), module: str = "node.cli", **settings: str) -> None:
        """Start nodes, all at once, and wait until they answer. The first of all makes the swarm; later ones join it,
        by a token on standard input; one that was in it before comes back with `mesh up` alone. `prefix` runs them, and
        `module` is what runs as `mesh`.
        """
        how = _How(prefix, module)
        if not self.nodes:
            self._start(names[:1], "", how, settings)
            names = names[1:]
        self._start(names, self.token if set(names) - set(self.nodes) else "", how, settings)

    def join(self, name: str, *arguments: str, **settings: str) -> None:
        """Start a node with `mesh join` and these arguments, and wait until it answers."""
        self._launch({name: ("join", *arguments)}, "", _How(), settings)

    def until_met(self) -> None:
        """Wait until every running node sees every other one alive."""
        for node in self.running:
            node.until_sees(**{other.name: "alive" for other in self.running})

    def heal(self) -> None:
        """Start again whoever has ended, and wait until all have met."""
        self.start(*(name for name, node in self.nodes.items() if not node.running))
        self.until_met()

    def kill(self, name: str) -> None:
        """SIGKILL, and wait for the end."""
        self.nodes[name].stop(signal_number=signal.SIGKILL)

    def close(self) -> None:
        """Kill all."""
        for process in self._processes:
            _end(process)

    def _start(self, names: Sequence[str], token: str, how: _How, settings: Mapping[str, str]) -> None:
        known = set(self.nodes) if token else set(names)
        self._launch({name: ("up",) if name in known else ("join", "-") for name in names}, token, how, settings)

    def _launch(
        self, commands: Mapping[str, Sequence[str]], stdin: str, how: _How, settings: Mapping[str, str]
    ) -> None:
        settings = {**self._settings, **settings}
        started = {}
        for name, command in commands.items():
            started[name] = _spawn(
                self.folder / name,
                *command,
                settings={**settings, "name": name},
                module=how.module,
                prefix=how.prefix,
                stdin=stdin,
            )
            self._processes.append(started[name])
        for name, process in started.items():
            self.nodes[name] = _answering(process, self.folder / name, settings.get("api_keys", "").split(",")[0])


@contextmanager
def swarm(folder: Path, models: Mapping[str, Models], **settings: str) -> Iterator[Swarm]:
    """Nodes on loopback that have met, each with its models; killed at the end. `models` is by node.

    `settings` are those of all nodes. LAN discovery is off unless they turn it on.
    """
    made = Swarm(folder, settings)
    for name, files in models.items():
        for model, content in files.items():
            write_model(folder / name, model, **content)
    try:
        made.start(*models)
        made.until_met()
        yield made
    finally:
        made.close()


def mesh_command(*arguments: str, data: Path, **settings: str) -> Result:
    """Run `mesh` to its end in this process, on a data folder, with MESH_* variables of these settings alone.

    What `mesh` would tell on standard error is the result's exception.
    """
    unset = {name: None for name in os.environ if name.startswith("MESH_")}
    environment = unset | environment_of(settings)
    return CliRunner().invoke(app, [*arguments, "--data", str(data)], env=environment)


def mesh_process(*arguments: str, data: Path, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `mesh` as a process to its end."""
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments, "--data", str(data)],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment_of(settings),
        timeout=60,
        check=False,
    )
