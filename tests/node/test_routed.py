"""A client's call over nodes that fail: what is tried where, what the client gets, and what is given back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from api.ports import CallContext
from backends.types import (
    Accepted,
    Busy,
    CallerError,
    Chunk,
    ContextOverflow,
    EmbeddingRequest,
    EngineCrashed,
    EngineFault,
    Finished,
    LoadFailed,
    MeshError,
    ModelMissing,
    NodeGone,
    OutOfMemory,
    Request,
    Text,
    TokenIds,
)
from mesh.membership import State
from node.attempt import Bounced
from node.need import need_of
from node.routed import MAX_RESCUES
from tests.node.doubles import ANSWER, CONTEXT, by_choice, count, request, running, spoken
from tests.node.house import OWN, House, offer

GONE = NodeGone("The node went away while it answered.")
CRASH = EngineCrashed("The worker died.")


@asynccontextmanager
async def swarm(folder: Path, peers: str = "AB", *, local: bool = False, **offers: str) -> AsyncIterator[House]:
    """A house with peers that have the model, the first of them the fastest; `offers` are other digests."""
    house = House(folder, {"m": ""} if local else {})
    for place, peer in enumerate(peers):
        digest = offers.get(peer, house.inventory.resolve("m").digest if local else "mesh1:d")
        house.peer(peer, offer(digest=digest), decode_tokens_per_s=1000.0 / 10**place, decode_batch=1.0)
    house.script.otherwise = spoken
    async with running(house.pool):
        yield house
        assert house.elsewhere.open_calls == 0
        assert [house.in_flight(peer) for peer in peers] == [0] * len(peers), "something stayed reserved"
        assert all(model.leased == 0 for model, _ in house.pool.models())


async def chunks_of(house: House, asked: Request, context: CallContext = CONTEXT) -> list[Chunk]:
    """The whole answer."""
    got: list[Chunk] = []
    failure = None
    try:
        async with house.dispatcher.open(asked, context) as call:
            async for batch in call.batches():
                got += batch
            assert call.model == "m"
    except MeshError as error:
        failure = error
    if failure is not None:  # out here, so that no nursery wraps it
        raise failure
    return got


def events(house: House) -> list[str]:
    trace = house.traces.get(CONTEXT.request_id)
    assert trace is not None
    return [event.what for event in trace.events]


def salted(house: House, **fields: Any) -> Request:
    """The request as the first node got it: with the salt that this call was given."""
    sent = house.elsewhere.asked[0][2] if house.elsewhere.asked else house.script.requests[0]
    salt = getattr(sent, "salt", None)
    assert isinstance(salt, int)
    return request(salt=salt, **fields)


async def test_the_fastest_node_answers(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path) as house:
        async with house.dispatcher.open(request(), CONTEXT) as call:
            assert (call.node, call.model) == ("a", "m")
            assert house.in_flight("A") == 1
            assert [chunk async for batch in call.batches() for chunk in batch] == spoken(request())
            assert call.usage.completion_tokens == 4
        [(peer, head, sent)] = house.elsewhere.asked
        assert (peer, sent) == ("A", salted(house))
        assert (head.request_id, head.client, head.digest) == ("r", "c", "mesh1:d")
        assert count(house.metrics, "mesh_routed_total", node="a") == 1
        assert count(house.metrics, "mesh_tokens_total", model="m", kind="completion") == 4


async def test_a_salt_that_came_with_the_request_is_kept(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path) as house:
        await chunks_of(house, request(salt=5))
        assert house.elsewhere.asked[0][2] == request(salt=5)


async def test_a_node_may_bounce_a_call_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path) as house:
        house.elsewhere.then("A", Bounced(9.0))
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AB"
        first, second = (head.bounce_above_s for _, head, _ in house.elsewhere.asked)
        assert isinstance(first, float)
        assert second is None, "it has to stay there"
        assert "bounced" in events(house)


async def test_a_bounced_call_goes_back_where_there_is_nobody_else(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "A") as house:
        house.elsewhere.then("A", Bounced(9.0))
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AA"
        assert house.elsewhere.asked[1][1].bounce_above_s is None


async def test_a_node_that_cannot_be_reached_is_no_matter(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path) as house:
        house.elsewhere.unreachable = {"A"}
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AB"
        assert count(house.metrics, "mesh_resumed_total", node="b") == 0


@pytest.mark.parametrize("cut", range(7))
@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"echo": True}, {"echo": True, "n": 2}], ids=str)
async def test_a_node_that_goes_at_any_moment_is_no_matter(
    tmp_path: Path, autojump_clock: MockClock, cut: int, fields: dict[str, Any]
) -> None:
    async with swarm(tmp_path) as house:
        house.elsewhere.after("A", cut, GONE)
        got = await chunks_of(house, request(**fields))
        assert by_choice(got) == by_choice(spoken(request(**fields)))
        assert sum(isinstance(chunk, Accepted) for chunk in got) == 1
        assert set(house.elsewhere.peers) == {"A", "B"}
        begun = cut > 1
        assert count(house.metrics, "mesh_resumed_total", node="b") == begun
        assert ("resumed" in events(house)) == begun
        assert count(house.metrics, "mesh_requests_total", model="m", operation="completion", outcome="ok") == 1


async def test_what_is_left_of_many_choices_takes_one_slot(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path) as house:
        house.elsewhere.after("A", 4, GONE)
        await chunks_of(house, request(n=2))
        assert [head.weight for _, head, _ in house.elsewhere.asked] == [2, 1, 1]
        [_, second, third] = [sent for _, _, sent in house.elsewhere.asked]
        assert second == salted(house, n=1, first_choice=0, resume=(0, 1))
        assert third == salted(house, n=1, first_choice=1, resume=(1000,))


async def test_embeddings_are_made_again_and_come_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    asked = EmbeddingRequest(model="m", inputs=("a", "b"))
    house = House(tmp_path)
    for peer in "AB":
        house.peer(peer, offer(capabilities=("embedding",)))
    for peer in "AB":
        house.elsewhere.after(peer, 1, GONE)
    assert await chunks_of(house, asked) == spoken(asked)
    assert sorted(house.elsewhere.peers[:2]) == ["A", "B"]


@pytest.mark.parametrize("after", range(5))
async def test_a_crash_here_is_resumed_here_once_where_nobody_else_can(
    tmp_path: Path, autojump_clock: MockClock, after: int
) -> None:
    async with swarm(tmp_path, "", local=True) as house:
        house.script.answers = [lambda asked: (*spoken(asked)[:after], CRASH)]
        assert await chunks_of(house, request()) == spoken(request())
        assert len(house.script.loads) == 2
        assert len(house.script.requests) == 2
        assert house.offers.load("m", trio.current_time()).error_rate > 0


async def test_a_second_crash_here_is_told(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "", local=True) as house:
        house.script.answers = [
            lambda asked: (*spoken(asked)[:2], CRASH),
            lambda asked: (*spoken(asked)[:2], EngineCrashed("again")),
        ]
        with pytest.raises(EngineCrashed, match="again"):
            await chunks_of(house, request())
        assert len(house.script.requests) == 2
        crashed = {"model": "m", "operation": "completion", "outcome": "engine_crashed"}
        assert count(house.metrics, "mesh_requests_total", **crashed) == 1


async def test_a_crash_here_goes_on_elsewhere(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "B", local=True) as house:
        house.peer("B", offer(digest=house.inventory.resolve("m").digest), decode_tokens_per_s=0.1, decode_batch=1.0)
        house.script.answers = [spoken, lambda asked: (*spoken(asked)[:3], CRASH)]
        async with house.dispatcher.open(request(), replace(CONTEXT, node="own")):
            pass  # it is loaded
        async with house.dispatcher.open(request(), CONTEXT) as call:
            assert call.node == "own"
            assert [chunk async for batch in call.batches() for chunk in batch] == spoken(request())
            assert call.node == "b"


async def test_a_worker_that_dies_between_grant_and_call_is_replaced(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "", local=True) as house:
        house.script.dead_at_birth = 1
        assert await chunks_of(house, request()) == spoken(request())
        assert len(house.script.loads) == 2


async def test_a_restart_that_cannot_load_tells_the_crash(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "", local=True) as house:
        house.script.answers = [[Accepted(3), CRASH]]
        async with house.dispatcher.open(request(), CONTEXT) as call:
            house.script.load_errors = [LoadFailed("the file is gone")]
            with pytest.raises(LoadFailed, match="gone"):  # caught in here, as the API does in mid-stream
                async for _ in call.batches():
                    pass


@pytest.mark.parametrize("error", [LoadFailed("bad file"), OutOfMemory("too large"), Busy("full")])
async def test_what_a_node_cannot_do_now_another_may(
    tmp_path: Path, autojump_clock: MockClock, error: MeshError
) -> None:
    async with swarm(tmp_path) as house:
        house.elsewhere.then("A", error)
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AB"


@pytest.mark.parametrize("error", [LoadFailed("bad file"), OutOfMemory("too large"), Busy("full", retry_after_s=7)])
async def test_it_is_not_asked_twice_and_its_reason_is_told(
    tmp_path: Path, autojump_clock: MockClock, error: MeshError
) -> None:
    async with swarm(tmp_path, "A") as house:
        house.elsewhere.then("A", error)
        with pytest.raises(type(error), match=error.message) as caught:
            await chunks_of(house, request())
        assert caught.value.retry_after_s == error.retry_after_s
        assert house.elsewhere.peers == "A"


async def test_a_model_that_a_peer_no_longer_has_is_looked_for_elsewhere(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with swarm(tmp_path) as house:
        house.elsewhere.then("A", ModelMissing("gone since"))
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AB"
        replicas, _ = house.view.replicas(need_of(request(), 100.0, None), trio.current_time())
        assert [replica.error_rate for replica in replicas] == [0, 0], "it is healthy"


async def test_a_prompt_that_is_too_long_for_a_node_goes_where_there_is_more_room(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Only the engine knows how many tokens a text has."""
    async with swarm(tmp_path, "ABC") as house:
        house.peer("C", offer(context_tokens=1000), decode_tokens_per_s=1.0, decode_batch=1.0)
        house.elsewhere.then("A", ContextOverflow("101 tokens; the context is 100."))
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AC", "B has no more room than A"
        house.elsewhere.then("A", ContextOverflow("1001 tokens; the context is 100."))
        house.elsewhere.then("C", ContextOverflow("1001 tokens; the context is 1000."))
        with pytest.raises(ContextOverflow, match="context is 1000"):
            await chunks_of(house, request())
        assert house.elsewhere.peers == "ACAC"
        replicas, _ = house.view.replicas(need_of(request(), 100.0, None), trio.current_time())
        assert {replica.error_rate for replica in replicas} == {0.0}, "nobody is to blame"


