"""Whatever a page names exists: files, links, routes, variables, settings, metrics, targets, commands."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from node import docs
from node.cli.app import app
from node.config import PREFIX, Settings
from node.operations import OPERATIONS
from scripts import setup
from tests.docs.pages import PAGES, ROOT, anchors, commands, inline_code, label, links, page

SUFFIXES = (".py", ".md", ".toml", ".yaml", ".sh", ".service", ".txt")
INVENTED = "backends/other/"  # the example in CONTRIBUTING.md
each_page = pytest.mark.parametrize("path", PAGES, ids=label)


def files_in(text: str) -> list[str]:
    """What looks like a file or folder of the checkout."""
    found = []
    for code in inline_code(text):
        first = code.partition("/")[0]
        if re.fullmatch(r"[\w.-]+(/[\w.-]*)*", code) and (
            ("/" in code and (ROOT / first).is_dir()) or code.endswith(SUFFIXES)
        ):
            found.append(code)
    return found


def exists(name: str) -> bool:
    return (ROOT / name).exists() or ("/" not in name and any(ROOT.glob(f"*/{name}")))


@each_page
def test_files_exist(path: Path) -> None:
    named = files_in(path.read_text(encoding="utf-8"))
    missing = [name for name in named if not name.startswith(INVENTED) and not exists(name)]
    assert not missing


def test_the_search_for_files_finds_them_and_misses_what_is_none() -> None:
    found = files_in("`node/slots.py` `nodes/slots.py` `text/event-stream` `LICENSE` `api/openai` `a b.py`")
    assert found == ["node/slots.py", "nodes/slots.py", "api/openai"]
    assert [exists(name) for name in found] == [True, False, True]
    assert len(files_in(page("docs/design.md"))) > 40


@each_page
def test_links_resolve(path: Path) -> None:
    for target in links(path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        goal = path.parent / file if file else path
        assert goal.exists(), target
        assert not anchor or anchor in anchors(goal.read_text(encoding="utf-8")), target


@each_page
def test_routes_exist(path: Path) -> None:
    served = {
        rule.rule.replace("<path:", "{").replace("<", "{").replace(">", "}")
        for rule in docs.application().url_map.iter_rules()
    }
    if path.name == "endpoints.md":  # its second table also has what others serve and this node does not
        served |= {operation for _, operation in OPERATIONS}
    for code in inline_code(path.read_text(encoding="utf-8")):
        named = re.fullmatch(r"(?:(?:GET|POST) )?(/(?!mesh/)[a-z][\w/{}]*)", code)  # /mesh/… are protocols of streams
        assert not named or named[1] in served, code


@each_page
def test_variables_exist(path: Path) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {"MESH_ACCELERATOR"}
    assert "MESH_ACCELERATOR" in Path(setup.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r"\bMESH_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))) <= known


def test_every_setting_and_every_metric_is_on_its_page() -> None:
    settings = page("docs/settings.md")
    for name in Settings.model_fields:
        assert f"| `{name}` | `{PREFIX}{name.upper()}` |" in settings
    named = set(re.findall(r"\bmesh_[a-z_]+", page("docs/metrics.md"))) | set(Settings.model_fields)
    for path in PAGES:
        assert set(re.findall(r"\bmesh_[a-z_]+", path.read_text(encoding="utf-8"))) <= named, label(path)


@each_page
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", page("Makefile"), re.MULTILINE))
    for words in commands(path.read_text(encoding="utf-8"), "make"):
        assert {word for word in words[1:] if "=" not in word} <= targets, words


def test_contributing_lists_every_folder_of_tests() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert [name for name in sorted(folders) if f"| `tests/{name}` |" not in page("CONTRIBUTING.md")] == []


def test_contributing_lists_every_make_target() -> None:
    targets = re.findall(r"^([a-z]+):.*## ", page("Makefile"), re.MULTILINE)
    assert [target for target in targets if f"| `make {target}` |" not in page("CONTRIBUTING.md")] == []


@each_page
def test_mesh_commands_parse(path: Path) -> None:
    for words in commands(path.read_text(encoding="utf-8"), "mesh"):
        parse_command(words)


@pytest.mark.parametrize("wrong", ["upp", "up --prot 1", "up --port no", "models ad", "models remove a b"])
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    usage_error = typer.BadParameter.__base__
    assert usage_error is not None
    with pytest.raises(usage_error):
        parse_command(["mesh", *wrong.split()])


def parse_command(words: list[str]) -> None:
    """Let the command line parse `words` without running anything. Raises its usage error.

    A command that wants an argument may be named alone, as pages do in running text.
    """
    command: Any = typer.main.get_command(app)
    name, *rest = words
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name, *rest = rest
        if name not in command.commands:
            raise typer.BadParameter(f"there is no command {name}")
        command = command.commands[name]
    if not rest and any(item.required for item in command.params):
        rest = ["--help"]
    if not hasattr(command, "commands") or rest:
        with contextlib.suppress(typer.Exit):  # --help
            command.make_context(name, rest)
