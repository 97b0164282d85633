"""Children and orphans, with real processes: a worker that dies takes nobody along, and none outlives its node."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ends import all_end, until
from tests.support.models import smollm2
from tests.support.nodes import RunningNode, running_node, write_model

ENDLESS = {"decode_tokens_per_s": 20, "answer_tokens": 8000}
MODELS: dict[str, dict[str, Any]] = {
    "steady": {"engine": {"decode_tokens_per_s": 40}, "slots": 2},
    "endless": {"engine": ENDLESS, "slots": 2},
    "slow-prompt": {"engine": {"prefill_tokens_per_s": 20, "answer_tokens": 5}},
    "crashes-late": {"engine": {"fault": {"crash_after_tokens": 3}}},
    "crashes-at-once": {"engine": {"fault": {"crash_after_tokens": 0}}},
    "loads-for-ever": {"engine": {"load_s": 3600}},
    "hangs": {"engine": {"fault": {"hang_after_tokens": 2}}},
    "fine": {"engine": {"answer_tokens": 5}},
}


def write_models(data: Path) -> None:
    for name, content in MODELS.items():
        write_model(data, name, backend="fake", **content)
    write_model(data, "smol", parameters={"model": str(smollm2())}, slots=4, context_size=2048)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """One node for all that must survive."""
    data = tmp_path_factory.mktemp("children")
    write_models(data)
    with running_node(data) as node:
        yield node


@pytest.fixture
def http(node: RunningNode) -> Iterator[httpx.Client]:
    with node.http as client:
        yield client


def body(model: str, *, stream: bool = False, prompt: str = "Once upon a time", **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": 1500, "ignore_eos": True, "stream": stream} | more


def ask(http: httpx.Client, model: str, **options: Any) -> httpx.Response:
    return http.post("/v1/completions", json=body(model, **options))


class Stream:
    """A streamed answer that has begun."""

    def __init__(self, http: httpx.Client, model: str, **options: Any) -> None:
        self._context = http.stream("POST", "/v1/completions", json=body(model, stream=True, **options))
        self.answer = self._context.__enter__()
        assert self.answer.status_code == 200
        self._lines = self.answer.iter_lines()
        first = next(self._lines)
        assert first.startswith("data: {")
        self.events = [json.loads(first[6:])]

    def rest(self) -> list[dict[str, Any]]:
        """All its events, when the last has come: an error's if there is no [DONE]."""
        try:
            self.events += [json.loads(line[6:]) for line in self._lines if line.startswith("data: {")]
            return self.events
        finally:
            self.close()

    def close(self) -> None:
        self._context.__exit__(None, None, None)


def model(http: httpx.Client, name: str) -> dict[str, Any]:
    [found] = [item for item in http.get("/system").json()["models"] if item["name"] == name]
    return dict(found)


def worker_that_came_with(node: RunningNode, do: Callable[[], object]) -> psutil.Process:
    """The process that `do` starts."""
    before = set(node.workers())
    do()
    [worker] = set(node.workers()) - before
    return worker


