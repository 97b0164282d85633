"""POST /v1/rerank: Jina's endpoint, as LocalAI serves it. Jina AI's API reference, "Rerank".

A model that was trained to rank gives each document a score, on a scale of its own. With a model that embeds, the order
is that of how near the documents' embeddings are to the query's. The answer says which, in `method`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator
from quart import Blueprint, Response

from api import calls
from api.openai.embeddings import MAX_INPUTS, floats
from api.parse import Body, parse, wrong
from api.services import Services, json_response
from backends.types import (
    CallerError,
    Capability,
    Chunk,
    Embedding,
    EmbeddingRequest,
    EngineFault,
    RankRequest,
    Request,
    Score,
)

PATHS = ("/v1/rerank", "/rerank")


class RerankBody(Body):
    """The body of the request."""

    model: Annotated[str, Field(max_length=512)] | None = None
    query: Annotated[str, Field(min_length=1)]
    documents: Any
    top_n: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    return_documents: bool | None = None

    @field_validator("documents")
    @classmethod
    def _texts(cls, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise wrong("expected a list of documents", kind="invalid_type")
        if not 0 < len(value) < MAX_INPUTS:
            raise wrong(f"expected 1 to {MAX_INPUTS - 1} documents, got {len(value)}")
        texts = []
        for number, item in enumerate(value):
            text = item.get("text") if isinstance(item, dict) else item
            path = (number, "text") if isinstance(item, dict) else (number,)
            if not isinstance(text, str):
                raise wrong("expected a string", *path, kind="invalid_type")
            if not text:
                raise wrong("must not be empty", *path)
            texts.append(text)
        return tuple(texts)


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("openai_rerank", __name__)

    async def rerank() -> Response:
        """Order documents by how well they answer a query: by a ranking model's scores, or by embeddings."""
        body = await parse(RerankBody)
        ranker = services.node.default_model(Capability.RERANK)
        model = services.model(body.model, Capability.RERANK if ranker else Capability.EMBEDDING)
        card = services.card(model)
        ranks = card is not None and Capability.RERANK in card.capabilities
        request: Request = EmbeddingRequest(model=model, inputs=(body.query, *body.documents))
        if ranks:
            request = RankRequest(model=model, query=body.query, documents=body.documents)
        try:
            chunks, usage = await calls.only(services.dispatcher, request, services.context())
        except CallerError as error:
            if error.param == "input":  # the engine's word for what are a query and documents here
                error.param = "documents"
            raise
        scores = _own_scores(chunks) if ranks else _nearness(chunks)
        if len(scores) != len(body.documents):
            raise EngineFault("The engine ended the call before its answer was complete.")
        best = sorted(range(len(scores)), key=lambda number: (-scores[number], number))[: body.top_n]
        shown = body.return_documents is not False
        results = [
            {"index": number, "relevance_score": scores[number]}
            | ({"document": {"text": body.documents[number]}} if shown else {})
            for number in best
        ]
        return json_response(
            {
                "model": model,
                "object": "list",
                "method": "rank_pooling" if ranks else "embedding_cosine",
                "usage": {"total_tokens": usage.prompt_tokens, "prompt_tokens": usage.prompt_tokens},
                "results": results,
            }
        )

    for path in PATHS:
        routes.add_url_rule(path, view_func=rerank, methods=["POST"])
    return routes


def _own_scores(chunks: Sequence[Chunk]) -> list[float]:
    """What a ranking model makes of the documents."""
    scores = {chunk.index: chunk.score for chunk in chunks if isinstance(chunk, Score)}
    return [scores[number] for number in sorted(scores)]


def _nearness(chunks: Sequence[Chunk]) -> list[float]:
    """How near each document's vector is to the query's, which comes first.

    Vectors have unit length, so their product is the cosine of their angle.
    """
    vectors = {chunk.index: floats(chunk.vector) for chunk in chunks if isinstance(chunk, Embedding)}
    if not vectors:
        return []
    query, *documents = (vectors[number] for number in sorted(vectors))
    return [sum(map(_product, query, document)) for document in documents]


def _product(left: float, right: float) -> float:
    return left * right
