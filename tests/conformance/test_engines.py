"""What every engine promises, tried on every engine through a real worker process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from backends.engine import Backend
from backends.process import LogRing, Worker, open_worker
from backends.types import (
    CallerError,
    Capability,
    ContextOverflow,
    DetokenizedText,
    DetokenizeRequest,
    Embedding,
    EmbeddingRequest,
    LoadSpec,
    Text,
    TokenIds,
    TokenizeRequest,
    encode_request,
)
from tests.conformance.engines import ask, ask_all, chat, complete, engines

CASES = list(engines())


@pytest.fixture(params=CASES, ids=[name for name, _, _ in CASES])
async def worker(request: pytest.FixtureRequest) -> AsyncIterator[Worker]:
    _, backend, load = request.param
    assert isinstance(load, LoadSpec)
    async with open_worker(_backend(backend), load, log=LogRing()) as opened:
        yield opened


def _backend(value: object) -> Backend:
    assert hasattr(value, "needs")
    return value  # type: ignore[return-value]


async def test_needs_announce_what_the_engine_has() -> None:
    for _, backend, load in CASES:
        needs = backend.needs(load)
        async with open_worker(backend, load, log=LogRing()) as opened:
            assert (needs.slots, needs.context_tokens) == (opened.info.slots, opened.info.context_tokens)
            assert needs.capabilities == opened.info.capabilities


async def test_a_call_is_accepted_then_text_then_finished(worker: Worker) -> None:
    answer = await ask(worker, chat("Hello", max_tokens=8))
    assert answer.accepted.prompt_tokens == answer.usage.prompt_tokens > 0
    assert len(answer.tokens()) == answer.usage.completion_tokens == 8
    assert answer.finished().reason == "length"
    assert answer.text()
    assert answer.chunks[-1] == answer.finished()


async def test_the_same_alone_and_in_company(worker: Worker) -> None:
    requests = [chat(f"Tell me about number {number} " + "and more " * (7 * number)) for number in range(7)]
    alone = [await ask(worker, request) for request in requests]
    together = await ask_all(worker, list(requests))
    assert [answer.text() for answer in together] == [answer.text() for answer in alone]


async def test_a_prefix_hit_changes_nothing(worker: Worker) -> None:
    request = complete("The weather in the mountains is often " * 12)
    first, second = await ask(worker, request), await ask(worker, request)
    assert second.usage.cached_tokens > first.usage.cached_tokens == 0
    assert second.text() == first.text()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_resume_at_any_token(worker: Worker, temperature: float) -> None:
    request = chat("Tell me a story", max_tokens=12, temperature=temperature, ignore_eos=True)
    whole = await ask(worker, request)
    for cut in range(1, 13):  # 12: all is said but that it is all
        head = tuple(whole.tokens()[:cut])
        rest = await ask(
            worker, chat("Tell me a story", max_tokens=12, temperature=temperature, ignore_eos=True, resume=head)
        )
        assert rest.tokens() == whole.tokens()[cut:]
        assert whole.text().endswith(rest.text())
        assert rest.usage.completion_tokens == 12 - cut


async def test_resume_in_the_middle_of_a_stop_string(worker: Worker) -> None:
    free = await ask(worker, chat("Count", max_tokens=16))
    stop = free.text()[8:14]
    whole = await ask(worker, chat("Count", max_tokens=16, stop=(stop,)))
    assert whole.text() == free.text()[: free.text().index(stop)]
    assert whole.finished().stop == stop
    for cut in range(1, len(whole.tokens()) + 1):
        rest = await ask(worker, chat("Count", max_tokens=16, stop=(stop,), resume=tuple(whole.tokens()[:cut])))
        assert rest.tokens() == whole.tokens()[cut:]
        assert whole.text().endswith(rest.text())
        assert rest.finished() == whole.finished()


async def test_choices_have_their_own_index(worker: Worker) -> None:
    answer = await ask(worker, chat("Hello", max_tokens=5, temperature=1.0, n=6))  # more than there are slots
    assert [len(answer.tokens(index)) for index in range(6)] == [5] * 6
    assert {answer.finished(index).reason for index in range(6)} == {"length"}
    assert answer.usage.completion_tokens == 30


async def test_logprobs(worker: Worker) -> None:
    answer = await ask(worker, chat("Hello", max_tokens=4, logprobs=3))
    logprobs = [item for chunk in answer.chunks if isinstance(chunk, Text) for item in chunk.logprobs]
    assert [item.token for item in logprobs] == answer.tokens()
    assert all(len(item.top) == 3 and item.logprob is not None and item.logprob <= 0 for item in logprobs)


async def test_echo(worker: Worker) -> None:
    plain = await ask(worker, complete("The sea", max_tokens=4))
    echo = await ask(worker, complete("The sea", max_tokens=4, echo=True, logprobs=0))
    assert echo.text() == "The sea" + plain.text()
    scored = await ask(worker, complete("The sea", max_tokens=0, echo=True, logprobs=1))
    [chunk] = [chunk for chunk in scored.chunks if isinstance(chunk, Text)]
    assert chunk.text == "The sea"
    assert chunk.logprobs[0].logprob is None
    assert all(item.logprob is not None for item in chunk.logprobs[1:])


async def test_tokens_round_trip(worker: Worker) -> None:
    text = "Grüße aus Köln, 東京 and 🙂!"
    [ids] = (await ask(worker, TokenizeRequest(model="m", content=text))).chunks
    assert isinstance(ids, TokenIds)
    [back] = (await ask(worker, DetokenizeRequest(model="m", tokens=ids.tokens))).chunks
    assert back == DetokenizedText(text)


async def test_embeddings(worker: Worker) -> None:
    assert Capability.EMBEDDING in worker.info.capabilities
    answer = await ask(worker, EmbeddingRequest(model="m", inputs=("one", "two", "one")))
    vectors = {chunk.index: chunk.vector for chunk in answer.chunks if isinstance(chunk, Embedding)}
    assert vectors.keys() == {0, 1, 2}
    assert {len(vector) for vector in vectors.values()} == {4 * worker.info.embedding_size}
    assert vectors[0] == vectors[2] != vectors[1]


async def test_a_prompt_over_the_context_is_the_callers_fault(worker: Worker) -> None:
    with pytest.raises(ContextOverflow):
        await ask(worker, complete("word " * 2000))
    answer = await ask(worker, complete("word", max_tokens=None, ignore_eos=True))  # until the context is full
    assert answer.finished().reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == worker.info.context_tokens


async def test_foreign_token_ids_are_the_callers_fault(worker: Worker) -> None:
    for request in (
        DetokenizeRequest(model="m", tokens=(10**9,)),
        chat("Hello", resume=(-1,)),
        EmbeddingRequest(model="m", inputs=((10**9,),)),
    ):
        with pytest.raises(CallerError):
            await ask(worker, request)


async def test_a_cancelled_call_gives_its_slot_back(worker: Worker) -> None:
    endless = encode_request(chat("Hello", max_tokens=None, ignore_eos=True))
    for _ in range(3 * worker.info.slots):
        async with worker.call(endless) as call:
            async for batch in call.batches():
                if batch:
                    break
    answer = await ask(worker, chat("Hello", max_tokens=4))
    assert len(answer.tokens()) == 4


async def test_a_slow_reader_pauses_itself_alone(worker: Worker) -> None:
    """One call is never read; with its credit gone it stands still, and the others run to their ends."""
    with trio.fail_after(120):
        async with worker.call(encode_request(chat("Hello", max_tokens=None, ignore_eos=True))):
            for _ in range(3):
                answer = await ask(worker, chat("Hello there", max_tokens=150, ignore_eos=True))
                assert len(answer.tokens()) == 150