@pytest.mark.parametrize("error", [CallerError("bad grammar"), EngineFault("Decoding failed.")])
async def test_an_error_that_any_node_would_give_is_told_at_once(
    tmp_path: Path, autojump_clock: MockClock, error: MeshError
) -> None:
    async with swarm(tmp_path) as house:
        house.elsewhere.then("A", error)
        with pytest.raises(type(error), match=error.message):
            await chunks_of(house, request())
        assert house.elsewhere.peers == "A"


async def test_a_fault_here_is_logged_with_what_the_engine_printed(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with swarm(tmp_path, "", local=True) as house:
        house.script.answers = [[EngineFault("Decoding failed.")]]
        with pytest.raises(EngineFault):
            await chunks_of(house, request())
        assert len(house.script.loads) == 1
    assert "loading m" in caplog.text


@pytest.mark.parametrize("shown", [1, 2])
async def test_only_the_same_file_goes_on_with_an_answer(tmp_path: Path, autojump_clock: MockClock, shown: int) -> None:
    """B is faster than C, but has another file under this name."""
    async with swarm(tmp_path, "ABC", B="mesh1:other") as house:
        house.elsewhere.after("A", shown, GONE)
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AC"


async def test_before_anything_was_shown_any_file_of_that_name_will_do(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with swarm(tmp_path, "AB", B="mesh1:other") as house:
        house.elsewhere.after("A", 0, GONE)
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AB"


async def test_the_digest_stays_for_all_choices(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "ABC", B="mesh1:other") as house:
        house.elsewhere.after("A", 3, GONE)
        assert by_choice(await chunks_of(house, request(n=3))) == by_choice(spoken(request(n=3)))
        assert set(house.elsewhere.peers) == {"A", "C"}


async def test_with_no_replica_left_there_is_one_clear_error(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "AB") as house:
        for _ in range(2):
            house.elsewhere.after("A", 2, GONE)
            house.elsewhere.after("B", 1, GONE)
        got: list[Chunk] = []
        async with house.dispatcher.open(request(), CONTEXT) as call:
            with pytest.raises(NodeGone, match="went away"):  # noqa: PT012
                async for batch in call.batches():
                    got += batch
        assert got == spoken(request())[: len(got)], "and what came before it was right"
        assert house.elsewhere.peers == "ABAB", "each of them once more: it may have recovered"
        gone = {"model": "m", "operation": "completion", "outcome": "node_gone"}
        assert count(house.metrics, "mesh_requests_total", **gone) == 1


async def test_a_call_that_kills_every_node_does_not_kill_them_all(tmp_path: Path, autojump_clock: MockClock) -> None:
    peers = "ABCDEFGHIJ"
    async with swarm(tmp_path, peers) as house:
        for peer in peers:
            house.elsewhere.after(peer, 2, CRASH)
        with pytest.raises(EngineCrashed):
            await chunks_of(house, request())
        assert len(house.elsewhere.asked) == 1 + MAX_RESCUES


async def test_a_node_that_breaks_calls_is_avoided_by_the_next(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "A") as house:
        house.peer("B", offer(), decode_tokens_per_s=900.0, decode_batch=1.0)
        house.elsewhere.after("A", 2, GONE)
        await chunks_of(house, request())
        await chunks_of(house, request())
        assert house.elsewhere.peers == "ABB"


@pytest.mark.parametrize("garbage", [[b"\xc1"], [b""], [b"\x93\x02\x05\xa1x"]])
async def test_chunks_that_are_none_of_ours_are_the_peers_fault(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, garbage: list[bytes]
) -> None:
    """Not encoded by us at all, or of a choice that nobody asked for: the answer goes on elsewhere."""
    async with swarm(tmp_path) as house:
        house.elsewhere.then("A", Text(0, "0 ", (0,)), TokenIds((1,)))
        real = house.elsewhere.open

        @asynccontextmanager
        async def spoiling(peer: str, name: str, head: Any, sent: bytes) -> AsyncIterator[Any]:
            async with real(peer, name, head, sent) as attempt:
                inner = attempt.batches

                async def batches() -> AsyncIterator[list[bytes]]:
                    async for batch in inner():
                        yield [*batch, *garbage] if peer == "A" else batch

                attempt.batches = batches  # type: ignore[method-assign]
                yield attempt

        monkeypatch.setattr(house.elsewhere, "open", spoiling)
        assert await chunks_of(house, request()) == spoken(request())
        assert house.elsewhere.peers == "AB"


async def test_an_engine_that_ends_without_an_answer_is_no_endless_loop(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with swarm(tmp_path, "", local=True) as house:
        house.script.otherwise = [Accepted(3), Text(0, "x", (0,))]
        with pytest.raises(EngineFault, match="before its answer was complete"):
            await chunks_of(house, request())
        assert len(house.script.requests) == 1
        house.script.otherwise = [Accepted(3), Finished(7, "stop")]
        with pytest.raises(EngineFault, match="not ours"):
            await chunks_of(house, request())


async def test_leaving_gives_everything_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "A") as house:
        house.elsewhere.after("A", 2, trio.Event())
        async with house.dispatcher.open(request(), CONTEXT) as call:
            async for batch in call.batches():
                if isinstance(batch[0], Text):
                    break
            assert house.in_flight("A") == 1
        assert house.in_flight("A") == 0
        cancelled = {"model": "m", "operation": "completion", "outcome": "cancelled"}
        assert count(house.metrics, "mesh_requests_total", **cancelled) == 1


@pytest.mark.parametrize("local", [True, False])
async def test_cancelling_the_task_gives_everything_back(
    tmp_path: Path, autojump_clock: MockClock, local: bool
) -> None:
    async with swarm(tmp_path, "" if local else "A", local=local) as house:
        house.elsewhere.after("A", 2, trio.Event())
        house.script.answers = [[*ANSWER[:2], trio.Event()]]
        with trio.move_on_after(3) as scope:
            await chunks_of(house, request())
        assert scope.cancelled_caught
        assert house.script.cancelled == local


async def test_cancelled_while_it_waits_for_a_slot_it_holds_none(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "A") as house, trio.open_nursery() as nursery:
        release = trio.Event()
        house.elsewhere.after("A", 2, release, *spoken(request())[2:])
        house.elsewhere.after("A", 2, release, *spoken(request())[2:])
        for _ in range(2):
            nursery.start_soon(chunks_of, house, request())
        await wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await chunks_of(house, request(), replace(CONTEXT, request_id="third"))
        assert scope.cancelled_caught
        assert len(house.room) == 0
        release.set()


async def test_a_held_call_goes_when_a_slot_is_free(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path, "A") as house, trio.open_nursery() as nursery:
        release = trio.Event()
        for _ in range(2):
            house.elsewhere.after("A", 2, release, *spoken(request())[2:])
            nursery.start_soon(chunks_of, house, request())
        await wait_all_tasks_blocked()
        got: list[Sequence[Chunk]] = []

        async def third() -> None:
            got.append(await chunks_of(house, request(), replace(CONTEXT, request_id="third")))

        nursery.start_soon(third)
        await wait_all_tasks_blocked()
        assert len(house.room) == 1
        assert len(house.elsewhere.asked) == 2
        release.set()
        await wait_all_tasks_blocked()
        assert got == [spoken(request())]


async def test_a_pinned_call_stays_where_it_is(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with swarm(tmp_path) as house:
        house.elsewhere.after("B", 2, GONE)
        house.elsewhere.after("B", 0, GONE)
        with pytest.raises(NodeGone):
            await chunks_of(house, request(), replace(CONTEXT, node="b"))
        assert house.elsewhere.peers == "BB"
        assert await chunks_of(house, request(), replace(CONTEXT, node="b")) == spoken(request())


async def test_the_holder_may_die_while_a_call_is_there(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The roster knows before the call does: what is released later is in no book any more."""
    async with swarm(tmp_path, "A") as house:
        house.elsewhere.after("A", 2, GONE)
        async with house.dispatcher.open(request(), CONTEXT) as call:
            with pytest.raises(NodeGone):  # noqa: PT012
                async for batch in call.batches():
                    if isinstance(batch[0], Text):
                        house.roster.update("A", state=State.DEAD)
                        house.view.forget("A")
        assert house.elsewhere.peers == "A"
        assert house.in_flight(OWN) == 0
