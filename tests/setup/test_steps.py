"""Steps that are skipped when nothing has changed, and that show how far they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import steps
from scripts.steps import Progress, Stamps, StepError, key_of, run, share_done

HERE = [sys.executable, "-c"]


def test_a_step_is_done_once(tmp_path: Path) -> None:
    stamps = Stamps(tmp_path / "setup.json")
    assert not stamps.fresh("step", "key")
    stamps.note("step", "key")
    stamps.note("other", "key")
    again = Stamps(tmp_path / "setup.json")
    assert again.fresh("step", "key")
    assert not again.fresh("step", "another key")
    assert again.fresh("other", "key")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"7", b'"step"', b"null"])
def test_a_broken_stamp_file_means_nothing_is_done(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "setup.json"
    path.write_bytes(content)
    stamps = Stamps(path)
    assert not stamps.fresh("step", "key")
    stamps.note("step", "key")
    assert Stamps(path).fresh("step", "key")


def test_a_key_depends_on_contents_and_on_their_borders(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("ab")
    assert key_of(file) == key_of("ab")
    assert key_of("ab", "c") != key_of("a", "bc") != key_of("abc")
    before = key_of(file)
    file.write_text("ac")
    assert key_of(file) != before


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("[1/81] Building CXX object x.o", 1 / 81),
        ("[81/81] Linking", 1.0),
        ("[0/81] Re-checking", 0.0),
        ("[90/81] more than there was", 1.0),
        ("[1/0] nothing", None),
        ("-- Configuring done", None),
        ("see [1/81]", None),
        ("", None),
    ],
)
def test_what_ninja_says(line: str, share: float | None) -> None:
    assert share_done(line) == share


@given(st.text(max_size=40))
def test_any_line(line: str) -> None:
    share = share_done(line)
    assert share is None or 0 <= share <= 1


def test_a_command_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "setup.log"
    script = "import sys; print('[1/2] a'); print('[2/2] b'); print('to stderr', file=sys.stderr)"
    run("building", [*HERE, script], log=log)
    told = capsys.readouterr().err
    assert told.startswith("  building …\n")
    assert "building: 50%" in told
    assert "building: done in" in told
    assert "to stderr" not in told, "its own output is the log's"
    assert {"[1/2] a", "[2/2] b", "to stderr"} <= set(log.read_text().splitlines())


def test_one_that_fails_shows_its_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "setup.log"
    with pytest.raises(StepError) as caught:
        run("building", [*HERE, "for n in range(99): print('line', n)\nraise SystemExit(3)"], log=log, advice="Do X.")
    told = str(caught.value)
    assert "building: failed with status 3" in told
    assert "    line 98\n" in told
    assert "line 50\n" not in told
    assert str(log) in told
    assert told.endswith("Do X.")
    assert "line 50" in log.read_text()
    assert "done" not in capsys.readouterr().err


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"configuring: .*/cmake cannot be started: .* Do X\."):
        run("configuring", [str(tmp_path / "cmake")], log=tmp_path / "setup.log", advice="Do X.")


def test_output_of_any_bytes(tmp_path: Path) -> None:
    run("x", [*HERE, r"import sys; sys.stdout.buffer.write(b'\xff\xfe\n')"], log=tmp_path / "setup.log")
    assert "\ufffd" in (tmp_path / "setup.log").read_text()


def test_a_log_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_LOG_BYTES", 100)
    log = tmp_path / "setup.log"
    run("first", [*HERE, "print('o' + 'ne!')"], log=log)
    run("second", [*HERE, "print('x' * 200)"], log=log)
    assert "one!" in log.read_text()  # printed, not part of the command
    run("third", [*HERE, "print('three')"], log=log)
    assert "one!" not in log.read_text()


def test_progress_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("building") as progress:
        for hundredth in range(101):
            progress.show(hundredth / 100)
        progress.show(None)
    assert len(capsys.readouterr().err.splitlines()) == 1 + 10 + 1, "a line for each tenth"


def test_progress_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_REDRAW_S", 0.001)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("building") as progress:
        progress.show(0.42)
        drawn = ""
        while "42%" not in drawn:
            drawn += capsys.readouterr().err
    assert "\n" not in drawn, "one line, drawn again and again"
    assert capsys.readouterr().err.endswith("  building: done in 0 s\n")
