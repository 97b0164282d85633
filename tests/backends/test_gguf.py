"""The header of a model file: read right, and never trusted."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.llama_cpp.gguf import Header, read_header
from backends.types import LoadFailed
from tests.backends.ggufs import ARRAY, F32, FORMATS, I8, I32, LLAMA, STRING, U32, U64, Typed, gguf, string
from tests.support.models import smollm2

TENSORS = [("a", [4], 0), ("b", [2, 2], 32)]
SOUND = gguf(LLAMA, TENSORS, data=bytes(64))
HEAD = b"GGUF" + struct.pack("<I", 3)
PEAK_BYTES = 4 << 20  # of memory for a header that lies; what it claims is a thousand times that


def read(folder: Path, content: bytes) -> Header:
    path = folder / "m.gguf"
    path.write_bytes(content)
    return read_header(str(path))


def test_what_it_says(tmp_path: Path) -> None:
    header = read(tmp_path, SOUND)
    assert header.architecture == "llama"
    assert header.text("tokenizer.chat_template") == "{{ messages }}"
    assert header.text("llama.block_count") is None
    assert header.integer("block_count") == 30
    assert header.integer("missing", 7) == 7
    assert header.lengths == {"tokenizer.ggml.tokens": 3}
    assert header.tensors == 2
    assert header.data_offset % 32 == 0
    assert header.file_bytes == len(SOUND)


def test_a_real_one() -> None:
    header = read_header(str(smollm2()))
    assert (header.architecture, header.integer("block_count")) == ("llama", 30)
    assert header.tensors > 200
    assert "<|im_start|>" in (header.text("tokenizer.chat_template") or "")


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        (Typed(ARRAY, [1, 5, 3], U32), 5),  # one for each layer
        (Typed(ARRAY, [-3, -2], I32), 0),
        (Typed(ARRAY, [], U32), 7),
        (Typed(ARRAY, [1.5], F32), 7),
        (Typed(ARRAY, ["a"], STRING), 7),
        (Typed(I8, -1), 0),
        (Typed(U64, 2**64 - 1), 2**64 - 1),
        ("text", 7),
        (2.5, 7),
    ],
)
def test_an_integer_of_any_type(tmp_path: Path, value: Any, read_as: int) -> None:
    assert read(tmp_path, gguf({"general.architecture": "x", "x.n": value})).integer("n", 7) == read_as


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_type_of_value(tmp_path: Path, kind: int) -> None:
    header = read(tmp_path, gguf({"k": Typed(kind, 1), "list": Typed(ARRAY, [1, 0], kind), "end": "here"}))
    assert header.metadata["k"] == 1
    assert header.lengths["list"] == 2
    assert header.text("end") == "here"


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    assert read(tmp_path, gguf({"a": Typed(STRING, b"x\xffy")})).text("a") == "x\ufffdy"


@pytest.mark.parametrize("cut", range(24, len(SOUND), 7))
def test_truncated_anywhere(tmp_path: Path, cut: int) -> None:
    """Up to the beginning of the last tensor: what is in it, llama.cpp checks."""
    header = read(tmp_path, SOUND)
    if cut > header.data_offset + 32:
        assert read(tmp_path, SOUND[:cut]).file_bytes == cut
        return
    with pytest.raises(LoadFailed, match=r"m\.gguf is truncated.*Fetch it again"):
        read(tmp_path, SOUND[:cut])


def test_truncated_right_behind_a_string_of_the_last_array(tmp_path: Path) -> None:
    whole = gguf({"list": Typed(ARRAY, ["aa", "bb", "cc"], STRING)})
    end = whole.index(b"bb") + 2
    for cut in (end, end + 5):
        with pytest.raises(LoadFailed, match="truncated"):
            read(tmp_path, whole[:cut])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "too short"),
        (b"GGUF", "too short"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "first bytes are not GGUF"),
        (b"FUGG" + bytes(100), "first bytes are not GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "of version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "version 50331648"),  # big-endian
        (HEAD + struct.pack("<QQ", 2**63, 0), "claims 9223372036854775808 tensors"),
        (HEAD + struct.pack("<QQ", 0, 2**40), "claims 1099511627776 keys"),
        (HEAD + struct.pack("<QQ", 0, 1) + string("k") + struct.pack("<I", 99), "unknown type 99"),
        (HEAD + struct.pack("<QQ", 0, 1) + string("k") + struct.pack("<IIQ", 9, 9, 1), "an array of unknown type 9"),
        (HEAD + struct.pack("<QQ", 1, 0) + string("t") + struct.pack("<I", 5) + bytes(80), "5 dimensions"),
    ],
)
def test_foreign(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(LoadFailed, match=complaint) as caught:
        read(tmp_path, content)
    assert "m.gguf" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.gguf", "folder", "a\0b", "x" * 5000])
def test_no_file_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(LoadFailed):
        read_header(str(tmp_path / name))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(LoadFailed, match="regular file"):
        read_header(str(tmp_path / "pipe.gguf"))


ONE = struct.pack("<QQ", 0, 1)
HOSTILE = {
    "a key as long as the file": HEAD + ONE + struct.pack("<Q", 3 << 30),
    "a text as long as the file": HEAD + ONE + string("k") + struct.pack("<IQ", STRING, 3 << 30),
    "a text beyond the file": HEAD + ONE + string("k") + struct.pack("<IQ", STRING, 2**64 - 1),
    "an array beyond the file": HEAD + ONE + string("k") + struct.pack("<IIQ", ARRAY, U64, 2**64 - 1),
    "strings beyond the file": HEAD + ONE + string("k") + struct.pack("<IIQ", ARRAY, STRING, 2**64 - 1),
    "a string beyond the file": HEAD + ONE + string("k") + struct.pack("<IIQQ", ARRAY, STRING, 2, 2**64 - 1),
    "empty strings without end": HEAD + ONE + string("k") + struct.pack("<IIQ", ARRAY, STRING, 400_000_000),
    "a tensor's name": HEAD + struct.pack("<QQQ", 1, 0, 2**64 - 1),
    "an alignment": gguf({"general.alignment": Typed(U64, 2**63)}, TENSORS),
    "an offset": gguf({}, [("a", [1], 2**64 - 1)]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_lie_costs_an_error_and_no_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[kind])
    os.truncate(path, 4 << 30)  # sparse: the claims are within the file
    tracemalloc.start()
    try:
        with pytest.raises(LoadFailed, match=r"m\.gguf is (damaged|truncated)"):
            read_header(str(path))
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_any_damage_is_a_header_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        header = read(tmp_path, bytes(content[: data.draw(st.integers(0, len(content)))]))
    except LoadFailed as error:
        assert "m.gguf" in error.message  # noqa: PT017 - an error is allowed, not required
    else:
        assert header.tensors <= len(content)


@FUZZ
@given(content=st.binary(max_size=300))
def test_any_bytes_behind_the_magic(tmp_path: Path, content: bytes) -> None:
    for version in (2, 3):
        try:
            read(tmp_path, b"GGUF" + struct.pack("<I", version) + content)
        except LoadFailed as error:
            assert "m.gguf" in error.message  # noqa: PT017
