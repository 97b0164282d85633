"""OpenAI's JavaScript client, which asks for embeddings in base64 unless it is told otherwise."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes import RunningNode

FOLDER = Path(__file__).parent / "js"
NPM_S = 120.0
CLIENT_S = 120.0


@pytest.fixture(scope="module")
def script() -> Path:
    """The client's script, with what it imports installed as the lock file says."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js is not installed: OpenAI's JavaScript client is NOT tested here")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        install = ["npm", "ci", "--no-audit", "--no-fund"]
        subprocess.run(install, cwd=FOLDER, check=True, timeout=NPM_S, capture_output=True)
    return FOLDER / "client.mjs"


def test_the_javascript_client(script: Path, fake_node: RunningNode) -> None:
    command = ["node", str(script), f"{fake_node.url}/v1", "fake", "fake"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_S, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert len(said["packed"]) == len(said["plain"]) == 2
    for packed, plain in zip(said["packed"], said["plain"], strict=True):
        assert len(packed) == len(plain) > 0
        assert packed == pytest.approx(plain, abs=1e-6)
    assert said["streamed"] == said["whole"] != ""
    assert said["refusal"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
