"""A try at a request on this node: the worker's own bytes, cancelled structurally, a slot for each choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.types import Busy, LoadFailed, Text, decode_chunk, encode_chunk, encode_request
from node.local import open_local
from tests.node.doubles import ANSWER, USAGE, Script, make_pool, request, running
from tests.node.house import House

REQUEST = encode_request(request())


async def test_chunks_pass_as_the_worker_wrote_them(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": ""})
    entry = house.inventory.resolve("m")
    async with running(house.pool), open_local(house.pool, entry, REQUEST, client="c", weight=1) as call:
        assert [data async for batch in call.batches() for data in batch] == [encode_chunk(one) for one in ANSWER]
        assert call.usage == USAGE
    assert house.script.requests == [request()]


@pytest.mark.parametrize("cancelled", [True, False])
async def test_leaving_the_call_cancels_it_and_frees_the_slot(
    tmp_path: Path, autojump_clock: MockClock, cancelled: bool
) -> None:
    house = House(tmp_path, {"m": ""})
    house.script.answers = [[*ANSWER[:2], trio.Event()]]
    async with running(house.pool):
        with trio.move_on_after(3):
            async with open_local(house.pool, house.inventory.resolve("m"), REQUEST, client="c", weight=1) as call:
                async for batch in call.batches():
                    if isinstance(decode_chunk(batch[0]), Text) and not cancelled:
                        break
        ((model, _),) = house.pool.models()
        assert (model.leased, house.script.cancelled) == (0, 1)


@pytest.mark.parametrize(("weight", "leased"), [(1, 1), (2, 2), (5, 2)])
async def test_each_choice_takes_a_slot(tmp_path: Path, autojump_clock: MockClock, weight: int, leased: int) -> None:
    house = House(tmp_path, {"m": ""})
    async with (
        running(house.pool),
        open_local(house.pool, house.inventory.resolve("m"), REQUEST, client="c", weight=weight),
    ):
        ((model, _),) = house.pool.models()
        assert model.leased == leased


async def test_busy_is_told_on_entry(tmp_path: Path, autojump_clock: MockClock) -> None:
    entry = House(tmp_path, {"m": ""}).inventory.resolve("m")
    pool = make_pool(Script(slots=1), queue_limit=0)
    async with running(pool), open_local(pool, entry, REQUEST, client="c", weight=1):
        await wait_all_tasks_blocked()
        with pytest.raises(Busy):
            async with open_local(pool, entry, REQUEST, client="c", weight=1):
                pass


async def test_a_file_that_cannot_be_read_is_told_on_entry(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": ""})
    house.backend.error = LoadFailed("The file is truncated.")
    house.inventory.reload()
    with pytest.raises(LoadFailed, match="truncated"):
        async with open_local(house.pool, house.inventory.resolve("m"), REQUEST, client="c", weight=1):
            pass
