"""The commands that need no running node."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from node import __version__, fetch
from node.catalog import EMBEDDED_NAME
from node.cli import console, models
from node.cli.app import app, main
from node.cli.console import CommandError
from tests.support.models import smollm2
from tests.support.visionmodels import write_mmproj

Run = Callable[..., Result]


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `mesh ...` on a data folder of its own; a CommandError comes through as the result's exception."""
    monkeypatch.setenv("MESH_DATA", str(tmp_path))
    monkeypatch.setattr(console.out, "width", 300)
    return lambda *arguments, **options: CliRunner().invoke(app, arguments, **options)


def json_of(result: Result) -> Any:
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def error_of(result: Result) -> str:
    assert isinstance(result.exception, CommandError), result.output
    return str(result.exception)


def names(mesh: Run) -> list[str]:
    return [model["name"] for model in json_of(mesh("models", "list", "--json"))["models"]]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["up", "status", "models", "chat"]),
        (("status",), ["--json", "--data"]),
        (("models", "list"), ["--json", "--data"]),
        (("models", "remove"), ["--json", "--data", "--delete-file"]),
        (("up",), ["Examples", "mesh up --port 0", "--config", "--memory-budget-bytes"]),
        (("chat",), ["Examples", "--system"]),
        (("models",), ["list", "add", "remove"]),
        (("models", "add"), ["Examples", "hf://", "--digest", "--json"]),
    ],
)
def test_help_teaches(mesh: Run, command: Sequence[str], words: list[str]) -> None:
    result = mesh(*command, "--help", env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert all(word in result.stdout for word in words)


def test_the_version(mesh: Run) -> None:
    assert mesh("--version").stdout == f"mesh {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["status"], 1, "mesh: No node runs on"),
        (["up", "--host", "0.0.0.0"], 1, "mesh: The API may listen on 0.0.0.0 only with an API key"),
        (["up", "--config", "nope.toml"], 1, "mesh: There is no settings file nope.toml"),
        (["up", "--log-level", "loud"], 1, "mesh: The setting log_level (MESH_LOG_LEVEL) is wrong"),
        (["up", "--port", "99999"], 2, "65535"),
        (["chat", "hi"], 1, "mesh: No node runs on"),
        (["models", "remove", "nope"], 1, "mesh: There is no model nope"),
        (["models", "add"], 2, "Missing argument"),
        (["models", "list", "--nope"], 2, "--nope"),
        (["nope"], 2, "nope"),
    ],
)
def test_an_error_is_told_on_standard_error(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    status: int,
    told: str,
) -> None:
    monkeypatch.setenv("MESH_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["mesh", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert caught.value.code == status
    assert told in printed.err
    assert printed.out == ""
    assert status == 2 or printed.err.count("\n") == 1


def test_without_models_the_embedded_one_is_shown(mesh: Run) -> None:
    (model,) = json_of(mesh("models", "list", "--json"))["models"]
    assert model["name"] == EMBEDDED_NAME
    assert model["embedded"]
    assert model["bytes"] == smollm2().stat().st_size
    assert "embedded" in mesh("models", "list").stdout


def test_adding_and_removing(mesh: Run, tmp_path: Path) -> None:
    added = json_of(mesh("models", "add", "backend:fake", "--name", "a", "--slots", "3", "--pinned", "--json"))
    assert (added["name"], added["backend"], added["pinned"]) == ("a", "fake", True)
    assert "slots: 3" in (tmp_path / "models" / "a.yaml").read_text()
    assert names(mesh) == ["a"]
    assert json_of(mesh("models", "remove", "a", "--json")) == {"removed": "a", "deleted": None}
    assert names(mesh) == [EMBEDDED_NAME]


def test_a_file_is_added_where_it_lies(mesh: Run, tmp_path: Path) -> None:
    for number, source in enumerate((str(smollm2()), smollm2().as_uri())):
        added = json_of(mesh("models", "add", source, "--name", f"m{number}", "--context-size", "64", "--json"))
        assert (added["path"], added["backend"]) == (str(smollm2()), "llama-cpp")
    result = mesh("models", "remove", "m0", "--delete-file")
    assert smollm2().exists()
    assert "outside the data folder" in result.stderr


def test_a_model_that_sees_is_added_with_its_encoder(mesh: Run, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    encoder = write_mmproj(folder / "mmproj.gguf", width=576)
    mesh("models", "add", str(smollm2()), "--mmproj", str(encoder), "--name", "eyes")
    assert f"mmproj: {encoder}" in (folder / "eyes.yaml").read_text()
    assert "There is no file" in error_of(mesh("models", "add", str(smollm2()), "--mmproj", str(tmp_path / "none")))
    assert json_of(mesh("models", "remove", "eyes", "--delete-file", "--json"))["deleted"] == str(encoder)
    assert not encoder.exists()


def test_weights_in_the_data_folder_are_deleted_when_asked(mesh: Run, tmp_path: Path) -> None:
    weights = tmp_path / "models" / "weights.gguf"
    weights.parent.mkdir()
    weights.write_bytes(b"any")
    (tmp_path / "models" / "w.yaml").write_text("{name: w, parameters: {model: weights.gguf}}")
    assert json_of(mesh("models", "remove", "w", "--delete-file", "--json"))["deleted"] == str(weights)
    assert not weights.exists()


@pytest.mark.parametrize(
    ("source", "options", "complaint"),
    [
        ("backend:nope", (), "nope is not installed"),
        ("backend:fake", ("--name", "../up"), "Choose one with --name"),
        ("missing.gguf", (), "There is no file"),
        ("hf://only/two", (), "incomplete"),
        ("ftp://host/m.gguf", (), "neither"),
    ],
)
def test_what_cannot_be_added_leaves_nothing(
    mesh: Run, tmp_path: Path, source: str, options: tuple[str, ...], complaint: str
) -> None:
    assert complaint in error_of(mesh("models", "add", source, *options))
    assert not list(tmp_path.glob("models/*"))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 100])
