"""One node a data folder, and how commands find it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.datadir import LOCK_FILE, RECORD_FILE, DataDirError, hold_data_dir, running_url

URL = "http://127.0.0.1:1"


def test_the_record_lives_as_long_as_the_lock(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    assert running_url(data) is None
    with hold_data_dir(data) as record:
        assert running_url(data) is None, "not before it answers"
        record.write(url=URL, version="1")
        assert running_url(data) == URL
        assert json.loads((data / RECORD_FILE).read_text())["pid"] == os.getpid()
        assert data.stat().st_mode & 0o077 == 0
    assert running_url(data) is None
    with hold_data_dir(data):
        pass


def test_a_second_node_is_refused_with_the_firsts_process_id(tmp_path: Path) -> None:
    with hold_data_dir(tmp_path):
        with pytest.raises(DataDirError, match=rf"process {os.getpid()}\) already runs"):
            with hold_data_dir(tmp_path):
                pass
        assert (tmp_path / LOCK_FILE).read_text() == str(os.getpid()), "and leaves the first alone"


def test_nothing_is_left_of_a_node_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from node.datadir import hold_data_dir\n"
        "with hold_data_dir(Path(sys.argv[1])) as record:\n"
        f"    record.write(url={URL!r}, version='1'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert (tmp_path / RECORD_FILE).exists()
    assert running_url(tmp_path) is None
    with hold_data_dir(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="cannot be used"), hold_data_dir(tmp_path / "file" / "data"):
        pass


@pytest.mark.parametrize("record", ["", "[]", "{}", "\x00"])
def test_a_damaged_record_is_no_node(tmp_path: Path, record: str) -> None:
    with hold_data_dir(tmp_path):
        (tmp_path / RECORD_FILE).write_text(record)
        assert running_url(tmp_path) is None
