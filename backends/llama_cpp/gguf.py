"""The header of a GGUF file, read without loading it and without trusting it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Every length
is checked against the file's size before it is used, so a truncated or hostile file costs an error, not memory.
"""

from __future__ import annotations

import mmap
import re
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backends.types import LoadFailed

Value = str | int | float | bool | tuple[int, ...]

_MAGIC: Final = b"GGUF"
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING: Final = 8
_ARRAY: Final = 9
_INTEGERS: Final = frozenset({0, 1, 2, 3, 4, 5, 10, 11})
_INTEGER_BYTES: Final = 40  # of one in a tuple, about
_KEPT_ARRAY_ITEMS: Final = 1024  # per-layer values are kept; vocabularies only counted
_MAX_COUNT: Final = 1 << 20  # keys or tensors; the largest real files have some thousand
_MAX_DIMENSIONS: Final = 4
_MAX_STRINGS: Final = 1 << 23  # of one array; the largest vocabularies have some 300,000, their merges twice that
_MAX_KEPT_BYTES: Final = 64 << 20  # all that `metadata` holds; a chat template has some 10,000
_BLOCK: Final = re.compile(r"blk\.(\d{1,4})\.", re.ASCII)
_LITTLE_U32: Final = struct.Struct("<I")
_LITTLE_U64: Final = struct.Struct("<Q")

# llama.h's LLAMA_FTYPE_MOSTLY_…
_NAMED = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS"
)
_LATER = "Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4"
FILE_TYPES: Final = dict(enumerate(f"{_NAMED} {_LATER}".replace("-", "").split(" ")))


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    metadata: dict[str, Value]  # scalars, strings, and integer arrays of at most 1,024 items
    lengths: dict[str, int]  # length of every array
    tensors: int
    data_offset: int  # bytes before the first tensor
    file_bytes: int
    block_bytes: tuple[int, ...] = ()  # weights of each layer (blk.N.*)
    other_bytes: dict[str, int] = field(default_factory=dict)  # weights outside the layers, by name

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or "unknown"

    @property
    def quantisation(self) -> str:
        """How most of its weights are written, in llama.cpp's words; empty where it does not say."""
        value = self.metadata.get("general.file_type")
        return FILE_TYPES.get(value, "") if isinstance(value, int) else ""

    def text(self, key: str) -> str | None:
        """The string at `key`, if it is one."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, name: str, default: int = 0) -> int:
        """The architecture's own integer `name`, e.g. "block_count"; of an array the largest. Never negative."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        if isinstance(value, tuple):
            value = max(value, default=default)
        return max(0, int(value)) if isinstance(value, int) else default


