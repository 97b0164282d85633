"""A node without engines: words from a hash, every feature of the contract, and a script for what goes wrong."""

from __future__ import annotations

import json
import math
import random
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import trio

from api.ports import CallContext, ForwardedAnswer, ForwardedCall, ModelAction, ModelCard
from backends.types import (
    Accepted,
    CallerError,
    Capability,
    ChatRequest,
    Chunk,
    CompletionRequest,
    ContextOverflow,
    DetokenizedText,
    DetokenizeRequest,
    Embedding,
    EmbeddingRequest,
    Finished,
    FinishReason,
    ModelMissing,
    NodeGone,
    RankRequest,
    Request,
    Score,
    Text,
    TokenIds,
    TokenizeRequest,
    TokenLogprob,
    TopLogprob,
    Usage,
)

MODEL = "smol"
ALIAS = "gpt-of-old"
TOKEN = "mesh1double"
CONTEXT_TOKENS = 2048
ANSWER_TOKENS = 64  # after which an answer ends by itself
EMBEDDING_SIZE = 96
LETTERS = b"etaoin shrdlu cmfwyp"

Script = Callable[[Request], AsyncIterator[Sequence[Chunk]]]


@dataclass
class DoubleCall:
    """Implements api.ports.Call."""

    model: str
    chunks: AsyncIterator[Sequence[Chunk]]
    usage: Usage = field(default_factory=Usage)
    node: str = "double"

    def batches(self) -> AsyncIterator[Sequence[Chunk]]:
        return self.chunks


class DoubleDispatcher:
    """Implements api.ports.Dispatcher. Every byte is a token, so that characters may be spread over several.

    `opening` runs before a call is open, `script` answers in place of the words.
    """

    def __init__(self) -> None:
        self.reset()
        self.running = 0

    def reset(self) -> None:
        """Forget the scripts and what was asked."""
        self.asked: list[Request] = []
        self.contexts: list[CallContext] = []
        self.opening: Callable[[], Awaitable[None]] | None = None
        self.script: Script | None = None
        self.usage = Usage()  # of what the script answers

    @asynccontextmanager
    async def open(self, request: Request, context: CallContext) -> AsyncIterator[DoubleCall]:
        self.asked.append(request)
        self.contexts.append(context)
        self.running += 1
        try:
            if self.opening is not None:
                await self.opening()
            if request.model != MODEL:
                raise ModelMissing(f'model "{request.model}" not found. To see available models, call GET /v1/models')
            if self.script is not None:
                yield DoubleCall(request.model, self.script(request), self.usage)
            else:
                chunks, usage = answer(request)
                yield DoubleCall(request.model, _in_batches(chunks), usage)
        finally:
            self.running -= 1


class DoubleNode:
    """Implements api.ports.Node."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Ready, able to do everything, never reloaded."""
        self.ready = True
        self.reloads = 0
        self.capabilities: tuple[Capability, ...] = tuple(Capability)

    def models(self) -> Sequence[ModelCard]:
        return [
            ModelCard(
                name=MODEL,
                backend="double",
                capabilities=self.capabilities,
                created=1700000000,
                aliases=(ALIAS,),
                loaded=True,
                context_tokens=CONTEXT_TOKENS,
            )
        ]

    def default_model(self, capability: Capability) -> str | None:
        return MODEL if capability in self.capabilities else None

    def starting(self) -> bool:
        return not self.ready

    def system(self) -> Mapping[str, Any]:
        return {"backends": ["double"], "loaded_models": []}

    def metrics(self) -> tuple[bytes, str]:
        return b"# HELP up Whether it is.\nup 1\n", "text/plain; version=0.0.4; charset=utf-8"

    def reload(self) -> None:
        self.reloads += 1