def test_a_foreign_file_is_refused_before_it_is_a_model(mesh: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert "cannot be added" in error_of(mesh("models", "add", str(path)))
    assert names(mesh) == [EMBEDDED_NAME]


def test_a_wrong_digest_is_told(mesh: Run) -> None:
    error = error_of(mesh("models", "add", str(smollm2()), "--digest", "sha256:" + "0" * 64))
    assert "instead of sha256:000" in error


def test_a_name_can_be_taken_once(mesh: Run, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "file.yaml").write_text("{name: a, aliases: [b], backend: fake}")
    for name in "ab":
        assert "already" in error_of(mesh("models", "add", "backend:fake", "--name", name))


def test_the_embedded_model_cannot_be_removed_but_its_name_can_be_used(mesh: Run) -> None:
    assert "comes with the program" in error_of(mesh("models", "remove", EMBEDDED_NAME))
    json_of(mesh("models", "add", "backend:fake", "--name", EMBEDDED_NAME, "--json"))
    assert names(mesh) == [EMBEDDED_NAME]


def test_a_broken_file_is_shown_with_its_reason(mesh: Run, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "odd[bold].yaml").write_text("{name: '[/red]'}")
    assert "odd[bold].yaml is left out" in mesh("models", "list").stderr
    assert json_of(mesh("models", "list", "--json"))["broken"].keys() == {"odd[bold].yaml"}


def test_a_download_becomes_a_model(mesh: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = smollm2().read_bytes()

    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://hub.test/org/repo/resolve/main/Tiny-Q4.gguf"
        return httpx.Response(200, content=content)

    def fetch_here(*arguments: Any, **options: Any) -> fetch.Fetched:
        return fetch.fetch(*arguments, **options, client=httpx.Client(transport=httpx.MockTransport(answer)))

    monkeypatch.setattr(models, "fetch", fetch_here)
    monkeypatch.setenv("MESH_HUB_URL", "http://hub.test")
    added = json_of(mesh("models", "add", "hf://org/repo/Tiny-Q4.gguf", "--json"))
    assert (added["name"], added["bytes"]) == ("tiny-q4", len(content))
    text = (tmp_path / "models" / "tiny-q4.yaml").read_text()
    assert "uri: hf://org/repo/Tiny-Q4.gguf" in text
    assert fetch.digest_of(tmp_path / "models" / "Tiny-Q4.gguf") in text


def test_what_may_be_secret_in_an_address_is_not_kept(
    mesh: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "m.gguf"
    monkeypatch.setattr(models, "fetch", lambda *_, **__: fetch.Fetched(weights, "sha256:" + "0" * 64))
    monkeypatch.setattr(models, "read_model", lambda path, backends: pytest.fail(path.read_text()))
    with pytest.raises(pytest.fail.Exception, match=r"uri: https://host/m\.gguf\n") as caught:
        mesh("models", "add", "https://me:sesame@host/m.gguf?token=sesame", catch_exceptions=False)
    assert "sesame" not in str(caught.value)
