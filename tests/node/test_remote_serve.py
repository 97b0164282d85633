"""Calls from node to node, over a simulated network: both ends of `/mesh/infer/1`, and what strangers send there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.types import (
    Accepted,
    Busy,
    Chunk,
    ContextOverflow,
    EngineCrashed,
    EngineFault,
    Finished,
    MeshError,
    ModelMissing,
    NodeGone,
    Text,
    Usage,
    decode_chunk,
    encode_chunk,
    encode_request,
)
from mesh.errors import PeerError, PeerGone, PeerMisbehaved
from mesh.framed import Framed
from mesh.memory import MemoryTransport, Network
from mesh.transport import Stream
from mesh.wire import HEADER, Decoder, encode
from node import infer
from node.attempt import Bounced
from node.infer import CREDIT, PROTOCOL, CallBody, CallHead, Kind
from node.remote import MAX_IDLE_STREAMS, Remote, RemoteAttempt
from node.serve import Judge, Serving
from tests.node.doubles import ANSWER, USAGE, request, running, spoken
from tests.node.house import House

ENTRY, OWNER = "ENTRY", "OWNER"


class Link:
    """An entry node's Remote, and an owner that serves the model m with a scripted worker."""

    def __init__(self, house: House, network: Network) -> None:
        self.house = house
        self.network = network
        self.entry: MemoryTransport = network.join(ENTRY)
        self.owner: MemoryTransport = network.join(OWNER)
        self.remote = Remote(self.entry)
        self.outcomes: list[str] = []
        self.endings: list[BaseException | None] = []
        """How each served stream ended."""
        self.opened = 0
        serving = Serving(
            house.inventory,
            house.pool,
            house.traces,
            Judge(house.router),
            lambda peer, outcome: self.outcomes.append(outcome),
        )

        async def handle(stream: Stream) -> None:
            self.opened += 1
            try:
                await serving.handle(stream)
            except BaseException as error:
                self.endings.append(error)
                if not isinstance(error, PeerError):
                    raise
                await stream.reset()
            else:
                self.endings.append(None)

        self.owner.handle(PROTOCOL, handle)

    def head(self, **fields: Any) -> CallHead:
        given = {"digest": self.house.inventory.resolve("m").digest} | fields
        return CallHead(request_id="r", client="c", model="m", capability="completion", **given)

    def call(self, **fields: Any) -> Any:
        """A call, to be entered."""
        return self.remote.open(OWNER, "owner", self.head(**fields), encode_request(request()))

    async def chunks(self, **fields: Any) -> list[Chunk]:
        """The whole answer of one call."""
        async with self.call(**fields) as attempt:
            return await read(attempt)

    @property
    def leased(self) -> int:
        return sum(model.leased for model, _ in self.house.pool.models())

    async def raw(self) -> Framed:
        """A stream for a test that speaks for itself."""
        return Framed(await self.entry.open(OWNER, PROTOCOL), Decoder(kinds=infer.FROM_SERVER))

    def body(self, **fields: Any) -> bytes:
        return infer.encode(CallBody(self.head(**fields), encode_request(request())))


async def read(attempt: RemoteAttempt) -> list[Chunk]:
    return [decode_chunk(data) async for batch in attempt.batches() for data in batch]


@asynccontextmanager
async def linked(folder: Path, *, window_bytes: int = 256 << 10) -> AsyncIterator[Link]:
    house = House(folder, {"m": ""})
    network = Network(latency_s=0.001, window_bytes=window_bytes)
    link = Link(house, network)
    async with running(house.pool), trio.open_nursery() as nursery:
        for run in (network.run, link.entry.run, link.owner.run, link.remote.run):
            await nursery.start(run)
        await link.entry.dial(link.owner.addresses(), OWNER, timeout_s=5)
        yield link
        nursery.cancel_scope.cancel()


async def failing(coroutine: Any) -> MeshError:
    try:
        await coroutine
    except MeshError as error:
        return error
    raise AssertionError("it did not fail")


