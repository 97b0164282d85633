"""What a node tells of its own models, in every state that they can be in."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.types import LoadFailed, encode_request
from mesh.records import Load, PeerRecord
from node.local import open_local
from tests.node.doubles import request, running
from tests.node.house import House, record


def load_of(house: House, name: str = "m") -> Load:
    [found] = [load for load in house.offers.loads(trio.current_time()) if load.model == name]
    assert found == house.offers.load(name, trio.current_time())
    return found


async def ask(house: House, name: str = "m") -> None:
    entry = house.inventory.resolve(name)
    async with open_local(house.pool, entry, encode_request(request(name)), client="c", weight=1) as call:
        async for _ in call.batches():
            pass


def test_an_offer_is_what_the_file_says(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": "aliases: [gpt-4o]", "closed": "disabled: true"})
    [offer] = house.offers.all()
    assert (offer.model, offer.aliases, offer.backend) == ("m", ("gpt-4o",), "fake")
    assert (offer.slots, offer.context_tokens, offer.memory_bytes) == (2, 100, 4)
    assert offer.capabilities == ("completion",)
    assert offer.digest.startswith("mesh1:")
    assert isinstance(record("A" * 52, "a", offer), PeerRecord)


async def test_a_model_that_cannot_be_opened_is_not_offered(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": ""})
    house.backend.error = LoadFailed("truncated")
    house.inventory.reload()
    assert house.offers.all() == ()
    assert house.offers.loads(trio.current_time()) == ()


async def test_the_load_follows_the_pool(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": ""})
    house.script.load_s = 2.0
    assert load_of(house) == Load("m", "absent")
    async with running(house.pool), trio.open_nursery() as nursery:
        release = trio.Event()
        house.script.answers = [[release]]
        nursery.start_soon(ask, house)
        await trio.sleep(1)
        assert (load_of(house).state, load_of(house).queued) == ("loading", 1)
        await trio.sleep(2)
        busy = load_of(house)
        assert (busy.state, busy.slots_used, busy.slots, busy.load_s) == ("ready", 1, 2, 2.0)
        assert busy.decode_tokens_per_s == 7.0
        release.set()
        await trio.sleep(1)
        assert load_of(house).slots_used == 0
        house.pool.unload("m")
        await trio.sleep(1)
        gone = load_of(house)
        assert (gone.state, gone.slots_used) == ("absent", 0)
        assert (gone.decode_tokens_per_s, gone.load_s) == (7.0, 2.0), "what was measured outlives the worker"


async def test_a_failed_load_is_told_until_it_may_be_tried_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": ""})
    house.script.load_errors = [LoadFailed("no")]
    async with running(house.pool):
        with pytest.raises(LoadFailed):
            await ask(house)
        assert load_of(house).state == "failed"
        await trio.sleep(60)
        assert load_of(house).state == "absent"


async def test_faults_are_told_and_fade(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": "", "n": ""})
    for _ in range(1000):
        house.offers.record("m", failed=True, now=trio.current_time())
    assert 0.9 < load_of(house).error_rate <= 1
    assert load_of(house, "n").error_rate == 0
    await trio.sleep(600)
    assert load_of(house).error_rate < 0.01


async def test_a_name_that_nobody_has_is_absent(tmp_path: Path) -> None:
    assert House(tmp_path).offers.load("x", 0.0) == Load("x", "absent")
