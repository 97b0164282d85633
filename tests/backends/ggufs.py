"""GGUF headers by hand: as sound or as hostile as a test wants them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {
    U8: "<B",
    I8: "<b",
    U16: "<H",
    I16: "<h",
    U32: "<I",
    I32: "<i",
    F32: "<f",
    BOOL: "<?",
    U64: "<Q",
    I64: "<q",
    F64: "<d",
}


@dataclass(frozen=True)
class Typed:
    """A value of a GGUF type that is not the usual one for its Python type."""

    kind: int
    value: Any
    items: int | None = None  # type of an array's items


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """Type and value."""
    match item:
        case Typed(kind=9):
            body = b"".join(string(one) if item.items == STRING else scalar(item.items, one) for one in item.value)
            return struct.pack("<IIQ", ARRAY, item.items, len(item.value)) + body
        case Typed():
            return struct.pack("<I", item.kind) + scalar(item.kind, item.value)
        case bool():
            return struct.pack("<I?", BOOL, item)
        case int():
            return struct.pack("<II", U32, item)
        case float():
            return struct.pack("<If", F32, item)
        case str():
            return struct.pack("<I", STRING) + string(item)
        case _:
            raise TypeError(item)


def scalar(kind: int | None, item: Any) -> bytes:
    return string(item) if kind == STRING else struct.pack(FORMATS[kind or 0], item)


def gguf(
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, Sequence[int], int]] = (),
    *,
    version: int = 3,
    data: bytes = b"",
    pairs: int | None = None,
    count: int | None = None,
) -> bytes:
    """A file of these keys and tensors (name, shape, offset); `pairs` and `count` may lie about their numbers."""
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if count is None else count,
        len(metadata) if pairs is None else pairs,
    )
    body = b"".join(string(key) + value(item) for key, item in metadata.items())
    infos = b"".join(
        string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        for name, shape, offset in tensors
    )
    whole = head + body + infos
    return whole + b"\0" * (-len(whole) % 32) + data


LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 2048,
    "llama.embedding_length": 576,
    "llama.block_count": 30,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.ggml.tokens": Typed(ARRAY, ["a", "b", "c"], STRING),
}
"""What a small language model says of itself."""