async def test_an_answer_passes_as_the_worker_wrote_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        async with link.call() as attempt:
            assert [data async for batch in attempt.batches() for data in batch] == [
                encode_chunk(one) for one in ANSWER
            ]
            assert attempt.usage == USAGE
        assert link.house.script.requests == [request()]
        await wait_all_tasks_blocked()
        assert link.outcomes == ["ok"]
        trace = link.house.traces.served("r")
        assert trace is not None
        assert [event.what for event in trace.events] == ["arrived", "lease", "open", "first_chunk", "served"]
        assert trace.entry == ENTRY


async def test_a_stream_is_used_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        for _ in range(5):
            assert await link.chunks() == list(ANSWER)
            assert link.remote.idle_streams == 1
        assert link.opened == 1
        async with link.call() as first, link.call() as second:
            await read(first)
            await read(second)
        assert link.opened == link.remote.idle_streams == 2


async def test_only_so_many_streams_are_kept(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        async with AsyncExitStack() as calls:
            for _ in range(MAX_IDLE_STREAMS + 5):
                attempt = await calls.enter_async_context(link.call(bounce_above_s=0.0))
                with pytest.raises(Bounced):
                    await read(attempt)
        await trio.sleep(1)
        assert link.opened == MAX_IDLE_STREAMS + 5
        assert link.remote.idle_streams == MAX_IDLE_STREAMS
        assert len(link.endings) == 5, "the others are closed"
        link.remote.forget(OWNER)
        await trio.sleep(1)
        assert link.remote.idle_streams == 0
        assert len(link.endings) == link.opened


@pytest.mark.parametrize(
    "error",
    [
        Busy("full", retry_after_s=7, code="shutting_down"),
        ContextOverflow("too long", param="prompt"),
        EngineCrashed("died"),
        EngineFault("failed"),
    ],
)
async def test_an_error_arrives_as_it_was(tmp_path: Path, autojump_clock: MockClock, error: MeshError) -> None:
    async with linked(tmp_path) as link:
        link.house.script.answers = [[*ANSWER[:2], error]]
        got: list[Chunk] = []
        async with link.call() as attempt:

            async def all_of_it() -> None:
                async for batch in attempt.batches():
                    got.extend(map(decode_chunk, batch))

            caught = await failing(all_of_it())
        assert got == list(ANSWER[:2])
        assert type(caught) is type(error)
        assert (caught.message, caught.param, caught.code) == (error.message, error.param, error.code)
        assert caught.retry_after_s == error.retry_after_s
        assert link.remote.idle_streams == 1, "the stream is as good as before"
        assert await link.chunks() == list(ANSWER)
        assert link.outcomes == [error.kind, "ok"]


@pytest.mark.parametrize("fields", [{"digest": "mesh1:another"}, {"model": "x"}])
async def test_another_file_of_that_name_is_not_served(
    tmp_path: Path, autojump_clock: MockClock, fields: dict[str, str]
) -> None:
    async with linked(tmp_path) as link:
        head = msgspec.structs.replace(link.head(), **fields)
        async with link.remote.open(OWNER, "owner", head, encode_request(request())) as attempt:
            assert isinstance(await failing(read(attempt)), ModelMissing)
        assert link.house.script.loads == []


async def test_a_call_is_bounced_by_what_the_server_knows(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        async with link.call(output_tokens=100, bounce_above_s=0.001) as attempt:
            with pytest.raises(Bounced) as caught:
                await read(attempt)
        assert caught.value.expected_s > 0.001
        assert link.house.script.loads == []
        assert await link.chunks(output_tokens=100, bounce_above_s=1e9) == list(ANSWER)
        assert await link.chunks(output_tokens=100, bounce_above_s=None) == list(ANSWER)
        assert link.outcomes == ["bounced", "ok", "ok"]
        assert link.opened == 1


async def test_leaving_cancels_at_once_and_keeps_the_stream(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        link.house.script.answers = [[*ANSWER[:2], trio.Event()]]
        async with link.call() as attempt:
            async for batch in attempt.batches():
                if isinstance(decode_chunk(batch[0]), Text):
                    break
            assert link.leased == 1
        await trio.sleep(0.1)
        assert (link.leased, link.house.script.cancelled) == (0, 1)
        assert link.outcomes == ["cancelled"]
        assert link.remote.idle_streams == 1
        assert await link.chunks() == list(ANSWER)
        assert link.opened == 1


@pytest.mark.parametrize("late_s", [0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.01])
async def test_cancelled_at_any_moment_the_slot_is_free(
    tmp_path: Path, autojump_clock: MockClock, late_s: float
) -> None:
    async with linked(tmp_path) as link:
        link.house.script.answers = [[trio.Event()]]
        with trio.move_on_after(late_s) as scope:
            await link.chunks()
        assert scope.cancelled_caught
        await trio.sleep(1)
        assert link.leased == 0
        link.house.script.answers.clear()  # it may never have come so far
        assert await link.chunks() == list(ANSWER)


async def test_an_entry_node_that_dies_frees_its_slots(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link, trio.open_nursery() as nursery:
        link.house.script.answers = [[*ANSWER[:2], trio.Event()]]
        nursery.start_soon(failing, link.chunks())
        await trio.sleep(0.1)
        assert link.leased == 1
        link.network.cut(ENTRY, OWNER)
        await trio.sleep(0.1)
        assert link.leased == 0
        assert link.outcomes == ["cancelled"]
        assert isinstance(link.endings[0], PeerGone)


async def test_a_server_that_dies_is_told_as_such(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        link.house.script.answers = [[*ANSWER[:2], trio.Event()]]
        errors: list[MeshError] = []

        async def call() -> None:
            errors.append(await failing(link.chunks()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(0.1)
            link.network.crash(OWNER)
        [error] = errors
        assert isinstance(error, NodeGone)
        assert "node owner went away" in error.message
        assert link.remote.idle_streams == 0
        assert isinstance(await failing(link.chunks()), NodeGone), "and now it cannot be reached"


async def test_an_idle_stream_that_has_died_is_replaced(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        async with link.call() as first, link.call() as second:
            await read(first)
            await read(second)
        assert link.remote.idle_streams == 2
        link.network.cut(ENTRY, OWNER)
        await link.entry.dial(link.owner.addresses(), OWNER, timeout_s=5)
        assert await link.chunks() == list(ANSWER), "nobody notices"
        assert link.remote.idle_streams == 1


async def test_a_slow_reader_pauses_its_own_call_alone(tmp_path: Path, autojump_clock: MockClock) -> None:
    said: list[int] = []

    def endless() -> Iterable[Chunk]:
        yield Accepted(1)
        for number in range(20 * CREDIT):
            said.append(number)
            yield Text(0, "x", (number,))
        yield Finished(0, "stop")

    async with linked(tmp_path) as link:
        link.house.script.answers = [endless()]
        async with link.call() as attempt:
            batches = attempt.batches()
            await anext(batches)
            await trio.sleep(60)
            paused = len(said)
            assert paused <= CREDIT + 1, "the server waits"
            assert await link.chunks() == list(ANSWER), "others do not"
            got = [decode_chunk(data) async for batch in batches for data in batch]
        assert len(said) == 20 * CREDIT
        assert [chunk.tokens[0] for chunk in got if isinstance(chunk, Text)] == said, "whole and in order"


async def test_cancelled_while_the_window_is_closed(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The server is in the middle of a message: nothing can follow on that stream, and everything on a new one."""

    def large() -> Iterable[Chunk]:
        yield Accepted(1)
        for number in range(CREDIT - 10):
            yield Text(0, "x" * 1000, (number,))

    async with linked(tmp_path, window_bytes=4096) as link:
        link.house.script.answers = [[*large(), Finished(0, "stop")]]
        framed = await link.raw()
        await framed.send(Kind.CALL, link.body())
        await trio.sleep(5)  # and nothing is read
        assert link.leased == 1
        await framed.send(Kind.CANCEL)
        await trio.sleep(5)
        assert link.leased == 0
        assert link.house.script.cancelled == 1
        [ending] = link.endings
        assert "in the middle of a message" in str(ending)
        assert await link.chunks() == list(ANSWER)


async def test_leaving_an_answer_that_was_not_read(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Whether the stream can be kept or not, the slot is free and the next call gets its own answer."""
    async with linked(tmp_path, window_bytes=4096) as link:
        for _ in range(5):
            link.house.script.answers = [[Accepted(1), *(Text(0, "x" * 1000, (at,)) for at in range(200))]]
            with trio.move_on_after(5):
                async with link.call() as attempt:
                    await anext(attempt.batches())
                    await trio.sleep_forever()
            await trio.sleep(10)
            assert link.leased == 0
            assert await link.chunks() == list(ANSWER)


async def test_a_call_right_behind_the_end_is_not_lost(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It may come in one piece with a credit or a cancel that crossed the end of the call before."""
    async with linked(tmp_path) as link:
        framed = await link.raw()
        call = encode(Kind.CALL, link.body())
        for late in (b"", encode(Kind.CREDIT, infer.encode(5)), encode(Kind.CANCEL), encode(Kind.CANCEL) * 3):
            await framed.send_raw(late + call)
            kinds: list[int] = []
            while not kinds or kinds[-1] == Kind.CHUNKS:
                message = await framed.receive()
                assert message is not None
                kinds.append(message.kind)
            assert kinds[-1] == Kind.DONE
        assert link.outcomes == ["ok"] * 4
        assert link.opened == 1


async def test_a_cancel_that_comes_with_its_call(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        link.house.script.answers = [[trio.Event()]]
        framed = await link.raw()
        await framed.send_raw(encode(Kind.CALL, link.body()) + encode(Kind.CANCEL))
        message = await framed.receive()
        assert message is not None
        assert message.kind == Kind.FAILED
        assert "cancelled" in infer.decode_failure(message.body).message


def spoken_badly(link: Link) -> dict[str, bytes]:
    call = encode(Kind.CALL, link.body())
    return {
        "no frame": b"GET / HTTP/1.1\r\n\r\n",
        "4 GB": HEADER.pack(0xFFFFFFFF, Kind.CALL),
        "an unknown kind": encode(99),
        "a kind of the server's": encode(Kind.DONE),
        "no call": encode(Kind.CALL, b"\xc1"),
        "an empty call": encode(Kind.CALL),
        "a weight of none": encode(Kind.CALL, call[HEADER.size :].replace(b"\xa5model", b"\xa5modem")),
        "no credit": call + encode(Kind.CREDIT, b"\xc1"),
        "too much credit": call + encode(Kind.CREDIT, infer.encode(CREDIT + 1)),
        "negative credit": call + encode(Kind.CREDIT, infer.encode(-1)),
        "a call within a call": call + call,
        "garbage within a call": call + b"\x00" * 4 + b"\xff",
        "half a call": call[:-1],
        "half a header": call[:3],
    }


BAD = [
    "no frame",
    "4 GB",
    "an unknown kind",
    "a kind of the server's",
    "no call",
    "an empty call",
    "a weight of none",
    "no credit",
    "too much credit",
    "negative credit",
    "a call within a call",
    "garbage within a call",
    "half a call",
    "half a header",
]


@pytest.mark.parametrize("name", BAD)
async def test_what_is_none_of_ours_ends_its_stream_alone(tmp_path: Path, autojump_clock: MockClock, name: str) -> None:
    async with linked(tmp_path) as link:
        bad = spoken_badly(link)
        assert list(bad) == BAD
        link.house.script.answers = [[trio.Event()]] if "credit" in name or "within" in name else []
        framed = await link.raw()
        await framed.send_raw(bad[name])
        await framed.stream.close_write()
        await trio.sleep(1)
        [ending] = link.endings
        assert isinstance(ending, PeerGone if "half" in name else PeerMisbehaved)
        assert link.leased == 0
        link.house.script.answers.clear()  # it may never have come so far
        assert await link.chunks() == list(ANSWER)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), inside=st.booleans(), length=st.none() | st.integers(0, 2**32 - 1))
def test_random_bytes_end_in_a_peer_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, inside: bool, length: int | None
) -> None:
    async def main() -> None:
        async with linked(tmp_path_factory.mktemp("random")) as link:
            link.house.script.answers = [[trio.Event()]]
            framed = await link.raw()
            start = encode(Kind.CALL, link.body()) if inside else b""
            await framed.send_raw(start + (b"" if length is None else HEADER.pack(length, Kind.CREDIT)) + data)
            await framed.stream.close_write()
            await trio.sleep(1)
            assert len(link.endings) == 1
            assert link.endings[0] is None or isinstance(link.endings[0], PeerError)
            assert link.leased == 0

    trio.run(main, clock=MockClock(autojump_threshold=0))


def answers_badly() -> dict[str, list[bytes]]:
    chunks = encode(Kind.CHUNKS, infer.encode([encode_chunk(ANSWER[0])]))
    return {
        "nothing": [],
        "no frame": [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
        "a kind of the entry's": [chunks, encode(Kind.CALL)],
        "no chunks": [encode(Kind.CHUNKS, b"\xc1")],
        "no usage": [chunks, encode(Kind.DONE, b"\xc1")],
        "no failure": [encode(Kind.FAILED, infer.encode([1]))],
        "no time": [encode(Kind.BOUNCED, infer.encode("soon"))],
        "half a message": [chunks + chunks[:-1]],
        "no end": [chunks],
    }


@pytest.mark.parametrize("name", list(answers_badly()))
async def test_a_server_that_answers_badly_is_gone(tmp_path: Path, autojump_clock: MockClock, name: str) -> None:
    async with linked(tmp_path) as link:

        async def handle(stream: Stream) -> None:
            await stream.receive()
            for data in answers_badly()[name]:
                await stream.send(data)
            await stream.close_write()

        link.owner.handle(PROTOCOL, handle)
        error = await failing(link.chunks())
        assert isinstance(error, NodeGone)
        assert link.remote.idle_streams == 0


async def test_an_unknown_kind_of_error_is_an_error(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A newer node may have kinds that this one does not know."""
    async with linked(tmp_path) as link:

        async def handle(stream: Stream) -> None:
            await stream.receive()
            await stream.send(encode(Kind.FAILED, infer.encode({"kind": "novel", "message": "New.", "more": 1})))
            await stream.receive()

        link.owner.handle(PROTOCOL, handle)
        error = await failing(link.chunks())
        assert type(error) is MeshError
        assert error.message == "New."


@pytest.mark.parametrize("what", ["silent", "deaf", "chatty"])
async def test_a_server_that_never_ends_a_cancelled_call_loses_its_stream(
    tmp_path: Path, autojump_clock: MockClock, what: str
) -> None:
    async with linked(tmp_path, window_bytes=4096) as link:

        async def handle(stream: Stream) -> None:
            if what != "deaf":
                await stream.receive()
            while what == "chatty":
                await stream.send(encode(Kind.CHUNKS, infer.encode([encode_chunk(ANSWER[1])])))
                await trio.sleep(0.1)
            await trio.sleep_forever()

        link.owner.handle(PROTOCOL, handle)
        with trio.move_on_after(1):
            await link.chunks()
        left_at = trio.current_time()
        assert left_at == pytest.approx(1, abs=1.1), "the client does not wait for it"
        await trio.sleep(10)
        assert link.remote.idle_streams == 0
        assert not link.entry.connections[OWNER][0].streams(link.entry), "and nothing is left of it"


async def test_a_request_of_many_pieces(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Images are larger than a frame."""
    async with linked(tmp_path) as link:
        large = msgspec.structs.replace(request(), prompt="x" * (3 << 20))
        async with link.remote.open(OWNER, "owner", link.head(), encode_request(large)) as attempt:
            assert await read(attempt) == list(ANSWER)
        assert link.house.script.requests == [large]


async def test_many_calls_at_once_keep_to_themselves(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with linked(tmp_path) as link:
        link.house.script.otherwise = spoken
        answers: dict[int, list[Chunk]] = {}
        usages: dict[int, Usage] = {}

        async def one(number: int) -> None:
            asked = encode_request(request(first_choice=number))
            async with link.remote.open(OWNER, "owner", link.head(), asked) as attempt:
                answers[number] = await read(attempt)
                usages[number] = attempt.usage

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(one, number)
        assert answers == {number: spoken(request(first_choice=number)) for number in range(4)}


async def test_a_client_of_another_node_has_its_own_turn(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Fairness is by client and entry node: one client's key may be known at two of them."""
    async with linked(tmp_path) as link:
        clients: list[str] = []
        lease: Callable[..., Any] = link.house.pool.lease

        def noting(*args: Any, **fields: Any) -> Any:
            clients.append(fields["client"])
            return lease(*args, **fields)

        link.house.pool.lease = noting  # type: ignore[method-assign]
        await link.chunks()
        assert clients == [f"{ENTRY}/c"]
