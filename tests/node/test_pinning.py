"""One line of a model's file changes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from node.catalog import CatalogError
from node.pinning import pin, with_pinned

PLAIN = """# my model
name: m  # short
backend: fake

template:
  chat: |
    pinned: not this
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (PLAIN, PLAIN.replace("# short\n", "# short\npinned: true\n")),
        ("name: m\npinned: false  # why\n", "name: m\npinned: true  # why\n"),
        ("name: m\npinned:    no\nbackend: x\n", "name: m\npinned:    true\nbackend: x\n"),
        ('"pinned": off\nname: m\n', '"pinned": true\nname: m\n'),
        ("{name: m, backend: fake}\n", "{pinned: true, name: m, backend: fake}\n"),
        ("  name: m\n  backend: fake\n", "  name: m\n  pinned: true\n  backend: fake\n"),
        ("---\nname: m\n...\n", "---\nname: m\npinned: true\n...\n"),
        ("name: m", "pinned: true\nname: m"),
        ("name: >\n  m\nbackend: x\n", "pinned: true\nname: >\n  m\nbackend: x\n"),
        ("name: m\r\nbackend: x\r\n", "name: m\r\npinned: true\nbackend: x\r\n"),
    ],
)
def test_the_rest_stays_as_it_was(before: str, after: str) -> None:
    assert with_pinned(before, True) == after
    assert yaml.safe_load(with_pinned(after, False)) == yaml.safe_load(before) | {"pinned": False}


@pytest.mark.parametrize("text", ["", "[]", "7", "a: [", "- x\n", "a: 1\n---\nb: 2\n", "\0", "[" * 10_000])
def test_what_is_no_model_file_is_refused(text: str) -> None:
    with pytest.raises(CatalogError):
        with_pinned(text, True)


def test_what_cannot_be_edited_safely_is_refused() -> None:
    with pytest.raises(CatalogError, match="by hand"):
        with_pinned("name: m\npinned: &p false\nengine: {says: *p}\n", True)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5), st.booleans(), st.sampled_from([None, False, True]))
def test_any_mapping_is_edited_or_refused(content: dict[str, object], pinned: bool, flow: bool | None) -> None:
    text = yaml.safe_dump(content, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    try:
        edited = with_pinned(text, pinned)
    except CatalogError:
        return
    assert yaml.safe_load(edited) == yaml.safe_load(text) | {"pinned": pinned}


def test_the_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_text("name: m\n")
    real.chmod(0o640)
    link = tmp_path / "m.yaml"
    link.symlink_to(real)
    pin(link, True)
    assert real.read_text() == "name: m\npinned: true\n"
    assert real.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.yaml", "real.yaml"]


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"m\.yaml cannot be changed"):
        pin(tmp_path / "m.yaml", True)
    (tmp_path / "m.yaml").write_bytes(b"name: \xff")
    with pytest.raises(CatalogError):
        pin(tmp_path / "m.yaml", True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.yaml"]