def read_header(path: str) -> Header:
    """The header of the file at `path`. Raises LoadFailed on a missing, foreign, truncated or hostile file."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would wait for its writer
            raise LoadFailed(f"{path} is not a GGUF file: it is not even a regular file.")
        with Path(path).open("rb") as file:
            if file.seek(0, 2) < 24:
                raise LoadFailed(f"{path} is not a GGUF file: it is too short.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except OSError as error:
        raise LoadFailed(f"The model file {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # a NUL in the path
        raise LoadFailed(f"The model file {path!r} cannot be read: {error}.") from error


class _Reader:
    def __init__(self, path: str, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0
        self._kept = 0  # bytes, of _MAX_KEPT_BYTES

    def header(self) -> Header:
        if self._take(4) != _MAGIC:
            raise LoadFailed(f"{self._path} is not a GGUF file: its first bytes are not GGUF.")
        version = self._u32()
        if version not in (2, 3):
            raise LoadFailed(f"{self._path} is a GGUF file of version {version}; versions 2 and 3 can be read.")
        tensors, pairs = self._count("tensors"), self._count("keys")
        metadata: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(pairs):
            self._pair(metadata, lengths)
        placed = [self._tensor() for _ in range(tensors)]
        last = max((at for at, _ in placed), default=0)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            alignment = 32
        offset = -(-self._at // alignment) * alignment
        if tensors and offset + last >= len(self._data):
            raise LoadFailed(f"{self._path} is truncated: it ends before its last tensor. Fetch it again.")
        blocks, others = _weigh(placed, len(self._data) - offset)
        return Header(metadata, lengths, tensors, offset, len(self._data), blocks, others)

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise LoadFailed(f"{self._path} is truncated: its header does not end. Fetch it again.")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _skip(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise LoadFailed(f"{self._path} is truncated: its header does not end. Fetch it again.")
        self._at += size

    def _u32(self) -> int:
        return int(_LITTLE_U32.unpack(self._take(4))[0])

    def _u64(self) -> int:
        return int(_LITTLE_U64.unpack(self._take(8))[0])

    def _count(self, what: str) -> int:
        count = self._u64()
        if count > _MAX_COUNT:
            raise LoadFailed(f"{self._path} is damaged: it claims {count} {what}.")
        return count

    def _keep(self, size: int) -> int:
        """`size`, if so much more may be kept in memory."""
        self._kept += size
        if self._kept > _MAX_KEPT_BYTES:
            raise LoadFailed(f"{self._path} is damaged: its header claims more than {_MAX_KEPT_BYTES} bytes of text.")
        return size

    def _string(self) -> str:
        return self._take(self._keep(self._u64())).decode("utf-8", errors="replace")

    def _pair(self, metadata: dict[str, Value], lengths: dict[str, int]) -> None:
        key, kind = self._string(), self._u32()
        if kind == _ARRAY:
            item, length = self._u32(), self._u64()
            lengths[key] = length
            if item == _STRING:
                self._skip_strings(length)
            elif (scalar := _SCALARS.get(item)) is None:
                raise LoadFailed(f"{self._path} is damaged: an array of unknown type {item}.")
            elif item in _INTEGERS and length <= _KEPT_ARRAY_ITEMS:
                self._keep(_INTEGER_BYTES * length)
                metadata[key] = tuple(int(scalar.unpack(self._take(scalar.size))[0]) for _ in range(length))
            else:
                self._skip(length * scalar.size)
        elif kind == _STRING:
            metadata[key] = self._string()
        elif (scalar := _SCALARS.get(kind)) is not None:
            metadata[key] = scalar.unpack(self._take(scalar.size))[0]
        else:
            raise LoadFailed(f"{self._path} is damaged: a value of unknown type {kind}.")

    def _skip_strings(self, count: int) -> None:
        # The hot loop: a vocabulary has up to half a million strings.
        if count > _MAX_STRINGS:
            raise LoadFailed(f"{self._path} is damaged: it claims an array of {count} strings.")
        data, at, size = self._data, self._at, len(self._data)
        unpack = _LITTLE_U64.unpack_from
        for _ in range(count):
            if at + 8 > size:
                at = size + 1
                break
            at += 8 + unpack(data, at)[0]
        if at > size:
            raise LoadFailed(f"{self._path} is truncated: its header does not end. Fetch it again.")
        self._at = at

    def _tensor(self) -> tuple[int, str]:
        """One tensor's offset within the data, and its name."""
        name = self._string()
        dimensions = self._u32()
        if dimensions > _MAX_DIMENSIONS:
            raise LoadFailed(f"{self._path} is damaged: a tensor of {dimensions} dimensions.")
        self._skip(8 * dimensions + 4)
        return self._u64(), name


def _weigh(placed: list[tuple[int, str]], data_bytes: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """Bytes of each layer's tensors and of the others. A tensor ends where the next one begins."""
    placed.sort()
    ends = [at for at, _ in placed[1:]] + [data_bytes]
    blocks: dict[int, int] = {}
    others: dict[str, int] = {}
    for (at, name), end in zip(placed, ends, strict=False):
        block = _BLOCK.match(name)
        if block:
            number = int(block[1])
            blocks[number] = blocks.get(number, 0) + end - at
        else:
            others[name] = others.get(name, 0) + end - at
    return tuple(blocks.get(number, 0) for number in range(max(blocks, default=-1) + 1)), others
