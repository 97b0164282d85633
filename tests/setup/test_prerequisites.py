"""What only an administrator can install is named in one line each, with the command to get it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.prerequisites import _INSTALL, _PACKAGES, _TITLES, Machine, look, missing, needed

ALL = frozenset(_TITLES)
DEBIAN = Machine(system="Linux", python=(3, 11), has=ALL, manager="apt-get", root=False)
MAC = Machine(system="Darwin", python=(3, 13), has=ALL, manager="brew", root=False)
NEEDS = ["venv", "compiler", "gmp", "headers"]


def without(machine: Machine, *things: str) -> Machine:
    return replace(machine, has=machine.has - set(things))


def test_nothing_is_missing() -> None:
    assert missing(DEBIAN, NEEDS) == []
    assert missing(MAC, NEEDS) == []


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        (without(DEBIAN, "compiler"), "A C++ compiler: missing. Run: sudo apt-get install build-essential"),
        (without(DEBIAN, "venv"), "Python's venv module: missing. Run: sudo apt-get install python3-venv"),
        (without(DEBIAN, "gmp"), "GMP's C headers: missing. Run: sudo apt-get install libgmp-dev"),
        (without(DEBIAN, "headers"), "Python's C headers: missing. Run: sudo apt-get install python3-dev"),
        (without(replace(DEBIAN, root=True), "gmp"), "GMP's C headers: missing. Run: apt-get install libgmp-dev"),
        (without(MAC, "compiler"), "A C++ compiler: missing. Run: xcode-select --install"),
        (without(MAC, "gmp"), "GMP's C headers: missing. Run: brew install gmp"),
        (without(replace(DEBIAN, manager="apk"), "gmp"), "GMP's C headers: missing. Run: sudo apk add gmp-dev"),
    ],
)
def test_one_line_says_what_and_how(machine: Machine, line: str) -> None:
    assert missing(machine, NEEDS) == [line]


def test_an_unknown_package_manager() -> None:
    [line] = missing(without(replace(DEBIAN, manager=None), "compiler"), NEEDS)
    assert "with this machine's package manager (Debian calls it build-essential)" in line


def test_only_what_is_needed_is_asked_for() -> None:
    assert missing(without(DEBIAN, "gmp", "headers"), ["venv", "compiler"]) == []


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ((3, 9), "apt-get install python3.11 python3.11-venv; then: make PYTHON=python3.11 run"),
        ((3, 14), "apt-get install python3.13 python3.13-venv; then: make PYTHON=python3.13 run"),
    ],
)
def test_another_python(python: tuple[int, int], command: str) -> None:
    [line] = missing(replace(DEBIAN, python=python), NEEDS)
    assert line.startswith(f"Python 3.11 to 3.13 is needed, this is {python[0]}.{python[1]}. ")
    assert line.endswith(command)


@pytest.mark.parametrize("manager", _INSTALL)
@pytest.mark.parametrize("what", [*_TITLES, "python"])
def test_every_package_manager_knows_every_package(manager: str, what: str) -> None:
    """A Mac's compiler comes from elsewhere."""
    assert what in _PACKAGES[manager] or (manager, what) == ("brew", "compiler")
    machine = replace(DEBIAN, manager=manager, python=(3, 9), has=frozenset())
    if manager != "brew":
        lines = missing(machine, NEEDS)
        assert len(lines) == 1 + len(NEEDS)
        assert all("{" not in line for line in lines)


@pytest.mark.parametrize(
    ("requirements", "extra"),
    [
        ("trio==0.31 \\\n    --hash=sha256:0\n", []),
        ("fastecdsa==3.0.1 \\\n    --hash=sha256:0\n", ["gmp", "headers"]),
        ("FastECDSA == 3.0.1\n", ["gmp", "headers"]),
        ("# fastecdsa is not wanted\n", []),
        ("not-fastecdsa==1\n", []),
    ],
)
def test_what_a_requirement_is_built_from(requirements: str, extra: list[str]) -> None:
    assert needed(requirements) == ["venv", "compiler", *extra]


def test_this_machine_and_the_real_requirements() -> None:
    """A machine that runs the tests has been set up, so nothing can be missing."""
    pinned = Path(__file__).parents[2] / "requirements" / "runtime.txt"
    assert missing(look(), needed(pinned.read_text())) == []
