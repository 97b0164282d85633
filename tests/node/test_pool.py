"""The pool over scripted workers, on a clock that jumps."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.process import Worker
from backends.types import Busy, LoadFailed, OutOfMemory
from node.catalog import ModelSpec
from node.metrics import Metrics
from node.pool import Pool
from node.slots import State
from tests.node.doubles import Script, count, make_pool, running, spec


def lease(
    pool: Pool, model: ModelSpec | None = None, *, memory: int = 4, weight: int = 1, client: str = "c"
) -> AbstractAsyncContextManager[Worker]:
    return pool.lease(model or spec(), memory_bytes=memory, slots=2, client=client, weight=weight)


def states(pool: Pool) -> dict[str, State]:
    return {model.name: model.state for model, _ in pool.models()}


async def test_a_model_is_loaded_once_for_all_who_wait(autojump_clock: MockClock) -> None:
    script = Script(load_s=3, slots=2)
    pool = make_pool(script)
    seen: list[Worker] = []

    async def hold() -> None:
        async with lease(pool) as worker:
            seen.append(worker)

    async with running(pool), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        assert pool.progress("m") == 0.5
        assert pool.loaded("m") is None
    assert len(script.loads) == 1
    assert len(seen) == 3
    assert script.loads[0].memory_bytes == pool.budget_bytes
    assert trio.current_time() == pytest.approx(3)


async def test_workers_end_with_the_pool(autojump_clock: MockClock) -> None:
    script = Script()
    pool = make_pool(script)
    async with running(pool):
        async with lease(pool):
            assert script.open == 1
        assert script.open == 1
    assert script.open == 0


async def test_idle_models_unload_by_themselves(autojump_clock: MockClock) -> None:
    script = Script()
    pool = make_pool(script, idle_unload_s=30)
    async with running(pool):
        async with lease(pool):
            await trio.sleep(100)
            assert script.open == 1
        await trio.sleep(29)
        assert script.open == 1
        await trio.sleep(2)
        assert script.open == 0
        assert states(pool) == {"m": State.ABSENT}
        async with lease(pool):
            assert script.open == 1


async def test_one_model_makes_room_for_another(autojump_clock: MockClock) -> None:
    script = Script()
    pool = make_pool(script)
    async with running(pool):
        async with lease(pool, spec("a"), memory=6):
            pass
        async with lease(pool, spec("b"), memory=6):
            assert states(pool) == {"a": State.ABSENT, "b": State.READY}
            assert script.open == 1


async def test_a_failed_load_reaches_all_waiters_and_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(load_s=1, load_errors=[LoadFailed("This is no model.")])
    metrics = Metrics()
    pool = make_pool(script, metrics)
    failed = []

    async def fail() -> None:
        with pytest.raises(LoadFailed, match="no model"):
            async with lease(pool):
                pass
        failed.append(1)

    with caplog.at_level(logging.ERROR, "mesh.pool"):
        async with running(pool), trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(fail)
    assert len(failed) == 2
    assert "loading m" in caplog.text  # what the worker had printed
    assert count(metrics, "mesh_model_loads_total", model="m", outcome="load_failed") == 1


async def test_a_load_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    script = Script(load_s=1000)
    pool = make_pool(script, load_timeout_s=20)
    async with running(pool):
        with pytest.raises(LoadFailed, match="did not load within 20 s"):
            async with lease(pool):
                pass
        assert trio.current_time() == pytest.approx(20)
        script.load_s = 0
        await trio.sleep(5)
        async with lease(pool):
            await trio.sleep(100)  # the time limit is the load's alone


async def test_a_model_too_large_is_never_started(autojump_clock: MockClock) -> None:
    script = Script()
    pool = make_pool(script)
    async with running(pool):
        with pytest.raises(OutOfMemory):
            async with lease(pool, memory=11):
                pass
    assert script.loads == []


async def test_a_dead_worker_is_replaced_for_the_next_caller(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script()
    metrics = Metrics()
    pool = make_pool(script, metrics)
    async with running(pool):
        async with lease(pool) as first:
            first.died.set()
            async with lease(pool) as second:  # asked for before anybody has noticed the death
                assert second is not first
        assert script.open == 1
        log = pool.log("m")
        assert log is not None
        assert log.lines() == ["loading m", "loading m"]
    assert count(metrics, "mesh_engine_crashes_total", model="m") == 1
    assert "ended by itself" in caplog.text


async def test_a_cancelled_waiter_leaves_the_queue(autojump_clock: MockClock) -> None:
    script = Script(slots=1)
    pool = make_pool(script)
    async with running(pool), lease(pool):
        with trio.move_on_after(5) as scope:
            async with lease(pool):
                pass
        assert scope.cancelled_caught
        ((model, _),) = pool.models()
        assert (model.queue, model.leased) == (0, 1)


async def test_draining_refuses_newcomers_and_waits_for_the_rest(autojump_clock: MockClock) -> None:
    script = Script(slots=1)
    pool = make_pool(script)
    released = trio.Event()

    async def hold(*, task_status: trio.TaskStatus[None]) -> None:
        async with lease(pool):
            task_status.started()
            await trio.sleep(7)
            released.set()

    async def wait_in_vain() -> None:
        with pytest.raises(Busy, match="shutting down"):
            async with lease(pool):
                pass

    async with running(pool), trio.open_nursery() as nursery:
        await nursery.start(hold)
        nursery.start_soon(wait_in_vain)
        await wait_all_tasks_blocked()
        await pool.drain()
        assert released.is_set()
        await wait_in_vain()
    assert trio.current_time() == pytest.approx(7)


async def test_draining_an_idle_pool_takes_no_time(autojump_clock: MockClock) -> None:
    pool = make_pool(Script())
    async with running(pool):
        await pool.drain()
    assert trio.current_time() == 0


async def test_unloading_spares_the_busy(autojump_clock: MockClock) -> None:
    script = Script()
    pool = make_pool(script)
    async with running(pool):
        async with lease(pool):
            pool.unload("m")
            await wait_all_tasks_blocked()
            assert script.open == 1
        pool.unload("m")
        await wait_all_tasks_blocked()
        assert script.open == 0
        pool.unload("unknown")


async def test_a_model_is_loaded_anew_when_what_runs_on_it_has_ended(autojump_clock: MockClock) -> None:
    script = Script()
    pool = make_pool(script)
    async with running(pool):
        pool.renew(spec(), memory_bytes=4, slots=2)  # nothing is loaded
        async with lease(pool) as worker:
            pool.renew(spec(), memory_bytes=4, slots=2)
            await wait_all_tasks_blocked()
            assert pool.loaded("m") is worker
        await wait_all_tasks_blocked()
        assert len(script.loads) == 2
        assert pool.loaded("m") not in (None, worker)
        assert [model.leased for model, _ in pool.models()] == [0]
        script.load_errors.append(LoadFailed("not again"))
        pool.renew(spec(), memory_bytes=4, slots=2)
        await wait_all_tasks_blocked()
        assert (len(script.loads), script.open) == (3, 0)


async def test_a_crash_loop_is_paused(autojump_clock: MockClock) -> None:
    script = Script()
    pool = make_pool(script)
    async with running(pool):
        for _ in range(2):
            async with lease(pool) as worker:
                worker.died.set()
                await wait_all_tasks_blocked()
        with pytest.raises(LoadFailed, match="keeps crashing"):
            async with lease(pool):
                pass
        await trio.sleep(10)
        async with lease(pool):
            pass
