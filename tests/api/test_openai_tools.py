"""The official `openai` client with tools and structured output.

Against the double, a real node with SmolLM2, and, for an agent's loop, the fake engine, which calls what it is told to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.support.images import PNG, data_url
from tests.support.nodes import running_node, write_model

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]


class Person(pydantic.BaseModel):
    name: Literal["Ann", "Bob"]
    age: int


class GetWeather(pydantic.BaseModel):
    """The weather of a city."""

    city: Literal["Rome", "Oslo"]


def connect(url: str) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)


@pytest.fixture(scope="module")
def client(node_url: str) -> Iterator[openai.OpenAI]:
    with connect(node_url) as client:
        yield client


def test_a_required_call(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        parallel_tool_calls=False,
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    # The result goes back, and the model says something.
    turns: list[Any] = [*MESSAGES, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    more = client.chat.completions.create(model=model, messages=turns, tools=[WEATHER], max_tokens=8, temperature=0)
    assert more.choices[0].finish_reason in ("length", "stop", "tool_calls")


def test_a_named_call_in_a_stream(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model,
        messages=MESSAGES,
        tools=[WEATHER, TIME],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert any(event.type == "tool_calls.function.arguments.delta" for event in events)
    assert not any(event.type == "content.delta" and event.delta for event in events)  # the first one is empty
    [call] = final.choices[0].message.tool_calls or []
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    assert final.choices[0].finish_reason == "tool_calls"


def test_parsed_tools(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model,
        messages=MESSAGES,
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
        temperature=0,
        parallel_tool_calls=False,
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_parsed_answers(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Who?"}],
        response_format=Person,
        temperature=0,
        max_tokens=64,
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_a_part_that_the_model_cannot_see(client: openai.OpenAI, model: str) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "https://localhost/x.png"}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": [image]}])
    assert refused.value.param == "messages[0].content[0]"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of a node whose fake model says what it is told, in Hermes' notation."""
    data: Path = tmp_path_factory.mktemp("told")
    engine = {"obeys": True, "calls": "hermes", "think": ["<think>", "</think>"]}
    write_model(data, "told", backend="fake", engine=engine)
    with running_node(data) as node, connect(node.url) as client:
        yield client


def test_an_agents_loop_ends(told: openai.OpenAI) -> None:
    def call(name: str, **arguments: str) -> str:
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"

    plan = f"say: <think>Two things.</think>I look.{call('get_weather', city='Oslo')}\n{call('get_time')}"
    messages: list[Any] = [{"role": "user", "content": plan}]
    answers = {"get_weather": "sunny", "get_time": f"say: {call('get_weather', city='Rome')}"}
    asked = []
    for _ in range(5):
        message = (
            told.chat.completions.create(model="told", messages=messages, tools=[WEATHER, TIME]).choices[0].message
        )
        messages.append(message)
        if not message.tool_calls:
            break
        for made in message.tool_calls:
            assert made.type == "function"
            asked.append((made.function.name, made.function.arguments))
            messages.append({"role": "tool", "tool_call_id": made.id, "content": answers[made.function.name]})
    # The second result tells the model to call once more; the third one is plain.
    assert asked == [
        ("get_weather", '{"city": "Oslo"}'),
        ("get_time", "{}"),
        ("get_weather", '{"city": "Rome"}'),
    ]
    assert messages[1].content == "I look."
    assert messages[1].reasoning == "Two things."
    assert messages[-1].content
    assert len({made.id for message in messages[1::2] for made in getattr(message, "tool_calls", None) or ()}) >= 2


def test_required_and_parts_of_the_fake(told: openai.OpenAI) -> None:
    answer = told.chat.completions.create(model="told", messages=MESSAGES, tools=[TIME], tool_choice="required")
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_time"
    image: Any = {"type": "image_url", "image_url": {"url": data_url(PNG)}}
    with pytest.raises(openai.BadRequestError):
        told.chat.completions.create(model="told", messages=[{"role": "user", "content": [image]}])
