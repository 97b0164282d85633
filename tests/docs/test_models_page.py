"""docs/models.md lists every field of a model file, and none that there is not."""

from __future__ import annotations

import msgspec
import pytest
import yaml

from backends.fake.settings import Fault
from backends.fake.settings import Settings as FakeSettings
from backends.llama_cpp.needs import AUTO_SLOTS, MAX_AUTO_CONTEXT_TOKENS, MIN_AUTO_CONTEXT_TOKENS
from backends.llama_cpp.settings import CACHE_TYPES
from backends.llama_cpp.settings import Settings as LlamaCppSettings
from backends.mlx.settings import DTYPE_BYTES
from backends.mlx.settings import Settings as MlxSettings
from backends.registry import find_backends
from node.catalog import EMBEDDED_NAME, ModelFile, Parameters, Template, parse_model
from tests.docs.pages import blocks, page, rows

PAGE = page("docs/models.md")


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("The file", list(ModelFile.model_fields)),
        ("parameters", list(Parameters.model_fields)),
        ("template", list(Template.model_fields)),
        ("engine, for llama-cpp", list(LlamaCppSettings.__struct_fields__)),
        ("engine, for mlx", list(MlxSettings.__struct_fields__)),
        ("engine, for fake", [*FakeSettings.__struct_fields__, *Fault.__struct_fields__]),
    ],
)
def test_every_field_is_listed_in_the_order_of_the_code(heading: str, fields: list[str]) -> None:
    assert list(rows(PAGE, heading)) == fields


def test_figures() -> None:
    assert f"at most {MAX_AUTO_CONTEXT_TOKENS} tokens" in PAGE
    assert f"to {MIN_AUTO_CONTEXT_TOKENS} tokens at\nthe least" in PAGE
    assert AUTO_SLOTS == (8, 4, 2, 1)
    assert f"`{EMBEDDED_NAME}`" in PAGE
    assert all(f"`{name}`" in PAGE for name in (*CACHE_TYPES, *DTYPE_BYTES))
    assert MlxSettings().prompt_tokens == int(rows(PAGE, "engine, for mlx")["prompt_tokens"][1])
    assert msgspec.structs.fields(FakeSettings)[3].default == int(rows(PAGE, "engine, for fake")["answer_tokens"][1])


def test_every_backend_is_named() -> None:
    for backend in find_backends().values():
        assert f"## engine, for {backend.name}" in PAGE
        assert all(f"`{alias}`" in PAGE for alias in backend.aliases)


def test_the_shortest_file_is_one() -> None:
    [text] = blocks(PAGE, "yaml")
    assert parse_model(yaml.safe_load(text)).parameters.model
