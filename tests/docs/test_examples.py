"""What lies in examples/ works: files through the real readers, scripts against a real node."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backends.llama_cpp.settings import read_settings as read_engine
from backends.process import open_worker
from backends.registry import find_backends
from node.catalog import read_model
from node.config import Settings, read_settings
from tests.docs.pages import ROOT
from tests.docs.test_design import default_of
from tests.docs.test_references import parse_command
from tests.support.nodes import RunningNode

EXAMPLES = ROOT / "examples"


def run(*command: str) -> str:
    """Run an example and return its output. No proxy stands between it and a node on this machine."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_model_file() -> None:
    spec = read_model(EXAMPLES / "model.yaml", find_backends())
    assert spec.backend == "llama-cpp"
    assert spec.path == str(EXAMPLES / "Qwen3-4B-Q4_K_M.gguf")
    assert read_engine(spec.file.engine).cache_type == "q8_0"


def test_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("MESH_"):
            monkeypatch.delenv(name)
    settings = read_settings(EXAMPLES / "config.toml", data=tmp_path)
    assert settings.idle_unload_s == 3600
    commented = (EXAMPLES / "config.toml").read_text().replace("# host =", "host =")
    (tmp_path / "config.toml").write_text(commented)
    keys = tmp_path / "api_keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    assert read_settings(data=tmp_path).host == "0.0.0.0"


def test_the_unit() -> None:
    unit = configparser.RawConfigParser(delimiters=("=",), interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLES / "mesh.service")
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    assert program.endswith("/.venv/bin/mesh")
    parse_command(["mesh", *arguments])
    assert arguments[arguments.index("--data") + 1] == service["ReadWritePaths"]
    assert service["KillMode"] == "mixed"  # a worker that got the signal would cut the answers it is to finish
    example = read_settings(EXAMPLES / "config.toml", data=Path("/nowhere"))
    grace = max(example.shutdown_grace_s, Settings.model_fields["shutdown_grace_s"].default)
    ending = default_of(open_worker, "stop_grace_s")
    assert isinstance(ending, float)
    assert float(service["TimeoutStopSec"]) > grace + 2 * ending


def test_the_python_client(real_node: RunningNode) -> None:
    told = run(sys.executable, str(EXAMPLES / "chat.py"), "Count to five.", f"{real_node.url}/v1")
    assert told.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_shell_client(real_node: RunningNode) -> None:
    events = run("sh", str(EXAMPLES / "chat.sh"), real_node.url).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert '"completion_tokens":' in events[-2]
