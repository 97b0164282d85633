"""From a need to a place, or to the error that says whose fault it is that there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.types import (
    Busy,
    CallerError,
    Capability,
    HoldersDown,
    LoadFailed,
    MeshError,
    ModelDisabled,
    ModelMissing,
    Unsupported,
)
from mesh.estimate import Need
from mesh.membership import State
from mesh.routing import Decision
from node.router import Placement
from node.trace import Trace
from tests.node.doubles import running
from tests.node.house import OWN, House, offer

NEED = Need(model="m", capability="completion", prompt_tokens=10, output_tokens=10)


async def place(house: House, need: Need = NEED, client: str = "c") -> Placement:
    return await house.router.place(need, client, Trace("r"))


def fast(house: House, peer: str, rate: float = 100.0) -> None:
    house.peer(peer, offer(), decode_tokens_per_s=rate, decode_batch=1.0)


async def test_the_fastest_gets_it_and_its_slot_is_noted(tmp_path: Path) -> None:
    house = House(tmp_path)
    fast(house, "A", 10)
    fast(house, "B", 1000)
    placement = await place(house)
    assert (placement.peer, placement.name, placement.model, placement.digest) == ("B", "b", "m", "mesh1:d")
    assert not placement.local
    assert 0 < placement.bounce_above_s < 100
    assert house.in_flight("B") == 1
    house.router.done(placement, failed=False)
    house.router.done(placement)
    assert house.in_flight("B") == 0


async def test_here_nothing_is_noted_as_the_pool_counts_for_itself(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": "aliases: [gpt]"})
    placement = await place(house, replace(NEED, model="gpt"))
    assert placement.local
    assert placement.model == "m"
    assert placement.handle is None
    assert house.in_flight(OWN) == 0
    house.router.done(placement, failed=True)
    assert house.offers.load("m", trio.current_time()).error_rate == 0, "node/routed.py tells that"


async def test_every_decision_is_written_down(tmp_path: Path) -> None:
    house = House(tmp_path)
    fast(house, "A")
    house.peer("B", offer(), state=State.ALIVE)
    seen: list[Decision] = []
    house.router.observers.append(lambda trace, decision: seen.append(decision))
    trace = Trace("r")
    await house.router.place(NEED, "c", trace)
    [decision] = trace.decisions
    assert decision["policy"] == "ect"
    assert {row["node"] for row in decision["candidates"]} == {"a", "b"}
    assert sum(row["chosen"] for row in decision["candidates"]) == 1
    assert [event.what for event in trace.events] == ["arrived", "route"]
    assert len(seen) == 1
    with pytest.raises(ModelMissing):
        await house.router.place(replace(NEED, model="x"), "c", trace)
    assert trace.decisions[1]["chosen"] == ""
    assert len(seen) == 2


async def refusal(house: House, need: Need = NEED) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await place(house, need)
    return caught.value


async def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.peer("A", offer("llama-3"))
    error = await refusal(house, replace(NEED, model="lama-3"))
    assert isinstance(error, ModelMissing)


async def test_what_no_holder_can_do(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": ""})
    fast(house, "A")
    error = await refusal(house, replace(NEED, capability=Capability.EMBEDDING.value))
    assert isinstance(error, Unsupported)
    assert error.param == "model"


async def test_a_prompt_goes_where_it_fits(tmp_path: Path) -> None:
    house = House(tmp_path)
    fast(house, "A", 1000)
    house.peer("B", offer(context_tokens=1000))
    assert (await place(house, replace(NEED, prompt_tokens=100))).peer == "A"
    assert (await place(house, replace(NEED, prompt_tokens=101))).peer == "B"


async def test_a_prompt_that_seems_too_long_for_all_is_counted_by_an_engine(tmp_path: Path) -> None:
    """The router guesses from the length of a text; it may fit, and else the engine says by how much it does not."""
    house = House(tmp_path)
    fast(house, "A")
    assert (await place(house, replace(NEED, prompt_tokens=101))).peer == "A"


@pytest.mark.parametrize("state", [State.SUSPECT, State.DEAD])
async def test_a_model_whose_holders_are_down_may_come_back(tmp_path: Path, state: State) -> None:
    house = House(tmp_path)
    house.peer("A", offer(), state=state)
    error = await refusal(house)
    assert isinstance(error, HoldersDown)
    assert error.retry_after_s
    assert "is on a, which" in error.message


async def test_a_model_whose_holders_have_left_is_gone(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.peer("A", offer(), state=State.LEFT)
    assert isinstance(await refusal(house), ModelMissing)


async def test_what_is_wrong_with_the_own_file_is_told_where_nobody_else_has_it(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": "", "closed": "disabled: true"})
    house.backend.error = LoadFailed("truncated")
    house.inventory.reload()
    assert "truncated" in (await refusal(house)).message
    assert isinstance(await refusal(house, replace(NEED, model="closed")), ModelDisabled)
    fast(house, "A")
    assert (await place(house)).peer == "A"


async def test_where_the_call_has_failed_it_does_not_go(tmp_path: Path) -> None:
    house = House(tmp_path)
    fast(house, "A", 1000)
    fast(house, "B", 10)
    assert (await place(house, replace(NEED, exclude=frozenset("A")))).peer == "B"
    error = await refusal(house, replace(NEED, exclude=frozenset("AB")))
    assert isinstance(error, Busy)


async def test_a_pin_is_kept_or_refused(tmp_path: Path) -> None:
    house = House(tmp_path, {"m": ""})
    house.peer("A", offer(digest=house.inventory.resolve("m").digest))
    house.peer("B", offer("other"))
    house.peer("C", offer(), state=State.DEAD)
    assert (await place(house, replace(NEED, pinned="A"))).peer == "A"
    assert (await place(house, replace(NEED, pinned=OWN))).local
    error = await refusal(house, replace(NEED, pinned="B"))
    assert isinstance(error, CallerError)
    assert error.param == "X-Mesh-Node"
    assert isinstance(await refusal(house, replace(NEED, pinned="C")), HoldersDown)


async def test_with_every_slot_taken_a_call_waits_here(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path)
    fast(house, "A")
    held = [await place(house) for _ in range(2)]
    placed: list[Placement] = []

    async def third(client: str) -> None:
        placed.append(await place(house, client=client))

    async with trio.open_nursery() as nursery:
        for client in ("c", "d"):
            nursery.start_soon(third, client)
            await wait_all_tasks_blocked()
        assert len(house.room) == 2
        house.router.done(held[0], failed=False)
        await wait_all_tasks_blocked()
        assert len(placed) == 1
        house.router.done(held[1])
    assert [one.peer for one in placed] == ["A", "A"]
    assert house.in_flight("A") == 2


async def test_nobody_overtakes_those_who_wait(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path)
    fast(house, "A")
    held = [await place(house) for _ in range(2)]
    order: list[str] = []

    async def later(client: str) -> None:
        await place(house, client=client)
        order.append(client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later, "first")
        await wait_all_tasks_blocked()
        house.view.book.release(held[0].handle, trio.current_time())  # type: ignore[arg-type]  # nobody has poked yet
        nursery.start_soon(later, "second")
        await wait_all_tasks_blocked()
        assert order == ["first"]
        house.router.done(held[1])
    assert order == ["first", "second"]


async def test_who_may_go_elsewhere_does_not_wait_behind_who_may_not(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A call that has failed on B waits for A; others that may go to B do not wait for it."""
    house = House(tmp_path)
    fast(house, "A")
    fast(house, "B")
    held = [await place(house) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place, house, replace(NEED, exclude=frozenset("B")))
        await wait_all_tasks_blocked()
        nursery.start_soon(place, house)
        await wait_all_tasks_blocked()
        on_b = next(one for one in held if one.peer == "B")
        house.router.done(on_b)
        await wait_all_tasks_blocked()
        assert len(house.room) == 1
        house.router.done(next(one for one in held if one.peer == "A"))


