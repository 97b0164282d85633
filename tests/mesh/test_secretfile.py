"""Files with secrets: modes, and what stands in the file's place. Identity's own tests cover reading and writing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mesh.secretfile import MAX_SECRET_FILE_BYTES, SecretFileError, read_secret, write_secret


def test_what_is_not_there(tmp_path: Path) -> None:
    assert read_secret(tmp_path / "none") is None
    assert read_secret(tmp_path / "no" / "folder") is None


def test_writing_replaces_and_closes_an_open_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)
    write_secret(path, b"new")
    assert read_secret(path) == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    write_secret(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SecretFileError, match="No space left"):
        write_secret(path, b"new")
    assert read_secret(path) == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_small_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    write_secret(tmp_path / "large", bytes(MAX_SECRET_FILE_BYTES + 1))
    for name in ("fifo", "folder", "large"):
        with pytest.raises(SecretFileError):
            read_secret(tmp_path / name)


def test_a_sticky_folder_will_do(tmp_path: Path) -> None:
    """In /tmp others may put files, but not replace ours."""
    tmp_path.chmod(0o1777)
    write_secret(tmp_path / "token", b"secret")
    assert read_secret(tmp_path / "token") == b"secret"
