"""Two nodes may share an answer only if both have the same weights and the same words about them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from backends.types import LoadSpec
from node.fingerprint import fingerprint

SIZE = 8 << 20


def load(path: Path | str, **fields: Any) -> LoadSpec:
    return LoadSpec(name="m", path=str(path), **fields)


def weights(folder: Path, name: str, *, changed_at: int | None = None, size: int = SIZE) -> Path:
    """A file of zeros, one byte of it changed."""
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)
        if changed_at is not None:
            file.seek(changed_at)
            file.write(b"x")
    return path


def test_the_same_weights_are_the_same_under_any_name(tmp_path: Path) -> None:
    one, other = weights(tmp_path, "one"), weights(tmp_path, "other")
    digest = fingerprint("llama-cpp", load(one))
    assert digest == fingerprint("llama-cpp", LoadSpec(name="another", path=str(other)))
    assert digest.startswith("mesh1:")
    assert len(digest) == 6 + 32
    int(digest[6:], 16)


@pytest.mark.parametrize("changed_at", [0, (1 << 20) - 1, SIZE // 2, SIZE // 64 * 40 + 100, SIZE - (1 << 20), SIZE - 1])
def test_other_weights_are_another_model(tmp_path: Path, changed_at: int) -> None:
    plain, changed = weights(tmp_path, "plain"), weights(tmp_path, "changed", changed_at=changed_at)
    assert fingerprint("llama-cpp", load(plain)) != fingerprint("llama-cpp", load(changed))


def test_the_size_counts(tmp_path: Path) -> None:
    one, longer = weights(tmp_path, "one"), weights(tmp_path, "longer", size=SIZE + 1)
    assert fingerprint("llama-cpp", load(one)) != fingerprint("llama-cpp", load(longer))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 4096])
def test_small_files_have_one_too(tmp_path: Path, size: int) -> None:
    assert fingerprint("llama-cpp", load(weights(tmp_path, "w", size=size)))


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = weights(tmp_path, "w")
    before = fingerprint("llama-cpp", load(path))
    weights(tmp_path, "w", changed_at=5)
    os.utime(path, (1, 1))
    assert fingerprint("llama-cpp", load(path)) != before


@pytest.mark.parametrize(
    "says",
    [
        {"sampling": {"temperature": 0.5}},
        {"max_tokens": 7},
        {"stop": ("x",)},
        {"chat_template": "{{ messages }}"},
        {"deterministic": True},
    ],
    ids=str,
)
def test_what_changes_the_words_is_another_model(tmp_path: Path, says: dict[str, Any]) -> None:
    path = weights(tmp_path, "w")
    assert fingerprint("llama-cpp", load(path)) != fingerprint("llama-cpp", load(path, **says))


def test_another_encoder_is_another_model(tmp_path: Path) -> None:
    path, one, other = weights(tmp_path, "w"), weights(tmp_path, "one"), weights(tmp_path, "other", changed_at=7)
    blind, seeing, otherwise = (fingerprint("llama-cpp", load(path, mmproj=str(mmproj))) for mmproj in ("", one, other))
    assert len({blind, seeing, otherwise}) == 3
    assert blind == fingerprint("llama-cpp", load(path))


@pytest.mark.parametrize("hardware", [{"slots": 9}, {"engine": {"decode_tokens_per_s": 5}}], ids=str)
def test_what_changes_the_speed_is_not(tmp_path: Path, hardware: dict[str, Any]) -> None:
    path = weights(tmp_path, "w")
    assert fingerprint("fake", load(path)) == fingerprint("fake", load(path, **hardware))


def test_another_engine_is_another_model(tmp_path: Path) -> None:
    path = weights(tmp_path, "w")
    assert fingerprint("llama-cpp", load(path)) != fingerprint("mlx", load(path))


def test_the_order_of_defaults_does_not_matter() -> None:
    one = load("", sampling={"top_k": 1, "temperature": 0.0})
    other = load("", sampling={"temperature": 0.0, "top_k": 1})
    assert fingerprint("fake", one) == fingerprint("fake", other)


def test_a_folder_is_all_of_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for part in ("one", "two"):
            weights(tmp_path / name, part, size=1000)
    assert fingerprint("mlx", load(tmp_path / "a")) == fingerprint("mlx", load(tmp_path / "b"))
    weights(tmp_path / "b", "two", size=1000, changed_at=999)
    assert fingerprint("mlx", load(tmp_path / "a")) != fingerprint("mlx", load(tmp_path / "b"))


def test_what_cannot_be_read_has_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", "nul\0in it", tmp_path / "pipe"):
        assert fingerprint("llama-cpp", load(path)) == ""
