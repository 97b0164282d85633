"""Wherever a call is cut, and however often, the client gets the chunks of an undisturbed one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.types import (
    Accepted,
    ChatRequest,
    Chunk,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    EngineFault,
    Finished,
    Generation,
    Message,
    RankRequest,
    Request,
    Text,
    TokenIds,
    TokenizeRequest,
)
from node.resume import Progress, StrangeChunk
from tests.node.doubles import by_choice, cost, spoken

CHAT = ChatRequest(model="m", messages=(Message(role="user", content="hi"),))


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest(model="m", prompt="the prompt ", **fields)


def answered(request: Request, cuts: list[int]) -> tuple[Progress, list[Chunk]]:
    """Attempts that die after so many chunks, then attempts that live, until all is said."""
    progress = Progress(request)
    got: list[Chunk] = []
    for cut in cuts:
        rest = spoken(progress.rest())
        got += progress.take(rest[:cut])
        if cut >= len(rest):
            progress.ended(cost(rest))
        if isinstance(request, Generation) and progress.complete:
            return progress, got
    while True:
        rest = spoken(progress.rest())
        got += progress.take(rest)
        progress.ended(cost(rest))
        if progress.complete:
            return progress, got


requests = st.one_of(
    st.builds(
        completion,
        n=st.integers(1, 4),
        echo=st.booleans(),
        max_tokens=st.none() | st.integers(0, 6),
        first_choice=st.integers(0, 2),
    ),
    st.builds(lambda n: msgspec.structs.replace(CHAT, n=n), st.integers(1, 3)),
)


@given(requests, st.lists(st.integers(0, 24), max_size=6))
def test_any_cuts_give_the_undisturbed_chunks(request: ChatRequest | CompletionRequest, cuts: list[int]) -> None:
    progress, got = answered(request, cuts)
    undisturbed = spoken(request)
    assert by_choice(got) == by_choice(undisturbed)
    if request.n == 1:
        assert got == undisturbed
    assert progress.usage.completion_tokens == cost(undisturbed).completion_tokens
    assert progress.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    "request_",
    [EmbeddingRequest(model="m", inputs=("a", "b", "c")), RankRequest(model="m", query="q", documents=("a", "b", "c"))],
)
@given(cuts=st.lists(st.integers(0, 5), max_size=5))
def test_each_embedding_or_score_comes_once(request_: Request, cuts: list[int]) -> None:
    request = request_
    progress, got = answered(request, [cut for cut in cuts if cut < 3])
    assert got == spoken(request)
    assert progress.usage == cost(spoken(request))


@pytest.mark.parametrize(
    "request_", [TokenizeRequest(model="m", content="x"), DetokenizeRequest(model="m", tokens=(1,))]
)
def test_an_answer_of_one_chunk_comes_once(request_: Request) -> None:
    progress = Progress(request_)
    assert progress.take(spoken(request_)) == spoken(request_)
    assert progress.answered
    assert progress.take(spoken(progress.rest())) == [], "its node died before the end of the call"


def test_what_is_resumed_is_asked_for_choice_by_choice() -> None:
    request = completion(n=3, salt=7, resume=(), max_tokens=9)
    progress = Progress(request)
    assert progress.rest() is request
    progress.take([Accepted(3), Text(0, "", (0,)), Text(1, "", (1000,)), Finished(0, "stop")])
    rest = progress.rest()
    assert isinstance(rest, CompletionRequest)
    assert (rest.n, rest.first_choice, rest.resume, rest.salt, rest.max_tokens) == (1, 1, (1000,), 7, 9)
    assert progress.take([Accepted(3), Text(0, "x", (1001,))]) == [Text(1, "x", (1001,))]
    progress.take([Finished(0, "stop")])
    rest = progress.rest()
    assert isinstance(rest, CompletionRequest)
    assert (rest.first_choice, rest.resume) == (2, ())


def test_a_request_that_resumes_itself_is_resumed_behind_that() -> None:
    progress = Progress(completion(resume=(0, 1)))
    progress.take([Accepted(3), Text(0, "", (2,))])
    rest = progress.rest()
    assert isinstance(rest, CompletionRequest)
    assert rest.resume == (0, 1, 2)


def test_an_acceptance_binds_but_answers_nothing() -> None:
    progress = Progress(CHAT)
    assert not progress.accepted
    progress.take([Accepted(3)])
    assert progress.accepted
    assert not progress.answered
    assert progress.rest() is CHAT


@pytest.mark.parametrize("index", [-1, 2, 1000])
def test_a_choice_that_nobody_asked_for_is_refused_with_all_that_came_with_it(index: int) -> None:
    progress = Progress(completion(n=2))
    for strange in (Text(index, "x", (9,)), Finished(index, "stop")):
        with pytest.raises(StrangeChunk):
            progress.take([Text(0, "x", (0,)), strange])
    assert progress.tokens == 0, "none of it has reached the client"


def test_a_resumed_attempt_has_one_choice() -> None:
    progress = Progress(completion(n=2))
    progress.take([Text(0, "x", (0,))])
    progress.rest()
    with pytest.raises(StrangeChunk):
        progress.take([Text(1, "x", (1000,))])


def test_an_end_before_the_answers_is_the_engines_fault() -> None:
    progress = Progress(completion(n=2))
    progress.take([Accepted(3), Text(0, "x", (0,)), Finished(0, "stop")])
    with pytest.raises(EngineFault, match="before its answer was complete"):
        progress.ended(cost([]))


def test_chunks_that_are_neither_are_passed_on() -> None:
    assert Progress(TokenizeRequest(model="m", content="")).take([TokenIds(())]) == [TokenIds(())]


def test_lost_between_the_last_chunk_and_the_end() -> None:
    progress = Progress(CompletionRequest(model="m", prompt="hi"))
    assert not progress.whole
    progress.take([Accepted(3), Text(0, "a", (1,)), Text(0, "b", (2,)), Finished(0, "stop")])
    assert progress.whole  # nothing is left to ask for, and what is known of the cost is told
    assert (progress.usage.prompt_tokens, progress.usage.completion_tokens) == (3, 2)