async def test_a_waiting_call_hears_when_its_holders_are_gone(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path)
    fast(house, "A")
    for _ in range(2):
        await place(house)
    caught: list[MeshError] = []

    async def third() -> None:
        caught.append(await refusal(house))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(third)
        await wait_all_tasks_blocked()
        house.roster.update("A", state=State.DEAD)
        house.room.poke()
    assert isinstance(caught[0], HoldersDown)


async def test_placed_in_the_moment_in_which_the_client_goes(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path)
    fast(house, "A")
    held = [await place(house) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def third() -> None:
            with scope:
                await place(house)

        nursery.start_soon(third)
        await wait_all_tasks_blocked()
        scope.cancel()
        house.router.done(held[0])  # it is placed now, and does not know yet
        assert house.in_flight("A") == 2
    assert house.in_flight("A") == 1


async def test_alone_with_the_model_its_own_queue_is_the_place_to_wait(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    house = House(tmp_path, {"m": ""})
    async with running(house.pool):
        entry = house.inventory.resolve("m")
        async with house.pool.lease(entry.spec, memory_bytes=4, slots=2, client="c", weight=2):
            assert (await place(house)).local
            assert len(house.room) == 0


async def test_an_answer_teaches_lengths_and_caches(tmp_path: Path) -> None:
    house = House(tmp_path)
    fast(house, "A")
    need = replace(NEED, prefix=(1, 2), prompt_tokens=80)
    placement = await place(house, need)
    assert placement.candidate.cached_tokens == 0
    house.router.answered(placement, need, cached_tokens=0, output_tokens=1000)
    house.router.done(placement, failed=False)
    assert house.router.lengths.expect("m") == 1000
    again = await place(house, need)
    assert again.candidate.cached_tokens > 40
    house.router.answered(again, need, cached_tokens=0, output_tokens=0)  # it was evicted meanwhile
    house.router.done(again)
    assert (await place(house, need)).candidate.cached_tokens < again.candidate.cached_tokens
    assert house.router.lengths.expect("m") == 1000


async def test_this_node_judges_for_itself(tmp_path: Path, autojump_clock: MockClock) -> None:
    house = House(tmp_path, {"m": ""})
    idle = house.router.judge(NEED, cached_tokens=0)
    assert idle is not None
    assert idle.replica.local
    async with running(house.pool):
        entry = house.inventory.resolve("m")
        async with house.pool.lease(entry.spec, memory_bytes=4, slots=2, client="c", weight=2):
            busy = house.router.judge(replace(NEED, output_tokens=1000), cached_tokens=0)
            assert busy is not None
            assert busy.terms.total_s > idle.terms.total_s
            cached = house.router.judge(replace(NEED, prompt_tokens=10_000), cached_tokens=9_000)
            fresh = house.router.judge(replace(NEED, prompt_tokens=10_000), cached_tokens=0)
            assert cached is not None
            assert fresh is not None
            assert cached.terms.prefill_s < fresh.terms.prefill_s
    assert house.router.judge(replace(NEED, model="x"), cached_tokens=0) is None


@pytest.mark.parametrize("policy", ["least-loaded", "round-robin", "random"])
async def test_the_other_policies_place_too(tmp_path: Path, policy: str) -> None:
    house = House(tmp_path)
    router = type(house.router)(house.view, house.room, policy=policy)
    for peer in "ABC":
        fast(house, peer)
    placed = {(await router.place(NEED, "c", Trace("r"))).peer for _ in range(6)}
    assert placed == {"A", "B", "C"} or policy == "random"
