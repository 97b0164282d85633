"""Model files: what is read from them, and that a wrong one is named and stops nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backends.registry import find_backends
from node import catalog
from node.catalog import (
    EMBEDDED_NAME,
    CatalogError,
    ModelFile,
    check_name,
    embedded_model,
    parse_model,
    read_catalog,
    read_model,
    write_model,
    yaml_path,
)

BACKENDS = find_backends()


def put(folder: Path, text: str, file: str = "model.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(text)
    return folder / file


FULL = """
name: org/full:q4
description: all fields
backend: fake
aliases: [gpt-4o]
pinned: true
uri: hf://org/full/full.gguf
digest: sha256:%s
context_size: 4096
slots: 3
threads: 2
gpu_layers: 10
deterministic: true
stopwords: ["</s>"]
parameters: {model: sub/full.gguf, temperature: 0.5, top_k: 3, mirostat: 2, logit_bias: {7: -100}, max_tokens: 9}
template: {chat: "{{ messages }}"}
engine: {answer_tokens: 5}
""" % ("0" * 64)


def test_all_fields_reach_the_engine(tmp_path: Path) -> None:
    spec = read_model(put(tmp_path, FULL), BACKENDS)
    load = spec.load_spec(1 << 30)
    assert (spec.name, spec.backend, spec.path) == ("org/full:q4", "fake", str(tmp_path / "sub" / "full.gguf"))
    assert (load.context_tokens, load.slots, load.threads, load.gpu_layers) == (4096, 3, 2, 10)
    assert load.sampling == {"temperature": 0.5, "top_k": 3, "mirostat": 2, "logit_bias": {7: -100.0}}
    assert (load.max_tokens, load.stop, load.chat_template) == (9, ("</s>",), "{{ messages }}")
    assert load.deterministic
    assert load.engine == {"answer_tokens": 5}
    assert load.memory_bytes == 1 << 30


def test_the_backend_follows_from_the_file_ending(tmp_path: Path) -> None:
    spec = read_model(put(tmp_path, "{name: m, parameters: {model: m.GGUF}}"), BACKENDS)
    assert spec.backend == "llama-cpp"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: [", "cannot be read"),
        ("just text", "no mapping"),
        ("", "no mapping"),
        ("backend: fake", "name: "),
        ("{name: m, backend: nope}", "nope is not installed.*fake"),
        ("name: m", "neither a backend nor"),
        ("{name: m, backend: fake, slotz: 1}", "slotz is no field.*did you mean slots"),
        ("{name: m, backend: fake, parameters: {temprature: 1}}", "did you mean temperature"),
        ("{name: m, backend: fake, slots: 0}", "slots: "),
        ("{name: m, backend: fake, context_size: many}", "context_size: "),
        ("{name: m, backend: fake, parameters: {top_p: 2}}", "parameters.top_p: "),
        ("{name: m, backend: fake, digest: 'md5:00'}", "digest: "),
        ("{name: ../m, backend: fake}", "name: "),
        ("a: &a [*a, *a]\nname: *a", "name: "),
        ("!!python/object/apply:os.system [id]", "cannot be read"),
        ("name: \x00", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        ("# " + "x" * (1 << 20), "larger than"),
    ],
)
def test_a_broken_file_is_named_with_its_reason_and_the_others_live(tmp_path: Path, text: str, reason: str) -> None:
    put(tmp_path, "{name: good, backend: fake}", "good.yml")
    put(tmp_path, text, "broken.yaml")
    found = read_catalog(tmp_path, BACKENDS)
    assert list(found.models) == ["good"]
    assert list(found.broken) == ["broken.yaml"]
    with pytest.raises(CatalogError, match=reason):
        read_model(tmp_path / "broken.yaml", BACKENDS)


def test_bytes_that_are_no_text_and_folders_are_broken_files_too(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\xfe")
    (tmp_path / "folder.yaml").mkdir()
    assert sorted(read_catalog(tmp_path, BACKENDS).broken) == ["folder.yaml", "latin.yaml"]


def test_the_second_file_of_a_name_or_alias_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "{name: one, aliases: [other], backend: fake}", "1.yaml")
    put(tmp_path, "{name: one, backend: fake}", "2.yaml")
    put(tmp_path, "{name: other, backend: fake}", "3.yaml")
    found = read_catalog(tmp_path, BACKENDS)
    assert list(found.models) == ["one"]
    assert found.find("other") is found.models["one"]
    assert all("is taken" in reason for reason in found.broken.values())
    assert sorted(found.broken) == ["2.yaml", "3.yaml"]


def test_near_names_are_offered(tmp_path: Path) -> None:
    put(tmp_path, "{name: llama-3, aliases: [gpt-4o], backend: fake}")
    found = read_catalog(tmp_path, BACKENDS)
    assert found.find("lama-3") is None
    assert found.near("lama-3") == "llama-3"
    assert found.near("gpt-40") == "gpt-4o"
    assert found.near("quite different") is None


def test_the_embedded_model_steps_aside_for_any_file_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert list(read_catalog(folder, BACKENDS).models) == [EMBEDDED_NAME]
    put(folder, "{name: mine, backend: fake, disabled: true}", "mine.yaml")
    assert list(read_catalog(folder, BACKENDS).models) == ["mine"]
    put(folder, "name: [", "mine.yaml")  # a mistake must not serve another model than was meant
    assert list(read_catalog(folder, BACKENDS).models) == []


def test_without_its_package_there_is_no_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalog, "_EMBEDDED_PACKAGE", "no_such_package")
    assert embedded_model() is None
    assert read_catalog(tmp_path, BACKENDS).models == {}


@pytest.mark.parametrize("name", ["m", "Qwen3-4B", "org/model:q4_k_m", "a@b+c.d"])
def test_names_that_can_be_used(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "..", "a/../b", "/abs", "a//b", "a/.hidden", "-flag", "a\n", "a b", "ä", "a\x1b[31m", "a" * 129, "a\\b"],
)
def test_names_that_cannot(name: str) -> None:
    with pytest.raises(ValueError, match="128 letters"):
        check_name(name)


@given(st.from_regex(catalog.NAME, fullmatch=True).filter(lambda name: ".." not in name))
def test_a_models_file_lies_in_the_folder_whatever_its_name(name: str) -> None:
    folder = Path("models")
    path = yaml_path(folder, check_name(name))
    assert path.parent == folder
    assert path.match("*.y*ml")


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"name": "m", "backend": "fake", "slots": 2}
    write_model(tmp_path / "deep" / "m.yaml", content)
    assert read_model(tmp_path / "deep" / "m.yaml", BACKENDS).file == ModelFile(**content)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m.yaml"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from([*ModelFile.model_fields, "other"])


@given(st.dictionaries(fields, json_values, max_size=6))
def test_any_mapping_is_a_model_or_a_catalog_error(content: dict[str, Any]) -> None:
    loaded = yaml.safe_load(yaml.safe_dump(content))
    try:
        name = parse_model(loaded).name
    except CatalogError:
        return
    assert name == loaded["name"]
