"""The built files of the dashboard, held in memory with what a browser needs to be told of each."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
_PACKED = frozenset({".html", ".js", ".css", ".svg"})


@dataclass(frozen=True, slots=True)
class File:
    """One of them. `packed` is the same gzipped, where that makes it smaller."""

    content_type: str
    data: bytes
    packed: bytes | None


@lru_cache(maxsize=1)
def built() -> Mapping[str, File]:
    """All files by their path below the page; empty when nothing has been built."""
    return read(STATIC)


def read(folder: Path) -> Mapping[str, File]:
    """The files in `folder`, if a page is among them. Types that a page has no use for are left out."""
    if not (folder / INDEX).is_file():
        return {}
    return {
        path.relative_to(folder).as_posix(): _file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _TYPES
    }


def _file(path: Path) -> File:
    data = path.read_bytes()
    packed = gzip.compress(data, mtime=0) if path.suffix in _PACKED else data
    return File(_TYPES[path.suffix], data, packed if len(packed) < len(data) else None)
