"""The shared vocabulary survives its own wire format, and nothing foreign passes for it."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import types
from backends.types import (
    THINK_TAGS,
    Accepted,
    AnswerFormat,
    AudioPart,
    Busy,
    CallSyntax,
    Capability,
    ChatRequest,
    Chunk,
    CompletionRequest,
    DetokenizedText,
    DetokenizeRequest,
    Embedding,
    EmbeddingRequest,
    EngineInfo,
    EngineStats,
    Failure,
    Finished,
    ImagePart,
    LoadSpec,
    MeshError,
    Message,
    ModelNeeds,
    Request,
    Sampling,
    Text,
    TextPart,
    TokenIds,
    TokenizeRequest,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolChoice,
    TopLogprob,
    Usage,
    capability_of,
    decode_chunk,
    decode_request,
    encode_chunk,
    encode_request,
    from_failure,
    to_failure,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TOKEN = st.integers(0, 2**31 - 1)
TOKENS = st.lists(TOKEN, max_size=4).map(tuple)
NUMBER = st.floats(allow_nan=False, width=64)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)

SAMPLING = st.builds(
    Sampling,
    temperature=st.none() | NUMBER,
    top_k=st.none() | st.integers(-1, 100),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.none() | st.dictionaries(TOKEN, NUMBER, max_size=3),
)
GENERATION: dict[str, Any] = {
    "model": TEXT,
    "sampling": SAMPLING,
    "max_tokens": st.none() | TOKEN,
    "stop": st.lists(TEXT, max_size=2).map(tuple),
    "n": st.integers(1, 128),
    "logprobs": st.none() | st.integers(0, 20),
    "ignore_eos": st.booleans(),
    "grammar": st.none() | TEXT,
    "json_schema": st.none() | OBJECT,
    "resume": TOKENS,
}
PARTS = st.one_of(
    st.builds(TextPart, TEXT),
    st.builds(ImagePart, data=st.binary(max_size=4), media_type=TEXT, detail=st.none() | TEXT),
    st.builds(AudioPart, data=st.binary(max_size=4), format=TEXT),
)
MESSAGES = st.lists(
    st.builds(
        Message,
        role=TEXT,
        content=TEXT | st.lists(PARTS, max_size=2).map(tuple),
        name=st.none() | TEXT,
        reasoning=TEXT,
        tool_calls=st.lists(st.builds(ToolCall, id=TEXT, name=TEXT, arguments=TEXT), max_size=2).map(tuple),
        tool_call_id=st.none() | TEXT,
    ),
    max_size=2,
).map(tuple)
TOOLS = st.lists(
    st.builds(Tool, name=TEXT, description=TEXT, parameters=st.none() | OBJECT, strict=st.booleans()), max_size=2
).map(tuple)
CHOICE = st.builds(
    ToolChoice,
    mode=st.sampled_from(["none", "auto", "required"]),
    allowed=st.lists(TEXT, max_size=2).map(tuple),
    parallel=st.booleans(),
)
FORM = st.builds(
    AnswerFormat,
    st.sampled_from(typing.get_args(CallSyntax)),
    st.sampled_from([None, *THINK_TAGS]),
    st.booleans(),
    st.booleans(),
)
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(
        ChatRequest,
        messages=MESSAGES,
        template_kwargs=OBJECT,
        tools=TOOLS,
        tool_choice=CHOICE,
        continues=st.booleans(),
        **GENERATION,
    ),
    st.builds(CompletionRequest, prompt=TEXT | TOKENS, echo=st.booleans(), suffix=st.none() | TEXT, **GENERATION),
    st.builds(EmbeddingRequest, model=TEXT, inputs=st.lists(TEXT | TOKENS, max_size=3).map(tuple)),
    st.builds(TokenizeRequest, model=TEXT, content=TEXT),
    st.builds(DetokenizeRequest, model=TEXT, tokens=TOKENS),
)
LOGPROBS = st.builds(
    TokenLogprob,
    TOKEN,
    st.binary(max_size=4),
    st.none() | NUMBER,
    st.lists(st.builds(TopLogprob, TOKEN, st.binary(max_size=4), NUMBER), max_size=2).map(tuple),
)
CHUNKS: st.SearchStrategy[Chunk] = st.one_of(
    st.builds(Accepted, TOKEN, FORM),
    st.builds(Text, st.integers(0, 127), TEXT, TOKENS, st.lists(LOGPROBS, max_size=2).map(tuple)),
    st.builds(Finished, st.integers(0, 127), st.sampled_from(["stop", "length"]), st.none() | TEXT),
    st.builds(Embedding, st.integers(0, 127), st.binary(max_size=16)),
    st.builds(TokenIds, TOKENS),
    st.builds(DetokenizedText, TEXT),
)


@given(REQUESTS)
def test_requests(request: Request) -> None:
    assert decode_request(encode_request(request)) == request
    assert capability_of(request) in Capability


@given(CHUNKS)
def test_chunks(chunk: Chunk) -> None:
    assert decode_chunk(encode_chunk(chunk)) == chunk


@pytest.mark.parametrize(
    "value",
    [
        Usage(prompt_tokens=1, cached_tokens=2, completion_tokens=3, prefill_s=0.5, decode_s=1.5),
        LoadSpec(name="m", path="/x", deterministic=True, sampling={"top_k": 3}, stop=("a",), engine={"a": [1]}),
        ModelNeeds(memory_bytes=1, context_tokens=2, slots=3, capabilities=(Capability.CHAT,)),
        EngineInfo(capabilities=(Capability.EMBEDDING,), context_tokens=2, slots=3, details={"threads": 1}),
        EngineStats(slots_used=1, decode_batch=2.5),
    ],
)
def test_what_is_said_of_a_worker(value: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value


@pytest.mark.parametrize("decode", [decode_chunk, decode_request])
@given(data=st.binary(max_size=40))
def test_foreign_bytes(decode: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError):
        decode(data)


ERRORS = [
    cls
    for name in types.__all__
    if isinstance(cls := getattr(types, name), type) and issubclass(cls, MeshError) and cls is not Busy
]


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: str(cls.kind))
def test_an_error_stays_what_it_is(cls: type[MeshError]) -> None:
    sent = cls("It is so.", param="n", code="x")
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(to_failure(sent)), type=Failure)
    got = from_failure(wire)
    assert type(got) is cls
    assert (got.message, got.param, got.code) == ("It is so.", "n", "x")
    assert got.retry_after_s == sent.retry_after_s


def test_busy_says_when_to_come_back() -> None:
    got = from_failure(to_failure(Busy("Wait.", retry_after_s=7.5)))
    assert (type(got), got.retry_after_s) == (Busy, 7.5)


def test_every_error_has_its_own_kind() -> None:
    assert len({cls.kind for cls in ERRORS}) == len(ERRORS)


def test_an_error_of_a_newer_version() -> None:
    got = from_failure(Failure(kind="from_the_future", message="So it is."))
    assert type(got) is MeshError
    assert got.message == "So it is."


@given(SAMPLING, SAMPLING)
def test_a_models_defaults_fill_what_a_request_leaves_open(mine: Sampling, defaults: Sampling) -> None:
    both = mine.over(defaults)
    for field in Sampling.__struct_fields__:
        value = getattr(mine, field)
        assert getattr(both, field) == (getattr(defaults, field) if value is None else value)


def test_the_text_of_a_message() -> None:
    mixed = Message(role="user", content=(TextPart("a"), ImagePart(data=b"x"), TextPart("b")))
    assert (mixed.text, mixed.is_text) == ("a\nb", False)
    assert Message(role="user", content="a").is_text
    assert Message(role="user", content=(TextPart("a"),)).is_text
