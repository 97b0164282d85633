"""Chat, whole: tools in every form, reasoning, what an engine is asked. Answers are scripted, so each byte counts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from backends.types import (
    Accepted,
    AnswerFormat,
    AudioPart,
    ChatRequest,
    Chunk,
    Finished,
    ImagePart,
    Message,
    Request,
    Text,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.api.double import MODEL
from tests.api.serving import Served
from tests.support.images import PNG, data_url

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "W.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "get_time"}},
]
CALLS = (
    '<think>Hm.</think>Let me see.<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)


def says(double: Served, text: str, *, reason: Any = "stop", size: int = 5) -> None:
    """Let the double answer with `text` in pieces of `size`, as a model of Hermes' family."""

    async def script(_: Request) -> AsyncIterator[Sequence[Chunk]]:
        yield [Accepted(3, AnswerFormat("hermes", ("<think>", "</think>")))]
        for start in range(0, len(text), size):
            yield [Text(0, text[start : start + size], (start,))]
        yield [Finished(0, reason)]

    double.dispatcher.script = script


def ask(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post(PATH, json={"model": MODEL, "messages": [USER], **body})
    assert response.status_code == 200, response.text
    return dict(response.json())


def stream(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    response = http.post(PATH, json={"model": MODEL, "messages": [USER], "stream": True, **body})
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def asked(double: Served) -> ChatRequest:
    request = double.dispatcher.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


def test_calls_in_a_whole_answer(http: httpx.Client, double: Served) -> None:
    says(double, CALLS)
    [choice] = ask(http, tools=TOOLS)["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "Let me see."
    assert message["reasoning"] == message["reasoning_content"] == "Hm."
    first, second = message["tool_calls"]
    assert first["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert second["function"] == {"name": "get_time", "arguments": "{}"}
    assert {first["type"], second["type"]} == {"function"}
    assert first["id"] != second["id"]


def test_content_is_null_where_there_are_only_calls(http: httpx.Client, double: Served) -> None:
    says(double, CALLS.partition("Let me see.")[2])
    message = ask(http, tools=TOOLS)["choices"][0]["message"]
    assert message["content"] is None
    assert "reasoning" not in message


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_calls_in_a_stream(http: httpx.Client, double: Served, size: int) -> None:
    says(double, CALLS, size=size)
    events = stream(http, tools=TOOLS)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    parts = [call for delta in deltas for call in delta.get("tool_calls", ())]
    starts = [part for part in parts if "id" in part]
    assert [(part["index"], part["function"]["name"]) for part in starts] == [(0, "get_weather"), (1, "get_time")]
    assert all("name" not in part["function"] for part in parts if "id" not in part)
    for index, arguments in enumerate(['{"city": "Rome"}', "{}"]):
        assert "".join(part["function"]["arguments"] for part in parts if part["index"] == index) == arguments
    assert deltas[-1] == {}
    assert [event["choices"][0]["finish_reason"] for event in events][-1] == "tool_calls"


def test_the_legacy_form(http: httpx.Client, double: Served) -> None:
    functions = [tool["function"] for tool in TOOLS]
    says(double, CALLS)
    [choice] = ask(http, functions=functions)["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert "tool_calls" not in choice["message"]
    deltas = [event["choices"][0]["delta"] for event in stream(http, functions=functions)]
    parts = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert parts[0] == {"name": "get_weather", "arguments": ""}
    assert "".join(part["arguments"] for part in parts) == '{"city": "Rome"}'
    assert asked(double).tool_choice == ToolChoice(parallel=False)
    ask(http, functions=functions, function_call={"name": "get_time"})
    assert asked(double).tool_choice == ToolChoice(mode="required", allowed=("get_time",), parallel=False)


NAMED = ToolChoice(mode="required", allowed=("get_time",), parallel=False)


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        ({}, ToolChoice()),
        ({"tool_choice": "auto"}, ToolChoice()),
        ({"tool_choice": "none"}, ToolChoice(mode="none")),
        ({"tool_choice": "required"}, ToolChoice(mode="required")),
        ({"parallel_tool_calls": False}, ToolChoice(parallel=False)),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, NAMED),
        ({"tool_choice": {"type": "function", "name": "get_time"}}, NAMED),
        ({"tool_choice": '{"type": "function", "function": {"name": "get_time"}}'}, NAMED),
        ({"tool_choice": {"function": "get_time"}}, NAMED),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [TOOLS[0], {"name": "get_time"}]},
                }
            },
            ToolChoice(mode="required", allowed=("get_weather", "get_time")),
        ),
    ],
)
def test_the_forms_of_a_choice(http: httpx.Client, double: Served, given: dict[str, Any], choice: ToolChoice) -> None:
    ask(http, tools=TOOLS, **given)
    request = asked(double)
    assert request.tool_choice == choice
    assert request.tools == (
        Tool(name="get_weather", description="W.", parameters=SCHEMA),
        Tool(name="get_time"),
    )


def test_flat_tools_are_tools(http: httpx.Client, double: Served) -> None:
    ask(http, tools=[{"type": "function", "name": "f", "strict": True}])
    assert asked(double).tools == (Tool(name="f", strict=True),)


