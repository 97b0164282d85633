"""The exposition holds what the README of a dashboard would ask for."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from backends.types import EngineStats, Usage
from node.metrics import Metrics, metrics_markdown
from node.slots import Model, State


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample of the exposition, by name and label values in the order of the labels' names."""
    text = metrics.exposition()[0].decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_looks_at_the_models_itself() -> None:
    metrics = Metrics()
    ready = Model("a", memory_bytes=1, slots=4, state=State.READY, leased=3)
    states = [(ready, EngineStats(memory_bytes=7, prefill_tokens_per_s=8.0, decode_tokens_per_s=9.0))]
    metrics.watch(lambda: [*states, (Model("b", memory_bytes=1, slots=1), None)], 100)
    found = samples(metrics)
    assert found["mesh_slots", "a", "leased"] == 3
    assert found["mesh_slots", "a", "free"] == 1
    assert found["mesh_model_loaded", "a"] == 1
    assert found["mesh_model_loaded", "b"] == 0
    assert ("mesh_slots", "b", "free") not in found
    assert found["mesh_queue_length", "a"] == 0
    assert found["mesh_engine_memory_bytes", "a"] == 7
    assert found["mesh_engine_prefill_tokens_per_second", "a"] == 8
    assert found["mesh_engine_decode_tokens_per_second", "a"] == 9
    assert found[("mesh_memory_budget_bytes",)] == 100
    ready.leased = 0
    assert samples(metrics)["mesh_slots", "a", "leased"] == 0


def test_usage_is_counted_by_kind() -> None:
    metrics = Metrics()
    metrics.note_usage("a", Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=20, decode_s=2.0))
    found = samples(metrics)
    assert found["mesh_tokens_total", "prompt", "a"] == 10
    assert found["mesh_tokens_total", "cached", "a"] == 4
    assert found["mesh_tokens_total", "completion", "a"] == 20
    assert found["mesh_tokens_per_second_sum", "a"] == 10


def test_a_single_token_has_no_rate() -> None:
    metrics = Metrics()
    metrics.note_usage("a", Usage(completion_tokens=1, decode_s=0.0))
    assert ("mesh_tokens_per_second_count", "a") not in samples(metrics)


def test_two_nodes_fit_one_process() -> None:
    first, second = Metrics(), Metrics()
    first.crashes.labels("a").inc()
    assert ("mesh_engine_crashes_total", "a") not in samples(second)


def test_the_page_names_every_metric() -> None:
    metrics = Metrics()
    metrics.watch(lambda: (), 0)
    page = metrics_markdown()
    names = {family.name for family in metrics.families() if family.name.startswith("mesh_")}
    assert len(names) > 10
    assert all(f"| `{name}" in page for name in names)