def resumptions(http: httpx.Client) -> float:
    """Answers that went on after a death, so far."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == "mesh_resumed_total")


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for event in events for choice in event.get("choices", ()))


@pytest.mark.parametrize("name", ["steady", "smol"])
def test_killed_in_mid_generation_the_answers_go_on(node: RunningNode, http: httpx.Client, name: str) -> None:
    """On a new worker, from the token where the old one died: nothing is missing, and nothing comes twice."""
    options = {"max_tokens": 40, "temperature": 0}
    undisturbed: list[httpx.Response] = []
    worker = worker_that_came_with(node, lambda: undisturbed.append(ask(http, name, **options)))
    [choice] = undisturbed[0].json()["choices"]
    resumed = resumptions(http)
    streams = [Stream(http, name, stream_options={"include_usage": True}, **options) for _ in range(2)]
    before = set(node.workers())
    worker.kill()
    for stream in streams:
        events = stream.rest()
        assert not [event for event in events if "error" in event]
        assert text_of(events) == choice["text"]
        assert [one["finish_reason"] for event in events for one in event["choices"]][-1] == choice["finish_reason"]
        assert events[-1]["usage"]["completion_tokens"] == 40
    assert resumptions(http) == resumed + 2
    assert all_end([worker])
    [another] = set(node.workers()) - before
    assert another.is_running()
    assert model(http, name)["slots_leased"] == 0


def test_crashes_again_and_again_end_in_one_clear_error(http: httpx.Client) -> None:
    """The answer goes on once; whatever came before the second crash was right, and comes once."""
    events = Stream(http, "crashes-late", max_tokens=20).rest()
    assert [sorted(event) for event in events if "error" in event] == [["error"]]
    assert events[-1]["error"]["code"] == "engine_crashed"
    assert "model crashes-late was ended by SIGKILL" in events[-1]["error"]["message"]
    whole = ask(http, "fine", max_tokens=20, ignore_eos=True).json()["choices"][0]["text"]
    text = text_of(events)
    assert text
    assert whole.startswith(text)
    assert model(http, "crashes-late")["slots_leased"] == 0


def test_killed_before_the_first_chunk_nobody_notices(node: RunningNode, http: httpx.Client) -> None:
    prompt = "twenty words of a prompt " * 2
    worker = worker_that_came_with(node, lambda: ask(http, "slow-prompt", prompt="x"))
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(ask, http, "slow-prompt", prompt=prompt)
        with node.http as other:
            until(lambda: model(other, "slow-prompt")["slots_leased"] == 1)
        worker.kill()
        assert answer.result().status_code == 200
    assert len(answer.result().json()["choices"][0]["text"]) > 0
    assert all_end([worker])


@pytest.mark.parametrize("name", ["crashes-late", "crashes-at-once"])
def test_a_worker_that_always_dies_is_an_error_and_no_more(http: httpx.Client, name: str) -> None:
    for _ in range(3):
        answer = ask(http, name)
        assert answer.status_code in (500, 502), answer.text
        error = answer.json()["error"]
        assert error["code"] in ("engine_crashed", "model_load_failed")
        assert name in error["message"]
    assert ask(http, "fine").status_code == 200
    assert model(http, name)["slots_leased"] == 0


def test_a_hung_engine_holds_its_own_caller_alone(http: httpx.Client) -> None:
    stuck = Stream(http, "hangs")
    assert ask(http, "fine").status_code == 200
    stuck.close()
    until(lambda: model(http, "hangs")["slots_leased"] == 0)


def start(http: httpx.Client, name: str) -> Stream | None:
    """Put a model to work; a stream that has begun, where it gets so far."""
    if name == "loads-for-ever":
        threading.Thread(target=_ask_in_vain, args=(http, name), daemon=True).start()
        return None
    return Stream(http, name)


def _ask_in_vain(http: httpx.Client, name: str) -> None:
    try:
        answer = ask(http, name)
    except httpx.HTTPError:
        return
    assert answer.status_code >= 500


BUSY = ["loads-for-ever", "endless", "hangs", "smol"]


def test_no_orphan_after_a_sigkill_of_the_node(tmp_path: Path) -> None:
    """Loading, generating, hung and in llama.cpp: all workers end with their node."""
    write_models(tmp_path)
    with running_node(tmp_path) as node, node.http as http, node.http as other:
        streams = [start(http, name) for name in BUSY]
        until(lambda: model(other, "loads-for-ever")["state"] == "loading")
        workers = node.workers()
        assert len(workers) == len(BUSY)
        assert node.stop(signal_number=signal.SIGKILL) == -signal.SIGKILL
        assert all_end(workers)
        for stream in streams:
            if stream is not None:
                with pytest.raises(httpx.HTTPError):
                    stream.rest()
    with running_node(tmp_path) as node, node.http as http:  # the data folder is as good as new
        assert ask(http, "fine").status_code == 200
        assert node.stop() == 0


def test_sigterm_cancels_what_outlives_the_grace(tmp_path: Path) -> None:
    """The same four: none of them would ever end by itself."""
    write_models(tmp_path)
    with running_node(tmp_path, shutdown_grace_s="0.3") as node, node.http as http, node.http as other:
        streams = [start(http, name) for name in BUSY]
        until(lambda: model(other, "loads-for-ever")["state"] == "loading")
        workers = node.workers()
        assert len(workers) == len(BUSY)
        assert node.stop() == 0
        assert all_end(workers)
        for stream in streams:
            if stream is not None:
                stream.close()


def test_a_worker_gets_none_of_the_nodes_secrets(tmp_path: Path) -> None:
    write_model(tmp_path, "fine", backend="fake")
    with running_node(tmp_path, api_keys="sesame") as node, node.http as http:
        http.headers["Authorization"] = "Bearer sesame"
        assert ask(http, "fine").status_code == 200
        [worker] = node.workers()
        environment = worker.environ()
        assert not [name for name in environment if name.startswith("MESH_")]
        assert "sesame" not in " ".join((*environment.values(), *worker.cmdline()))
