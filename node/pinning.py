"""Changes one line of a model's YAML, `pinned`, and leaves all else as a person has written it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from node.catalog import CatalogError

_UNSAFE = "The model's file is written in a way that cannot be edited safely: set `pinned` by hand."


def pin(path: Path, pinned: bool) -> None:
    """Note in a model's file whether it is pinned, whole or not at all. Raises CatalogError."""
    path = path.resolve()  # a link stays one
    draft = path.with_suffix(".pin.tmp")  # no ending of a model file
    try:
        text = with_pinned(path.read_bytes().decode(), pinned)
        try:
            draft.write_bytes(text.encode())
            shutil.copymode(path, draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"The file {path.name} cannot be changed: {error}") from error


def with_pinned(text: str, pinned: bool) -> str:
    """The YAML with `pinned` set. Raises CatalogError where that cannot be done without touching anything else."""
    try:
        before = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(before, dict) or not isinstance(root, yaml.MappingNode):
            raise CatalogError("The model's file holds no mapping.")
        edited = _edited(text, root, "true" if pinned else "false")
    except (yaml.YAMLError, RecursionError) as error:
        raise CatalogError("The model's file cannot be read.") from error
    try:
        after: Any = yaml.safe_load(edited)
    except yaml.YAMLError:
        after = None
    if after != before | {"pinned": pinned}:
        raise CatalogError(_UNSAFE)
    return edited


def _edited(text: str, root: yaml.MappingNode, word: str) -> str:
    for key, value in root.value:
        if isinstance(key, yaml.ScalarNode) and key.value == "pinned":
            return text[: value.start_mark.index] + word + text[value.end_mark.index :]
    if root.flow_style or not root.value:
        at = root.start_mark.index + 1
        return f"{text[:at]}pinned: {word}{', ' if root.value else ''}{text[at:]}"
    # Before the first key, where no value can reach: what a last value is made of, its end mark does not always say.
    first = root.value[0][0].start_mark
    line = first.index - first.column
    if text[line : first.index].strip():  # the mapping begins behind something else, as in "--- name: x"
        raise CatalogError(_UNSAFE)
    key_end = text.find("\n", first.index)
    indent = text[line : first.index]
    if root.value[0][1].start_mark.line == first.line == root.value[0][1].end_mark.line and key_end >= 0:
        return f"{text[: key_end + 1]}{indent}pinned: {word}\n{text[key_end + 1 :]}"  # the name stays first
    return f"{text[:line]}{indent}pinned: {word}\n{text[line:]}"