def test_what_is_not_a_call_where_none_is_wanted(http: httpx.Client, double: Served) -> None:
    says(double, "<tool_call>x")
    assert ask(http)["choices"][0]["message"]["content"] == "<tool_call>x"
    assert ask(http, tools=TOOLS, tool_choice="none")["choices"][0]["message"]["content"] == "<tool_call>x"


def test_an_answer_that_was_cut_off_in_a_call(http: httpx.Client, double: Served) -> None:
    says(double, CALLS[:90], reason="length")
    [choice] = ask(http, tools=TOOLS)["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "Let me see."
    assert len(choice["message"]["tool_calls"]) == 1


def test_the_conversation_of_an_agent(http: httpx.Client, double: Served) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    loose = {"id": "b", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call, loose], "reasoning": "Hm."},
        {"role": "tool", "content": [{"type": "text", "text": "noon"}], "tool_call_id": "a"},
        {"role": "tool", "content": "sunny", "tool_call_id": "b"},
        {"role": "assistant", "function_call": {"name": "get_time", "arguments": "{}"}},
        {"role": "function", "name": "get_time", "content": "one"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "reasoning_content": "Why?"},
    ]
    ask(http, messages=messages, tools=TOOLS)
    made = ToolCall(id="a", name="get_time", arguments="{}")
    other = ToolCall(id="b", name="get_weather", arguments='{"city": "Rome"}')
    assert asked(double).messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="a\nb"),
        Message(role="assistant", tool_calls=(made, other), reasoning="Hm."),
        Message(role="tool", content="noon", name="get_time", tool_call_id="a"),
        Message(role="tool", content="sunny", name="get_weather", tool_call_id="b"),
        Message(role="assistant", tool_calls=(ToolCall(id="call_5", name="get_time", arguments="{}"),)),
        Message(role="tool", content="one", name="get_time", tool_call_id="call_5"),
        Message(role="assistant", content="No.", reasoning="Why?"),
    )


def test_parts_that_are_no_text(http: httpx.Client, double: Served) -> None:
    content = [
        {"type": "text", "text": "See?"},
        {"type": "image_url", "image_url": {"url": data_url(PNG, "image/jpeg"), "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAE=", "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/mp3;base64,AAE="}},
    ]
    ask(http, messages=[{"role": "user", "content": content}])
    [message] = asked(double).messages
    assert message.content == (
        TextPart("See?"),
        ImagePart(data=PNG, media_type="image/png", detail="low"),
        AudioPart(data=b"\0\1", format="wav"),
        AudioPart(data=b"\0\1", format="mp3"),
    )


@pytest.mark.parametrize(
    ("given", "kwargs"),
    [
        ({}, {}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high", "enable_thinking": True, "thinking": True}),
        ({"metadata": {"enable_thinking": "false"}}, {"enable_thinking": False, "thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            {"reasoning_effort": "low", "enable_thinking": False, "thinking": True},
        ),
    ],
)
def test_arguments_of_the_template(
    http: httpx.Client, double: Served, given: dict[str, Any], kwargs: dict[str, Any]
) -> None:
    ask(http, **given)
    assert asked(double).template_kwargs == kwargs


def test_functions_as_a_grammar_of_json(http: httpx.Client, double: Served) -> None:
    schema = {"oneOf": [{"type": "object", "properties": {"function": {"const": "f"}}}]}
    ask(http, grammar_json_functions=schema)
    assert asked(double).json_schema == schema


def test_tokens_of_reasoning_are_told(http: httpx.Client, double: Served) -> None:
    says(double, "<think>abc</think>x", size=1)
    assert ask(http)["usage"]["completion_tokens_details"] == {"reasoning_tokens": 12}
    events = stream(http, stream_options={"include_usage": True})
    assert events[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 12}


def test_log_probabilities_of_held_text_come_with_the_next(http: httpx.Client, double: Served) -> None:
    async def script(_: Request) -> AsyncIterator[Sequence[Chunk]]:
        yield [Accepted(1, AnswerFormat("hermes"))]
        for number, text in enumerate(["a", "<to", "ol", "b", "\n"]):
            yield [Text(0, text, (number,), (TokenLogprob(number, text.encode(), -1.0),))]
        yield [Finished(0, "stop")]

    double.dispatcher.script = script
    events = stream(http, tools=TOOLS, logprobs=True)
    told = [
        (event["choices"][0]["delta"].get("content"), [item["token"] for item in logprobs["content"]])
        for event in events
        if (logprobs := event["choices"][0]["logprobs"])
    ]
    assert told == [("a", ["a"]), ("<toolb", ["<to", "ol", "b"]), ("\n", ["\n"])]
    whole = ask(http, tools=TOOLS, logprobs=True)["choices"][0]
    assert whole["message"]["content"] == "a<toolb\n"
    assert len(whole["logprobs"]["content"]) == 5


def test_a_grammar_and_a_required_call_exclude_each_other(http: httpx.Client, double: Served) -> None:
    body = {"messages": [USER], "tools": TOOLS, "tool_choice": "required", "grammar": 'root ::= "a"'}
    answer = http.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "grammar")
