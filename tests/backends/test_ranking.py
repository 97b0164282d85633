"""Models that rank, with one of random weights: what it prefers means nothing, but it is the model's own score."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends import llama_cpp
from backends.process import LogRing, Worker, open_worker
from backends.types import (
    Capability,
    CompletionRequest,
    ContextOverflow,
    EmbeddingRequest,
    LoadSpec,
    RankRequest,
    Request,
    Score,
    TokenizeRequest,
    Unsupported,
)
from tests.conformance.engines import Answer, ask, ask_all
from tests.support.models import smollm2
from tests.support.nodes import running_node, write_model
from tests.support.rankmodels import CONTEXT_TOKENS, write_ranker

DOCUMENTS = ("a pear", "two apples", "the sea", "x", "a pear and a pear", "apples", "q", "w", "e", "r", "t", "y")
NOISE = 5e-3  # kernels round otherwise in another batch


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Worker]:
    async with open_worker(llama_cpp.backend, LoadSpec(name="m", path=str(path), threads=1), log=LogRing()) as worker:
        yield worker


def rank(query: str, *documents: str) -> RankRequest:
    return RankRequest(model="m", query=query, documents=documents)


def scores(answer: Answer) -> list[float]:
    found = {chunk.index: chunk.score for chunk in answer.chunks if isinstance(chunk, Score)}
    assert sorted(found) == list(range(len(answer.chunks)))
    return [found[number] for number in sorted(found)]


async def test_each_document_has_its_score_wherever_it_stands(tmp_path: Path) -> None:
    async with opened(write_ranker(tmp_path / "ranker.gguf")) as worker:
        answer = await ask(worker, rank("a fruit", *DOCUMENTS))
        together = scores(answer)
        alone = [scores(await ask(worker, rank("a fruit", document)))[0] for document in DOCUMENTS]
        backwards = scores(await ask(worker, rank("a fruit", *reversed(DOCUMENTS))))
        other = scores(await ask(worker, rank("the water", *DOCUMENTS)))
        calls: list[Request] = [rank("a fruit", *DOCUMENTS), rank("the water", *DOCUMENTS)]
        side_by_side = [scores(one) for one in await ask_all(worker, calls)]
    assert len(set(together)) == len(DOCUMENTS)
    assert together == pytest.approx(alone, abs=NOISE)
    assert together == pytest.approx(backwards[::-1], abs=NOISE)
    assert together != pytest.approx(other, abs=0.05)
    assert side_by_side[0] == pytest.approx(together, abs=NOISE)
    assert side_by_side[1] == pytest.approx(other, abs=NOISE)
    # [CLS] query [SEP] document [SEP]: three marks for each pair beside the letters of both.
    letters = sum(len((document + "a fruit").replace(" ", "")) for document in DOCUMENTS)
    assert answer.usage.prompt_tokens == letters + 3 * len(DOCUMENTS)


async def test_the_score_is_what_the_head_says(tmp_path: Path) -> None:
    async with opened(write_ranker(tmp_path / "ranker.gguf", constant=-2.5)) as worker:
        assert scores(await ask(worker, rank("a", "b", "c"))) == [-2.5, -2.5]  # neither normalised nor squeezed


async def test_a_models_own_template_comes_first(tmp_path: Path) -> None:
    template = "{document} is about {query}"
    async with opened(write_ranker(tmp_path / "plain.gguf")) as worker:
        plain = scores(await ask(worker, rank("a", "b")))
        tokens = await ask(worker, TokenizeRequest(model="m", content="b is about a"))
        assert tokens.chunks
    async with opened(write_ranker(tmp_path / "own.gguf", template=template)) as worker:
        own = await ask(worker, rank("a", "b"))
        nested = await ask(worker, rank("{document}", "b"))
        assert scores(own) != pytest.approx(plain)
        # What is put in for the query is not filled in again.
        assert own.usage.prompt_tokens < nested.usage.prompt_tokens


async def test_what_it_cannot_do(tmp_path: Path) -> None:
    path = write_ranker(tmp_path / "ranker.gguf")
    assert llama_cpp.backend.needs(LoadSpec(name="m", path=str(path))).capabilities == (
        Capability.RERANK,
        Capability.TOKENIZE,
    )
    refused: list[tuple[Any, type[Exception], str]] = [
        (EmbeddingRequest(model="m", inputs=("a",)), Unsupported, "does not embed"),
        (CompletionRequest(model="m", prompt="a"), Unsupported, "does not generate"),
        (rank("a", "b", "c" * CONTEXT_TOKENS), ContextOverflow, "takes at most"),
    ]
    async with opened(path) as worker:
        for request, error, says in refused:
            with pytest.raises(error, match=says):
                await ask(worker, request)
        assert len(scores(await ask(worker, rank("a", "b")))) == 1


async def test_who_does_not_rank_says_so(tmp_path: Path) -> None:
    for path in (smollm2(), write_ranker(tmp_path / "embeds.gguf", pooling=1)):
        async with opened(path) as worker:
            with pytest.raises(Unsupported, match="does not rank"):
                await ask(worker, rank("a", "b"))


def test_a_node_ranks_by_it(tmp_path: Path) -> None:
    write_model(tmp_path / "data", "ranker", parameters={"model": str(write_ranker(tmp_path / "ranker.gguf"))})
    body = {"query": "a fruit", "documents": list(DOCUMENTS), "top_n": 3}
    with running_node(tmp_path / "data") as node, node.http as client:
        answer = client.post("/v1/rerank", json=body).raise_for_status().json()
        refused = client.post("/v1/embeddings", json={"model": "ranker", "input": "a"})
    assert (answer["model"], answer["method"], len(answer["results"])) == ("ranker", "rank_pooling", 3)
    found = [result["relevance_score"] for result in answer["results"]]
    assert found == sorted(found, reverse=True)
    assert refused.status_code == 400
