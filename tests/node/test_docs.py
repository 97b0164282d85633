"""The generated pages say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from node import docs

FOLDER = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["settings.md", "metrics.md", "endpoints.md", "protocols.md"])
def test_a_page_is_in_step(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == docs.pages()[name], "run `make docs`"


def test_every_route_is_on_its_page_with_a_meaning() -> None:
    page = docs.endpoints_markdown()
    for rule in docs.application().url_map.iter_rules():
        path = rule.rule.replace("<path:", "{").replace("<", "{").replace(">", "}")
        assert f"`{path}`" in page
    assert "|  |" not in page, "a handler without a docstring"


def test_the_module_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["docs", str(tmp_path / "docs")])
    docs.main()
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "docs").iterdir()} == docs.pages()
