"""How large a model's weights are."""

from __future__ import annotations

from pathlib import Path


def size_of(path: str) -> int:
    """Bytes of a file, or of a folder's files; 0 where there are none to be seen."""
    try:
        place = Path(path)
        if not path:
            return 0
        if place.is_dir():
            return sum(file.stat().st_size for file in place.iterdir() if file.is_file())
        return place.stat().st_size
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return 0
