"""The documents as data: their code, their links, their tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def page(name: str) -> str:
    """The text of a page, by its path in the checkout."""
    return (ROOT / name).read_text(encoding="utf-8")


def label(path: Path) -> str:
    """How a test names a page."""
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in a language."""
    return [body for kind, body in _FENCE.findall(text) if kind == language]


def inline_code(text: str) -> list[str]:
    """What stands between backticks, outside of fenced blocks."""
    return _INLINE.findall(_FENCE.sub("", text))


def links(text: str) -> list[str]:
    """The targets of all links."""
    return _LINK.findall(_FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings make, in GitHub's spelling."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """The tables under a heading (without its sub-headings): their rows by what the first cell says in backticks."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"no heading {heading}"
    found = {}
    for line in section[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            found[cells[0].strip("` ")] = [cell.strip("` ") for cell in cells[1:]]
    return found


def commands(text: str, name: str) -> Iterator[list[str]]:
    """The command lines that start with `name`, in sh blocks and in backticks, split into words."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    for line in [*lines, *inline_code(text)]:
        words = shlex.split(line, comments=True) if line.startswith(f"{name} ") else []
        if words:
            yield words
