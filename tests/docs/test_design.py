"""docs/design.md: its tables are those of the code, and its figures are the constants."""

from __future__ import annotations

import inspect
import re
import tomllib

import pytest

from api import errors
from backends.frames import INITIAL_CREDIT, MAX_BODY_BYTES, Kind
from backends.llama_cpp import batch, needs
from backends.process import LogRing, open_worker
from backends.worker import STATS_EVERY_S
from node import catalog, slots
from node.config import Settings
from tests.docs.pages import page, rows

DESIGN = page("docs/design.md")


def written(name: str) -> int:
    """A constant of backends/llama_cpp/embeddings.py, which cannot be imported without the libraries."""
    found = re.search(rf"^{name} = (\d+)", page("backends/llama_cpp/embeddings.py"), re.MULTILINE)
    assert found
    return int(found[1])


def default_of(function: object, name: str) -> object:
    return inspect.signature(function).parameters[name].default  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sentence", "figure"),
    [
        ("A batch has {} tokens", needs.BATCH_TOKENS),
        ("{} s at the measured rate", batch.STALL_S),
        ("and {} tokens at least", batch.MIN_PROMPT_TOKENS),
        ("gets {} tokens a step", batch.ECHO_TOKENS),
        ("in chunks of {} tokens from its start", batch.EXACT_CHUNK_TOKENS),
        ("chunks of\n{} tokens, so that a long input", written("_CHUNK_TOKENS")),
        ("about {} chunks of a call", INITIAL_CREDIT),
        ("at most\n{} MiB", MAX_BODY_BYTES >> 20),
        ("a ring of {} lines", default_of(LogRing, "lines")),
        ("closes the socket, waits {:.0f} s", default_of(open_worker, "stop_grace_s")),
        ("doubles from {:.0f} s", slots.FIRST_PAUSE_S),
        ("to {:.0f} s. The", slots.MAX_PAUSE_S),
        ("and {} MiB for the process", needs._PROCESS_BYTES >> 20),
        ("The body limit is {} MiB", Settings.model_fields["max_body_bytes"].default >> 20),
        ("safe loader, up to {} MiB", catalog._MAX_YAML_BYTES >> 20),
    ],
)
def test_figures(sentence: str, figure: float) -> None:
    assert sentence.format(figure) in DESIGN


def test_figures_in_words() -> None:
    assert written("_MAX_SEQUENCES") == 8
    assert "eight inputs in one pass" in DESIGN
    assert STATS_EVERY_S == 1.0
    assert "once a second while the engine works" in DESIGN


def test_the_table_of_errors() -> None:
    told = rows(DESIGN, "Errors")
    assert list(told) == [cls.__name__ for cls, *_ in errors._TABLE]
    for cls, status, _, code, _ in errors._TABLE:
        assert told[cls.__name__][0] == str(status)
        assert told[cls.__name__][1] == (str(code) if code is not None else "by the mistake")


def test_the_table_of_frames() -> None:
    told = rows(DESIGN, "Workers")
    assert list(told) == [kind.name for kind in Kind]
    for kind in Kind:
        assert told[kind.name][0] == ("to the worker" if kind < Kind.PROGRESS else "to the node")


def test_the_states_of_a_model() -> None:
    diagram = DESIGN.partition("A model:")[2].partition("A ticket")[0]
    assert set(re.findall(r"\b[A-Z]{4,}\b", diagram)) == {state.name for state in slots.State}


def test_the_table_of_libraries() -> None:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["llama-cpp"]]
    names = {re.split(r"[=<>\[ ]", requirement)[0] for requirement in needed}
    told = rows(DESIGN, "Libraries")
    assert set(told) == names
    pins = page("requirements/runtime.txt") + page("requirements/llama-cpp.txt")
    for name, (_, upkeep, _, _) in told.items():
        # One for each Python, perhaps; none before `make lock` has seen a new library.
        versions = re.findall(rf"^{name}==([\w.]+)", pins, re.MULTILINE)
        assert not versions or any(version in upkeep for version in versions), name
