"""The smaller endpoints: best_of, suffix, edits, rerank, moderations, token figures, and all their paths."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from backends.types import (
    Accepted,
    CallerError,
    Capability,
    ChatRequest,
    Chunk,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
    Finished,
    RankRequest,
    Request,
    Score,
    Text,
    TokenLogprob,
)
from tests.api.double import MODEL
from tests.api.serving import Served
from tests.support.images import PNG, data_url


def test_best_of_picks_what_the_model_found_likeliest(http: httpx.Client, double: Served) -> None:
    async def script(request: Request) -> AsyncIterator[Sequence[Chunk]]:
        assert isinstance(request, CompletionRequest)
        assert (request.n, request.logprobs) == (3, 0)
        yield [Accepted(1)]
        # The longest answer is the least likely in all, and the likeliest token by token.
        for index, logprobs in enumerate([[-0.5], [-0.3, -0.3], [-2.0]]):
            yield [Text(index, "echo")]
            for number, logprob in enumerate(logprobs):
                yield [Text(index, str(index), (number,), (TokenLogprob(number, b"x", logprob),))]
            yield [Finished(index, "stop")]

    double.dispatcher.script = script
    body = {"model": MODEL, "prompt": "x", "n": 2, "best_of": 3}
    choices = http.post("/v1/completions", json=body).json()["choices"]
    assert [choice["text"] for choice in choices] == ["echo11", "echo0"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert [choice["logprobs"] for choice in choices] == [None, None]  # nobody asked for them


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 128, "prompt": ["x"] * 17}, "best_of"),
        ({"suffix": "x", "echo": True}, "suffix"),
    ],
)
def test_what_does_not_go_together(http: httpx.Client, double: Served, extra: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "x", **extra})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_suffix_is_the_engines_to_refuse(http: httpx.Client, double: Served) -> None:
    assert http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "suffix": "y"}).status_code == 200
    request = double.dispatcher.asked[-1]
    assert isinstance(request, CompletionRequest)
    assert request.suffix == "y"


@pytest.mark.parametrize("path", ["/v1/edits", "/edits", f"/v1/engines/{MODEL}/edits"])
def test_edits(http: httpx.Client, double: Served, path: str) -> None:
    body = {"instruction": "shout", "input": "hello", "n": 2, "temperature": 0}
    answer = http.post(path, json=body).json()
    assert answer["object"] == "edit"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(choice["text"] for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 128
    request = double.dispatcher.asked[-1]
    assert isinstance(request, ChatRequest)
    assert [message.role for message in request.messages] == ["system", "user"]
    assert request.messages[1].content == "shout\n\nhello"


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_rerank(http: httpx.Client, double: Served, path: str) -> None:
    double.node.capabilities = (Capability.EMBEDDING,)
    documents: list[Any] = ["red apples", {"text": "green pears and more"}, "the red apples"]
    answer = http.post(path, json={"model": MODEL, "query": "red apples", "documents": documents}).json()
    assert answer["method"] == "embedding_cosine"
    assert [result["index"] for result in answer["results"]] == [0, 2, 1]
    first = answer["results"][0]
    assert first["document"] == {"text": "red apples"}
    assert math.isclose(first["relevance_score"], 1.0, abs_tol=1e-5)
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    short = {"model": MODEL, "query": "red", "documents": documents, "top_n": 1, "return_documents": False}
    [only] = http.post(path, json=short).json()["results"]
    assert set(only) == {"index", "relevance_score"}
    assert len(http.post(path, json={**short, "top_n": 9}).json()["results"]) == 3


def test_rerank_names_its_own_field(http: httpx.Client, double: Served) -> None:
    async def script(_: Request) -> AsyncIterator[Sequence[Chunk]]:
        yield []
        raise CallerError("An input to embed is empty.", param="input")

    double.dispatcher.script = script
    double.node.capabilities = (Capability.EMBEDDING,)
    answer = http.post("/rerank", json={"model": MODEL, "query": "a", "documents": ["b"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents")


def test_a_ranking_model_says_itself(http: httpx.Client, double: Served) -> None:
    body = {"query": "a", "documents": ["bb", {"text": "cccc"}, "d"]}
    answer = http.post("/rerank", json=body | {"model": MODEL}).json()
    assert double.dispatcher.asked[-1] == RankRequest(model=MODEL, query="a", documents=("bb", "cccc", "d"))
    assert answer["method"] == "rank_pooling"
    assert [(one["index"], one["relevance_score"]) for one in answer["results"]] == [(1, 4.0), (0, 2.0), (2, 1.0)]
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    assert http.post("/rerank", json=body).json()["model"] == MODEL  # unnamed: the one that ranks


@pytest.mark.parametrize("capability", [Capability.RERANK, Capability.EMBEDDING])
def test_an_answer_with_too_few_scores(http: httpx.Client, double: Served, capability: Capability) -> None:
    async def script(_: Request) -> AsyncIterator[Sequence[Chunk]]:
        yield [Score(0, 1.0)] if capability is Capability.RERANK else [Embedding(0, bytes(8))]

    double.dispatcher.script = script
    double.node.capabilities = (capability,)
    assert http.post("/rerank", json={"model": MODEL, "query": "a", "documents": ["b", "c"]}).status_code == 500


@pytest.mark.parametrize(("model", "status"), [(None, 404), ("nobody", 404), (MODEL, 400)])
def test_moderations_have_no_model(http: httpx.Client, double: Served, model: str | None, status: int) -> None:
    for path in ("/v1/moderations", "/moderations"):
        answer = http.post(path, json={"input": "x", "model": model})
        assert answer.status_code == status
        assert answer.json()["error"]["param"] == "model"


def test_token_figures(http: httpx.Client, double: Served) -> None:
    for path in ("/v1/tokenMetrics", "/tokenMetrics"):
        assert http.get(path).json() == {"object": "list", "data": []}
        assert http.get(path, params={"model": "nobody"}).status_code == 404


def test_a_conversation_is_one_input_to_embed(http: httpx.Client, double: Served) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    answer = http.post("/v1/embeddings", json={"model": MODEL, "messages": messages})
    assert len(answer.json()["data"]) == 1
    assert double.dispatcher.asked[-1] == EmbeddingRequest(model=MODEL, inputs=("a\nb",))
    image = {"type": "image_url", "image_url": {"url": data_url(PNG)}}
    refused = http.post("/v1/embeddings", json={"model": MODEL, "messages": [{"role": "user", "content": [image]}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[0].content")


def test_the_model_in_the_path(http: httpx.Client, double: Served) -> None:
    message = {"role": "user", "content": "x"}
    for path, body in (
        ("chat/completions", {"messages": [message]}),
        ("completions", {"prompt": "x"}),
        ("embeddings", {"input": "x"}),
    ):
        assert http.post(f"/v1/engines/{MODEL}/{path}", json=body).status_code == 200
        assert http.post(f"/v1/engines/nobody/{path}", json=body).status_code == 404
        assert http.post(f"/{path}", json=body).status_code == 200