class DoubleMesh:
    """Implements api.ports.Mesh: two nodes, one request, and events that a test puts in."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """In a swarm, nobody banned, nobody watching."""
        self.nodes = [swarm_node("here", own=True), swarm_node("there", addresses=[])]
        self.left = False
        self.banned: list[str] = []
        self.events: list[Mapping[str, Any]] = []  # that each watcher gets
        self.watching = 0
        self.unwatched = trio.Event()
        self.asked: list[int] = []
        self.acted: list[tuple[str, str]] = []
        self.forwarded: list[tuple[str, ForwardedCall]] = []

    def view(self) -> Mapping[str, Any]:
        return {"name": "here", "id": "ID-here", "left": self.left, "nodes": self.nodes, "banned": self.banned}

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        send, receive = trio.open_memory_channel[Mapping[str, Any]](math.inf)
        self.watching += 1
        try:
            with send, receive:
                for event in self.events:
                    send.send_nowait(event)
                yield receive
        finally:
            self.watching -= 1
            self.unwatched.set()

    def token(self) -> str | None:
        return None if self.left else TOKEN

    def requests(self, count: int) -> Sequence[Mapping[str, Any]]:
        self.asked.append(count)
        return [{"id": "req/1", "model": MODEL}]

    def explain(self, request_id: str) -> Mapping[str, Any] | None:
        return {"id": request_id, "decisions": []} if request_id == "req/1" else None

    async def trace(self, request_id: str) -> Mapping[str, Any] | None:
        return {"id": request_id, "timeline": []} if request_id == "req/1" else None

    def plans(self, model: str | None) -> Sequence[Mapping[str, Any]]:
        return [{"model": model or MODEL}]

    async def models(self) -> Sequence[Mapping[str, Any]]:
        return [{"name": "here", "models": []}]

    def place_of(self, node: str) -> str | None:
        if node not in ("", "here", "ID-here", "there", "ID-there"):
            raise CallerError(f"There is no node {node} in this swarm.", param="node")
        return "ID-there" if node.endswith("there") else None

    async def act(self, model: str, action: ModelAction) -> str:
        if model != MODEL:
            raise ModelMissing(f'model "{model}" not found.')
        self.acted.append((model, action))
        return model

    async def charts(self, node: str | None) -> Mapping[str, Any]:
        return {"nodes": [] if node is None else [{"name": node}]}

    def kick(self, node: str) -> str:
        if node not in ("there", "ID-there"):
            raise CallerError(f"There is no node {node} in this swarm.", param="node")
        self.banned.append("ID-there")
        return "ID-there"

    def pardon(self, node: str) -> str:
        if "ID-there" not in self.banned:
            raise CallerError(f"The node {node} is not banned.", param="node")
        self.banned.remove("ID-there")
        return "ID-there"

    async def leave(self) -> None:
        self.left = True

    def owner(self, part: str) -> str | None:
        return None

    def forward(self, owner: str, call: ForwardedCall) -> AbstractAsyncContextManager[ForwardedAnswer]:
        self.forwarded.append((owner, call))
        raise NodeGone(f"The node {owner} cannot be reached.")


def swarm_node(name: str, *, own: bool = False, **changes: Any) -> dict[str, Any]:
    """A node as `Mesh.view` has it, as far as the API itself looks at it."""
    node = {
        "self": own,
        "id": f"ID-{name}",
        "name": name,
        "state": "alive",
        "addresses": ["/ip4/192.0.2.1/tcp/4801", "/ip4/192.0.2.2/tcp/4801"],
        "exposes": [],
        "targets": [],
        "last_seen": "2026-11-27T12:00:00.123456+00:00",
    }
    return node | changes


def answer(request: Request) -> tuple[list[Chunk], Usage]:
    """All chunks of a call and what it cost. Raises CallerError."""
    match request:
        case TokenizeRequest():
            return [TokenIds(tuple(request.content.encode()))], Usage()
        case DetokenizeRequest():
            return [DetokenizedText(_bytes(request.tokens).decode("utf-8", "replace"))], Usage()
        case EmbeddingRequest():
            inputs = [_tokens(item, "input") for item in request.inputs]
            vectors: list[Chunk] = [Embedding(index, _vector(tokens)) for index, tokens in enumerate(inputs)]
            return vectors, Usage(prompt_tokens=sum(map(len, inputs)))
        case RankRequest():  # the longest is the best
            scores: list[Chunk] = [Score(index, len(document)) for index, document in enumerate(request.documents)]
            return scores, Usage(prompt_tokens=len(request.query) + sum(map(len, request.documents)))
        case _:
            return _generation(request)


def _generation(request: ChatRequest | CompletionRequest) -> tuple[list[Chunk], Usage]:
    if isinstance(request, ChatRequest):
        prompt = _tokens("".join(f"{item.role}: {item.text}\n" for item in request.messages), "messages")
        echoed = b""
    else:
        prompt = _tokens(request.prompt, "prompt")
        echoed = prompt if request.echo else b""
    choices: list[list[Chunk]] = []
    spent = 0
    for index in range(request.n):
        words, reason = _words(request, prompt, index)
        spent += len(words)
        logprobs = [] if request.logprobs is None else _logprobs(echoed, words, request.logprobs)
        said = echoed + words
        parts: list[Chunk] = []
        for start in range(0, len(said), 3):  # three tokens a chunk
            piece = said[start : start + 3]
            shown = tuple(logprobs[start : start + 3])
            parts.append(Text(index, piece.decode("utf-8", "replace"), tuple(piece), shown))
        choices.append([*parts, Finished(index, reason)])
    longest = max(map(len, choices))
    mixed = [parts[turn] for turn in range(longest) for parts in choices if turn < len(parts)]
    return [Accepted(len(prompt)), *mixed], Usage(prompt_tokens=len(prompt), completion_tokens=spent)


def _words(request: ChatRequest | CompletionRequest, prompt: bytes, index: int) -> tuple[bytes, FinishReason]:
    if isinstance(request, ChatRequest) and request.tool_choice.mode == "required":
        allowed = request.tool_choice.allowed or tuple(tool.name for tool in request.tools)
        tool = next(tool for tool in request.tools if tool.name in allowed)
        call = {"name": tool.name, "arguments": _example(tool.parameters or {})}
        return json.dumps(call).encode(), "stop"
    if request.json_schema is not None:
        return json.dumps(_example(request.json_schema)).encode(), "stop"
    if request.grammar is not None:
        literal = re.search(r'root ::= "([^"]*)"', request.grammar)
        if literal is None:
            raise CallerError("The grammar cannot be parsed.", param="grammar")
        return literal[1].encode(), "stop"
    room = CONTEXT_TOKENS - len(prompt)
    natural = room if request.ignore_eos else min(room, ANSWER_TOKENS)
    limit = natural if request.max_tokens is None else min(room, request.max_tokens)
    seed = b""
    if request.sampling.temperature != 0:
        drawn = random.getrandbits(60) if request.sampling.seed is None else request.sampling.seed
        seed = f"{drawn}/{index}".encode()
    digest = blake2b(prompt + b"\0" + seed).digest()
    words = bytes(LETTERS[blake2b(digest + position.to_bytes(4)).digest()[0] % 20] for position in range(limit))
    ends = [end for stop in request.stop if (end := words.find(stop.encode())) >= 0]
    if ends:
        return words[: min(ends)], "stop"
    return words, "length" if request.max_tokens is not None or request.ignore_eos else "stop"


def _logprobs(echoed: bytes, words: bytes, best: int) -> list[TokenLogprob]:
    tokens = []
    for position, token in enumerate(echoed + words):
        others = [other for other in LETTERS if other != token]
        top = [TopLogprob(token, bytes([token]), -0.25)]
        top += [TopLogprob(other, bytes([other]), -2.0 - rank) for rank, other in enumerate(others)]
        first = position == 0 and bool(echoed)
        shown = () if first else tuple(top[:best])
        tokens.append(TokenLogprob(token, bytes([token]), None if first else -0.25, shown))
    return tokens


def _example(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type", "object"):
        case "object":
            return {name: _example(part) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [_example(schema["items"])]
        case "string":
            return "word"
        case _:
            return 7


def _tokens(text: str | Sequence[int], param: str) -> bytes:
    tokens = text.encode() if isinstance(text, str) else _bytes(text)
    if len(tokens) >= CONTEXT_TOKENS:
        raise ContextOverflow(
            f"The {param} have {len(tokens)} tokens; the model's context is {CONTEXT_TOKENS}.",
        )
    return tokens


def _bytes(tokens: Sequence[int]) -> bytes:
    for token in tokens:
        if token > 255:
            raise CallerError(f"Token {token} is outside this model's vocabulary of 256.", param="tokens")
    return bytes(tokens)


def _vector(tokens: bytes) -> bytes:
    """A bag of words, so that texts with words in common are near each other."""
    values = [0.01] * EMBEDDING_SIZE
    for word in tokens.lower().split():
        values[int.from_bytes(blake2b(word, digest_size=2).digest()) % EMBEDDING_SIZE] += 1.0
    length = math.sqrt(sum(value * value for value in values))
    return struct.pack(f"<{EMBEDDING_SIZE}f", *(value / length for value in values))


async def _in_batches(chunks: Sequence[Chunk]) -> AsyncIterator[Sequence[Chunk]]:
    yield chunks[:1]
    for start in range(1, len(chunks), 2):
        yield chunks[start : start + 2]
