"""A call on this node: restarted once if its worker dies too early, cancelled structurally, counted."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.types import Accepted, Busy, Chunk, EngineCrashed, EngineFault, LoadFailed, MeshError, Text
from node.local import open_local
from node.metrics import Metrics
from tests.node.doubles import ANSWER, CONTEXT, NEEDS, USAGE, Script, count, make_pool, request, running, spec

CRASH = EngineCrashed("The worker died.")


async def answer(script: Script, metrics: Metrics | None = None) -> list[Chunk]:
    """All chunks of one call."""
    metrics = metrics or Metrics()
    pool = make_pool(script, metrics)
    chunks: list[Chunk] = []
    failure = None
    async with running(pool):
        try:
            async with open_local(pool, metrics, spec(), NEEDS, request(), CONTEXT) as call:
                async for batch in call.batches():
                    chunks += batch
                assert call.usage == USAGE
                assert call.model == "m"
        except MeshError as error:
            failure = error
        ((model, _),) = pool.models()
        assert model.leased == 0
    if failure is not None:  # out here, so that no nursery wraps it
        raise failure
    return chunks


def outcome(metrics: Metrics, kind: str) -> float:
    return count(metrics, "mesh_requests_total", model="m", operation="completion", outcome=kind)


async def test_chunks_pass_as_they_are(autojump_clock: MockClock) -> None:
    script, metrics = Script(load_s=2), Metrics()
    assert await answer(script, metrics) == list(ANSWER)
    assert script.requests == [request()]
    assert outcome(metrics, "ok") == 1
    assert count(metrics, "mesh_tokens_total", model="m", kind="cached") == 1
    assert count(metrics, "mesh_time_to_first_token_seconds_sum", model="m") == pytest.approx(2), "the load counts"
    assert count(metrics, "mesh_tokens_per_second_sum", model="m") == pytest.approx(4)


@pytest.mark.parametrize("before", [(), (Accepted(prompt_tokens=3),)])
async def test_a_crash_before_the_first_chunk_is_invisible(
    autojump_clock: MockClock, before: tuple[Chunk, ...]
) -> None:
    script, metrics = Script(answers=[[*before, CRASH]]), Metrics()
    assert await answer(script, metrics) == list(ANSWER), "accepted once, and nothing twice"
    assert len(script.loads) == 2
    assert outcome(metrics, "ok") == 1


async def test_a_worker_that_dies_between_grant_and_call_is_replaced(autojump_clock: MockClock) -> None:
    script, metrics = Script(dead_at_birth=1), Metrics()
    assert await answer(script, metrics) == list(ANSWER)
    assert len(script.loads) == 2
    assert outcome(metrics, "ok") == 1


async def test_a_second_crash_is_told(autojump_clock: MockClock) -> None:
    script, metrics = Script(answers=[[CRASH], [EngineCrashed("again")]]), Metrics()
    with pytest.raises(EngineCrashed):
        await answer(script, metrics)
    assert len(script.requests) == 2
    assert outcome(metrics, "engine_crashed") == 1


async def test_a_crash_after_the_first_chunk_is_told(autojump_clock: MockClock) -> None:
    script, metrics = Script(answers=[[*ANSWER[:2], CRASH]]), Metrics()
    with pytest.raises(EngineCrashed):
        await answer(script, metrics)
    assert len(script.requests) == 1
    assert outcome(metrics, "engine_crashed") == 1


async def test_a_restart_that_cannot_load_tells_that(autojump_clock: MockClock) -> None:
    script, metrics = Script(answers=[[Accepted(prompt_tokens=3), CRASH]]), Metrics()
    pool = make_pool(script, metrics)
    async with running(pool):
        async with open_local(pool, metrics, spec(), NEEDS, request(), CONTEXT) as call:
            script.load_errors = [LoadFailed("the file is gone")]
            with pytest.raises(LoadFailed, match="gone"):  # caught in here, as the API does in mid-stream
                async for _ in call.batches():
                    pass
    assert outcome(metrics, "load_failed") == 1


async def test_a_fault_of_the_engine_is_not_retried_and_leaves_the_worker(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(answers=[[EngineFault("Decoding failed.")]])
    with pytest.raises(EngineFault):
        await answer(script)
    assert len(script.loads) == 1
    assert "loading m" in caplog.text  # the engine's last lines


async def test_leaving_the_call_cancels_it_and_frees_the_slot(autojump_clock: MockClock) -> None:
    script, metrics = Script(answers=[[*ANSWER[:2], trio.Event()]]), Metrics()
    pool = make_pool(script, metrics)
    async with running(pool):
        async with open_local(pool, metrics, spec(), NEEDS, request(), CONTEXT) as call:
            async for batch in call.batches():
                if isinstance(batch[0], Text):
                    break
        ((model, _),) = pool.models()
        assert (model.leased, script.cancelled) == (0, 1)
    assert outcome(metrics, "cancelled") == 1


async def test_cancelling_the_task_does_too(autojump_clock: MockClock) -> None:
    script = Script(answers=[[*ANSWER[:2], trio.Event()]])
    pool = make_pool(script)
    async with running(pool):
        with trio.move_on_after(3):
            async with open_local(pool, Metrics(), spec(), NEEDS, request(), CONTEXT) as call:
                async for _ in call.batches():
                    pass
        ((model, _),) = pool.models()
        assert (model.leased, script.cancelled) == (0, 1)


@pytest.mark.parametrize(("n", "leased"), [(1, 1), (2, 2), (5, 2)])
async def test_each_choice_takes_a_slot(autojump_clock: MockClock, n: int, leased: int) -> None:
    script, metrics = Script(slots=2), Metrics()
    pool = make_pool(script, metrics)
    async with running(pool):
        async with open_local(pool, metrics, spec(), NEEDS, request(n=n), CONTEXT):
            ((model, _),) = pool.models()
            assert model.leased == leased


async def test_busy_is_told_on_entry(autojump_clock: MockClock) -> None:
    script, metrics = Script(slots=1), Metrics()
    pool = make_pool(script, metrics, queue_limit=0)
    async with running(pool), trio.open_nursery() as nursery:
        async with open_local(pool, metrics, spec(), NEEDS, request(), CONTEXT):
            await wait_all_tasks_blocked()
            with pytest.raises(Busy):
                async with open_local(pool, metrics, spec(), NEEDS, request(), CONTEXT):
                    pass
        nursery.cancel_scope.cancel()
    assert outcome(metrics, "busy") == 1
