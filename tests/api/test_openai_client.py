"""The official `openai` client against a node: the double, and a real one with a real model.

A model of 135M parameters answers anything: nothing here looks at WHAT it says, but at shape, at determinism and at
equality between paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about a lighthouse."}]


@pytest.fixture(scope="module")
def client(node_url: str) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{node_url}/v1", api_key="none", max_retries=0, http_client=http) as client:
        yield client


def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == model
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_streamed_chat_equals_the_whole(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=24, temperature=0)
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    events = list(stream)
    assert events[0].choices[0].delta.role == "assistant"
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    reasons = [event.choices[0].finish_reason for event in events if event.choices]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 24


def test_usage_in_a_stream_only_when_asked_for(client: openai.OpenAI, model: str) -> None:
    events = list(client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=2, stream=True))
    assert all(event.usage is None and event.choices for event in events)


def test_completions(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt="Once upon a time", max_tokens=16, temperature=0)
    assert whole.object == "text_completion"
    stream = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=16, temperature=0, stream=True
    )
    assert "".join(event.choices[0].text for event in stream if event.choices) == whole.choices[0].text
    echo = client.completions.create(model=model, prompt="Once upon a time", max_tokens=16, temperature=0, echo=True)
    assert echo.choices[0].text == "Once upon a time" + whole.choices[0].text


def test_several_prompts_and_token_prompts(client: openai.OpenAI, model: str) -> None:
    prompts = ["The sea", "A mountain"]
    bodies = [{"model": model, "content": text} for text in prompts]
    ids = [client.post("/tokenize", cast_to=httpx.Response, body=body).json()["tokens"] for body in bodies]
    by_text = client.completions.create(model=model, prompt=prompts, max_tokens=8, temperature=0, n=2)
    by_ids = client.completions.create(model=model, prompt=ids, max_tokens=8, temperature=0, n=2)
    assert [choice.index for choice in by_text.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices]
    assert by_text.choices[0].text == by_text.choices[1].text
    assert by_text.choices[0].text != by_text.choices[2].text


def test_completion_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="The sea is", max_tokens=4, temperature=0, logprobs=3, echo=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.token_logprobs[0] is None  # nothing comes before the first
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    # Greedy: what was drawn is the best of what was possible.
    for token, value, top in zip(
        logprobs.tokens[-4:], logprobs.token_logprobs[-4:], logprobs.top_logprobs[-4:], strict=True
    ):
        assert len(top) == 3
        assert top[token] == pytest.approx(value)
        assert max(top.values()) == pytest.approx(value)
    assert logprobs.text_offset[0] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(client: openai.OpenAI, stream: bool, model: str) -> None:
    options: Any = {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 2, "stream": stream}
    answer: Any = client.chat.completions.create(model=model, messages=MESSAGES, **options)
    if stream:
        choices = [event.choices[0] for event in answer]
        content = [item for choice in choices if choice.logprobs for item in choice.logprobs.content or ()]
        text = "".join(choice.delta.content or "" for choice in choices)
    else:
        content, text = answer.choices[0].logprobs.content, answer.choices[0].message.content
    assert len(content) == 6
    assert b"".join(bytes(item.bytes) for item in content).decode() == text
    for item in content:
        assert len(item.top_logprobs) == 2
        assert item.top_logprobs[0].token == item.token
        assert item.top_logprobs[0].logprob == pytest.approx(item.logprob)
        assert item.top_logprobs[1].logprob <= item.logprob <= 0


def test_several_choices(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=16, n=2, temperature=1.2, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 32
    texts = ["", ""]
    for event in client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=16, n=2, temperature=1.2, seed=7, stream=True
    ):
        texts[event.choices[0].index] += event.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_more_choices_than_slots(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, n=11, temperature=0)
    assert [choice.index for choice in answer.choices] == list(range(11))
    assert len({choice.message.content for choice in answer.choices}) == 1


def test_seed(client: openai.OpenAI, model: str) -> None:
    def draw(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=16, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_stop(client: openai.OpenAI, model: str) -> None:
    free = client.completions.create(model=model, prompt="One, two, three,", max_tokens=24, temperature=0)
    text = free.choices[0].text
    stop = text[len(text) // 3 : len(text) // 3 + 5]  # straddles tokens, wherever they end
    stopped = client.completions.create(
        model=model, prompt="One, two, three,", max_tokens=24, temperature=0, stop=[stop, "never to be seen"]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == text[: text.index(stop)]
    events = client.completions.create(
        model=model, prompt="One, two, three,", max_tokens=24, temperature=0, stop=stop, stream=True
    )
    assert "".join(event.choices[0].text for event in events if event.choices) == text[: text.index(stop)]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_json_schema(client: openai.OpenAI, temperature: float, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Describe a person as JSON."}],
        max_tokens=200,
        temperature=temperature,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


def test_embeddings(client: openai.OpenAI, model: str) -> None:
    inputs = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Quarterly revenue rose by four percent."]
    answer = client.embeddings.create(model=model, input=inputs)  # the client asks for base64
    plain = client.embeddings.create(model=model, input=inputs, encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens > 0
    for packed, listed in zip(answer.data, plain.data, strict=True):
        assert packed.embedding == pytest.approx(listed.embedding, abs=1e-6)
        assert sum(value * value for value in packed.embedding) == pytest.approx(1.0, abs=1e-3)
    cat, kitten, revenue = (item.embedding for item in plain.data)
    assert _dot(cat, kitten) > _dot(cat, revenue)


def test_long_and_short_inputs_embed_alike_in_company(client: openai.OpenAI, model: str) -> None:
    long = "The quick brown fox jumps over the lazy dog. " * 40
    alone = client.embeddings.create(model=model, input=long).data[0].embedding
    company = client.embeddings.create(model=model, input=["hello", long, "world"]).data[1].embedding
    assert _dot(alone, company) == pytest.approx(1.0, abs=1e-4)


def test_models(client: openai.OpenAI, model: str) -> None:
    assert [model.id for model in client.models.list()] == [model]
    assert client.models.retrieve(model).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_are_the_clients_own_classes(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=model, prompt="word " * 3000)
    assert long.value.code == "context_length_exceeded"
    assert long.value.param == "prompt"
    with pytest.raises(openai.BadRequestError) as grammar:
        client.chat.completions.create(model=model, messages=MESSAGES, extra_body={"grammar": "root ::= ("})
    assert grammar.value.param == "grammar"


def _dot(left: list[float], right: list[float]) -> float:
    return sum(one * other for one, other in zip(left, right, strict=True))
