"""Model files that are none: a clear error for each, and the node lives and serves the others."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.models import smollm2
from tests.support.nodes import RunningNode, running_node, write_model

ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/tokenize": {"content": "hi"},
    "/v1/detokenize": {"tokens": [1]},
}


BLOCK_COUNT = b"llama.block_count" + struct.pack("<I", 4)
ARCHITECTURE = b"general.architecture" + struct.pack("<IQ", 8, 5)


def overwritten(whole: bytes, at: bytes, by: bytes) -> bytes:
    """`whole` with what follows the first `at` replaced."""
    start = whole.index(at) + len(at)
    return whole[:start] + by + whole[start + len(by) :]


CONTENTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda whole: b"", "too short"),
    "picture": (lambda whole: b"\x89PNG\r\n\x1a\n" + bytes(1000), "not a GGUF file"),
    "header-cut": (lambda whole: whole[:5000], "truncated"),
    "half": (lambda whole: whole[: len(whole) // 2], "truncated"),
    "tail-cut": (lambda whole: whole[:-16], "llama.cpp cannot open"),
    "too-new": (lambda whole: whole[:4] + struct.pack("<I", 99) + whole[8:], "version 99"),
    "a-layer-missing": (lambda whole: overwritten(whole, BLOCK_COUNT, struct.pack("<I", 31)), "llama.cpp cannot open"),
    "unknown-kind": (lambda whole: overwritten(whole, ARCHITECTURE, b"llxyz"), "llama.cpp cannot open"),
}
"""Made of a good file; what must be said of it."""
SAID = {name: complaint for name, (_, complaint) in CONTENTS.items()} | {
    "folder": "regular file",
    "pipe": "regular file",
    "missing": "No such file",
    "nul-in-path": "embedded null",
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with all of them, two pinned, and a good model."""
    data = tmp_path_factory.mktemp("bad")
    models = data / "models"
    models.mkdir()
    (models / "folder.gguf").mkdir()
    os.mkfifo(models / "pipe.gguf")
    whole = smollm2().read_bytes()
    for name, (make, _) in CONTENTS.items():
        (models / f"{name}.gguf").write_bytes(make(whole))
    for name in SAID:
        path = "a\0b.gguf" if name == "nul-in-path" else f"{name}.gguf"
        pinned = name in ("picture", "tail-cut")
        write_model(data, name, parameters={"model": path}, slots=1, context_size=256, pinned=pinned)
    write_model(data, "fine", backend="fake")
    write_model(data, "off", backend="fake", disabled=True)
    with running_node(data) as node:
        yield node


@pytest.fixture
def http(node: RunningNode) -> Iterator[httpx.Client]:
    with node.http as client:
        yield client


@pytest.mark.parametrize("name", SAID)
def test_a_bad_file_is_told_and_the_node_lives(http: httpx.Client, name: str) -> None:
    answer = http.post("/v1/completions", json={"model": name, "prompt": "hi", "max_tokens": 1})
    assert answer.status_code == 500  # the operator's to mend
    error = answer.json()["error"]
    assert error["code"] == "model_load_failed"
    assert SAID[name] in error["message"]
    assert http.post("/v1/completions", json={"model": "fine", "prompt": "hi"}).status_code == 200
    [shown] = [item for item in http.get("/system").json()["models"] if item["name"] == name]
    assert SAID[name] in shown["error"]


def test_a_mended_file_is_served(node: RunningNode, http: httpx.Client) -> None:
    path = node.data / "models" / "later.gguf"
    path.write_bytes(b"not yet")
    write_model(node.data, "later", parameters={"model": str(path)}, slots=1, context_size=256)
    assert http.post("/models/reload").status_code == 200
    request = {"model": "later", "prompt": "hi", "max_tokens": 1}
    assert http.post("/v1/completions", json=request).status_code == 500
    path.unlink()
    path.symlink_to(smollm2())
    assert http.post("/v1/completions", json=request).status_code == 200


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_disabled_model_says_so(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"model": "off"} | ENDPOINTS[path])
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_disabled")
    assert "off" not in [item["id"] for item in http.get("/v1/models").json()["data"]]
