"""What only an administrator can install, and the line that tells how. Pure, but for `look`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 13)

# What each package manager calls things; {v} and {n} are a Python version as 3.13 and as 313.
_PACKAGES = {
    "apt-get": {
        "compiler": "build-essential",
        "venv": "python3-venv",
        "headers": "python3-dev",
        "gmp": "libgmp-dev",
        "python": "python{v} python{v}-venv",
    },
    "dnf": {
        "compiler": "gcc-c++ make",
        "venv": "python3",
        "headers": "python3-devel",
        "gmp": "gmp-devel",
        "python": "python{v}",
    },
    "pacman": {"compiler": "base-devel", "venv": "python", "headers": "python", "gmp": "gmp", "python": "python"},
    "zypper": {
        "compiler": "gcc-c++ make",
        "venv": "python3",
        "headers": "python3-devel",
        "gmp": "gmp-devel",
        "python": "python{n}",
    },
    "apk": {
        "compiler": "build-base linux-headers",
        "venv": "python3",
        "headers": "python3-dev",
        "gmp": "gmp-dev",
        "python": "python3",
    },
    "brew": {"venv": "python@3.13", "headers": "python@3.13", "gmp": "gmp", "python": "python@{v}"},
}
_INSTALL = {
    "apt-get": "apt-get install",
    "dnf": "dnf install",
    "pacman": "pacman -S",
    "zypper": "zypper install",
    "apk": "apk add",
    "brew": "brew install",
}
# Requirements that have no wheels and what their build needs besides a compiler.
_FROM_SOURCE = {"fastecdsa": ("gmp", "headers")}
_TITLES = {
    "compiler": "A C++ compiler",
    "venv": "Python's venv module",
    "headers": "Python's C headers",
    "gmp": "GMP's C headers",
}


@dataclass(frozen=True)
class Machine:
    """What matters of a machine before anything is built on it."""

    system: str  # Linux, Darwin, ...
    python: tuple[int, int]
    has: frozenset[str]  # of the keys of _TITLES
    manager: str | None  # a key of _INSTALL
    root: bool


def look() -> Machine:
    """This machine."""
    system = platform.system()
    found = {
        "compiler": _has_compiler(system),
        "venv": find_spec("venv") is not None and find_spec("ensurepip") is not None,
        "headers": Path(sysconfig.get_path("include"), "Python.h").exists(),
        "gmp": _has_gmp(),
    }
    managers = ("brew",) if system == "Darwin" else tuple(name for name in _INSTALL if name != "brew")
    return Machine(
        system=system,
        python=sys.version_info[:2],
        has=frozenset(name for name, there in found.items() if there),
        # Named for a Mac even where it is missing: it is what people install these things with there.
        manager="brew" if system == "Darwin" else next((name for name in managers if shutil.which(name)), None),
        root=os.geteuid() == 0,
    )


def needed(requirements: str) -> list[str]:
    """What has to be there to install these pinned requirements (the text of the file) and to build llama.cpp."""
    names = {line.partition("==")[0].strip().lower() for line in requirements.splitlines() if "==" in line}
    extra = [what for name, wants in _FROM_SOURCE.items() if name in names for what in wants]
    return ["venv", "compiler", *extra]


def missing(machine: Machine, needs: list[str]) -> list[str]:
    """One line for each thing that is missing, with the command that gets it. Empty: all is there."""
    lines = []
    if not OLDEST <= machine.python <= NEWEST:
        found = ".".join(map(str, machine.python))
        version = ".".join(map(str, OLDEST if machine.python < OLDEST else NEWEST))
        then = f"then: make PYTHON=python{version} run"
        lines.append(f"Python 3.11 to 3.13 is needed, this is {found}. {_command(machine, 'python', version)}; {then}")
    lines += [f"{_TITLES[what]}: missing. {_command(machine, what)}" for what in needs if what not in machine.has]
    return lines


def _command(machine: Machine, what: str, version: str = "") -> str:
    if machine.system == "Darwin" and what == "compiler":
        return "Run: xcode-select --install"
    if machine.manager is None:
        debian = _PACKAGES["apt-get"][what].format(v=version, n=version.replace(".", ""))
        return f"Install it with this machine's package manager (Debian calls it {debian})"
    packages = _PACKAGES[machine.manager][what].format(v=version, n=version.replace(".", ""))
    sudo = "" if machine.root or machine.manager == "brew" else "sudo "
    return f"Run: {sudo}{_INSTALL[machine.manager]} {packages}"


def _has_compiler(system: str) -> bool:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return False
    if system != "Darwin":
        return True
    # A Mac always has /usr/bin/c++; without the command line tools it only asks for them.
    return subprocess.run(["xcode-select", "-p"], capture_output=True, check=False).returncode == 0


def _has_gmp() -> bool:
    folders = ["/usr/include", "/usr/local/include", "/opt/homebrew/include"]
    if triplet := sysconfig.get_config_var("MULTIARCH"):
        folders.append(f"/usr/include/{triplet}")
    return any(Path(folder, "gmp.h").exists() for folder in folders)
