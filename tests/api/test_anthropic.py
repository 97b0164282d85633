"""Anthropic's messages to the letter: streams event by event, what the engine is asked, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
import trio.testing

from api.calls import noticing_silence
from api.sse import PING_S
from backends.types import Accepted, Busy, ChatRequest, Chunk, ImagePart, Message, Request, Text, TextPart
from tests.api.dialects import CALLS, CITY, CRASH, HERMES, THINKING, events, says
from tests.api.double import MODEL
from tests.api.serving import Served
from tests.support.images import PNG

HELLO = [{"role": "user", "content": "hi"}]
BODY = {"model": MODEL, "max_tokens": 64, "messages": HELLO}
TOOLS = [{"name": "weather", "description": "The weather.", "input_schema": CITY}]
ENABLED = {"type": "enabled", "budget_tokens": 1024}


def post(http: httpx.Client, body: dict[str, Any], **headers: str) -> httpx.Response:
    return http.post("/v1/messages", json=BODY | body, headers=headers)


def stream(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    return events(post(http, body | {"stream": True}))


def asked(double: Served) -> ChatRequest:
    request = double.dispatcher.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of one content block."""
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text_block(index: int, *texts: str) -> list[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in texts))


def end(found: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """Stop reason and sequence of a stream, whose last two events are checked."""
    delta, stop = found[-2:]
    assert list(delta) == ["type", "delta", "usage"]
    assert set(delta["usage"]) >= {"input_tokens", "output_tokens", "cache_read_input_tokens"}
    assert stop == {"type": "message_stop"}
    return delta["delta"]["stop_reason"], delta["delta"]["stop_sequence"]


def test_a_stream_of_text(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hel", "lo\u2028")
    start, ping, *rest = stream(http, {})
    message = start["message"]
    assert message.pop("id").startswith("msg_")
    assert message.pop("usage")["input_tokens"] == 3
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    assert ping == {"type": "ping"}
    assert rest[:-2] == text_block(0, "Hel", "lo\u2028")
    assert end(rest) == ("end_turn", None)


def test_a_stream_of_tool_calls(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says(*CALLS, form=HERMES)
    _, _, *rest = stream(http, {"tools": TOOLS})
    assert rest[:3] == text_block(0, "I look.")
    assert end(rest) == ("tool_use", None)
    starts = [event["content_block"] for event in rest if event["type"] == "content_block_start"]
    assert [start["type"] for start in starts] == ["text", "tool_use", "tool_use"]
    assert all(start["id"].startswith("toolu_") and start["input"] == {} for start in starts[1:])
    assert starts[1]["id"] != starts[2]["id"]
    assert [start["name"] for start in starts[1:]] == ["weather", "weather"]
    for index, city in ((1, "Paris"), (2, "Rome")):
        deltas = [event["delta"] for event in rest if event.get("index") == index and "delta" in event]
        assert {delta["type"] for delta in deltas} == {"input_json_delta"}
        assert "".join(delta["partial_json"] for delta in deltas) == f'{{"city": "{city}"}}'

    double.dispatcher.script = says(*CALLS, form=HERMES)
    whole = post(http, {"tools": TOOLS}).json()
    assert whole["stop_reason"] == "tool_use"
    assert [part["type"] for part in whole["content"]] == ["text", "tool_use", "tool_use"]
    assert [part["input"] for part in whole["content"][1:]] == [{"city": "Paris"}, {"city": "Rome"}]


def test_a_call_that_is_cut_off_is_a_length_stop(http: httpx.Client, double: Served) -> None:
    cut = '<tool_call>{"name": "weather", "arguments": {"ci'
    double.dispatcher.script = says(cut, form=HERMES, reason="length")
    whole = post(http, {"tools": TOOLS}).json()
    assert whole["content"][0]["input"] == {}
    assert whole["stop_reason"] == "model_context_window_exceeded"  # the script has used no tokens of the 64


def test_thinking_is_shown_to_those_who_enabled_it(http: httpx.Client, double: Served) -> None:
    thoughts = says("Hm", "m.</think>", "Yes.", form=THINKING)
    double.dispatcher.script = thoughts
    _, _, *rest = stream(http, {"thinking": ENABLED})
    signature = rest[3]["delta"]["signature"]
    assert signature
    assert rest[:-2] == [
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Hm"},
            {"type": "thinking_delta", "thinking": "m."},
            {"type": "signature_delta", "signature": signature},
        ),
        *text_block(1, "Yes."),
    ]
    assert asked(double).template_kwargs == {"enable_thinking": True}
    double.dispatcher.script = thoughts
    whole = post(http, {"thinking": ENABLED}).json()
    assert whole["content"][0] == {"type": "thinking", "thinking": "Hmm.", "signature": signature}
    assert whole["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    for thinking in (None, {"type": "disabled"}, ENABLED | {"display": "omitted"}):
        double.dispatcher.script = thoughts
        assert [part["type"] for part in post(http, {"thinking": thinking}).json()["content"]] == ["text"]


def test_reasons_to_stop(http: httpx.Client, double: Served) -> None:
    assert end(stream(http, {"max_tokens": 3})) == ("max_tokens", None)
    double.dispatcher.script = says("so", stop="END")
    assert end(stream(http, {"stop_sequences": ["END", "x"]})) == ("stop_sequence", "END")
    assert asked(double).stop == ("END", "x")
    double.dispatcher.script = says("so", stop="<of the model>")
    assert end(stream(http, {"stop_sequences": ["END"]})) == ("end_turn", None)
    double.dispatcher.script = says("", reason="stop")
    whole = post(http, {}).json()
    assert (whole["content"], whole["stop_reason"]) == ([], "end_turn")


def test_an_error_in_the_middle_is_the_last_event(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hel", error=CRASH)
    *_, last = stream(http, {})
    assert last.pop("request_id")
    assert last == {"type": "error", "error": {"type": "api_error", "message": "The engine died."}}
    assert double.dispatcher.running == 0
    answer = post(http, {})  # the same, not streamed
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "api_error")


async def test_a_long_silence_has_pings(autojump_clock: trio.testing.MockClock) -> None:
    async def slow() -> Any:
        yield [Accepted(1)]
        await trio.sleep(2.5 * PING_S)
        yield [Text(0, "x")]

    async with noticing_silence(slow(), PING_S) as batches:
        sizes = [len(batch) async for batch in batches]
    assert sizes == [1, 0, 0, 1]


async def test_silence_ends_with_the_reader(autojump_clock: trio.testing.MockClock) -> None:
    async def endless() -> Any:
        while True:
            await trio.sleep(1)
            yield []

    async with noticing_silence(endless(), 1000) as batches:
        async for _ in batches:
            break


def test_what_the_engine_is_asked(http: httpx.Client, double: Served) -> None:
    image = base64.b64encode(PNG).decode()
    body = {
        "system": [
            {"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "kind."},
        ],
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0,
        "tools": TOOLS,
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "two"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
                    {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {"city": "Rome"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Sun."}]},
                    {"type": "tool_result", "tool_use_id": "toolu_2", "content": "No.", "is_error": True},
                    {"type": "text", "text": "And?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image}},
                ],
            },
        ],
    }
    double.dispatcher.script = says("ok")
    assert post(http, body).status_code == 200
    request = asked(double)
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_k) == (64, 0.5, 7)
    assert request.sampling.top_p is not None
    assert request.sampling.top_p > 0
    assert request.tools[0].parameters == CITY
    assert (request.tool_choice.mode, request.tool_choice.allowed, request.tool_choice.parallel) == (
        "required",
        ("weather",),
        False,
    )
    system, user, assistant, first, second, last = request.messages
    assert (system.role, system.content) == ("system", "Be\nkind.")
    assert (user.role, user.content) == ("user", "one\ntwo")
    assert (assistant.reasoning, assistant.content) == ("Hm.", "I look.")
    assert [(call.id, call.name, call.arguments) for call in assistant.tool_calls] == [
        ("toolu_1", "weather", '{"city": "Paris"}'),
        ("toolu_2", "weather", '{"city": "Rome"}'),
    ]
    assert (first.role, first.content, first.tool_call_id, first.name) == ("tool", "Sun.", "toolu_1", "weather")
    assert second.content == "Error:\nNo."
    assert last.content == (TextPart("And?"), ImagePart(data=PNG, media_type="image/png"))


@pytest.mark.parametrize(
    ("choice", "mode"), [({"type": "auto"}, "auto"), ({"type": "any"}, "required"), ({"type": "none"}, "none")]
)
def test_choices_of_tools(http: httpx.Client, double: Served, choice: dict[str, str], mode: str) -> None:
    double.dispatcher.script = says("ok")
    assert post(http, {"tools": TOOLS, "tool_choice": choice}).status_code == 200
    assert (asked(double).tool_choice.mode, asked(double).tool_choice.parallel) == (mode, True)


def test_structured_output(http: httpx.Client, double: Served) -> None:
    whole = post(http, {"output_config": {"format": {"type": "json_schema", "schema": CITY}}}).json()
    assert whole["content"][0]["text"] == '{"city": "word"}'


def test_tokens_are_counted_and_nothing_is_generated(http: httpx.Client, double: Served) -> None:
    produced: list[Sequence[Chunk]] = []

    def counting(request: Request) -> Any:
        async def script() -> Any:
            yield [Accepted(77)]
            produced.append([])
            yield []

        return script()

    double.dispatcher.script = counting
    answer = http.post("/v1/messages/count_tokens", json={"model": MODEL, "messages": HELLO, "tools": TOOLS})
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 77})
    assert asked(double).tools
    assert produced == []
    assert double.dispatcher.running == 0


def test_versions(http: httpx.Client, double: Served) -> None:
    for version in ("2023-06-01", "2026-10-21"):
        double.dispatcher.script = says("ok")
        assert post(http, {}, **{"anthropic-version": version}).status_code == 200
    answer = post(http, {}, **{"anthropic-version": "1999-01-01"})
    assert answer.status_code == 400
    assert "1999-01-01" in answer.json()["error"]["message"]


def test_the_id_of_the_request_is_in_header_and_error(http: httpx.Client) -> None:
    answer = post(http, {"model": "none"}, **{"X-Correlation-ID": "mine"})
    assert answer.headers["request-id"] == answer.json()["request_id"] == "mine"


def test_busy(http: httpx.Client, double: Served) -> None:
    async def full() -> None:
        raise Busy("The queue is full.", retry_after_s=2.4)

    double.dispatcher.opening = full
    answer = post(http, {"stream": True})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "3")
    assert answer.json()["error"] == {"type": "rate_limit_error", "message": "The queue is full."}


def message(content: Any, role: Any = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


def begun(content: Any) -> list[dict[str, Any]]:
    """A conversation whose last message is the beginning of the answer."""
    return [*HELLO, {"role": "assistant", "content": content}]


def test_an_answer_that_has_begun_goes_on(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("and on")
    answer = post(http, {"messages": begun([{"type": "text", "text": "On"}])})
    assert answer.json()["content"] == [{"type": "text", "text": "and on"}]
    assert asked(double).continues
    assert asked(double).messages[-1] == Message(role="assistant", content="On")
    post(http, {})
    assert not asked(double).continues
    count = http.post("/v1/messages/count_tokens", json={"model": MODEL, "messages": begun("On")})
    assert count.status_code == 200
    assert asked(double).continues


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": begun("So ")}, "messages[1].content[0].text"),
    ({"messages": begun("")}, "messages[1].content[0].text"),
    ({"messages": begun([])}, "messages[1].content"),
    ({"messages": begun([{"type": "tool_use", "id": "x", "name": "y", "input": {}}])}, "messages[1].content"),
    ({"messages": begun("So"), "thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
    ({"messages": begun("So"), "tools": TOOLS, "tool_choice": {"type": "any"}}, "tool_choice"),
    (
        {"messages": begun("So"), "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        "output_config.format",
    ),
    (message("x", "tool"), "messages[0].role"),
    (message(None), "messages[0].content"),
    (message(7), "messages[0].content"),
    (message(["x"]), "messages[0].content[0]"),
    (message([{"type": "text"}]), "messages[0].content[0].text"),
    (message([{"type": "text", "text": 7}]), "messages[0].content[0].text"),
    (message([{"type": "document", "source": {}}]), "messages[0].content[0].type"),
    (message([{"type": 7}]), "messages[0].content[0].type"),
    (message([{"type": "image", "source": {"type": "ftp"}}]), "messages[0].content[0].source.type"),
    (
        message([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "?"}}]),
        "messages[0].content[0].source.data",
    ),
    (
        message([{"type": "image", "source": {"type": "base64", "media_type": "text/html", "data": ""}}]),
        "messages[0].content[0].source.media_type",
    ),
    (message([{"type": "tool_result", "content": "x"}]), "messages[0].content[0].tool_use_id"),
    (message([{"type": "tool_result", "tool_use_id": "x", "is_error": "no"}]), "messages[0].content[0].is_error"),
    (message([{"type": "tool_use", "id": "x", "name": "y", "input": "z"}]), "messages[0].content[0].input"),
    ({"system": 7}, "system"),
    ({"system": [{"type": "image", "source": {}}]}, "system[0]"),
    ({"temperature": 1.5}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"top_k": "x"}, "top_k"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"stop_sequences": ["x"] * 99}, "stop_sequences"),
    ({"stop_sequences": ["x" * 5000]}, "stop_sequences[0]"),
    ({"stream": "yes"}, "stream"),
    ({"tools": "x"}, "tools"),
    ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "x y", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"name": "x", "type": "web_search_20250305"}]}, "tools[0].type"),
    ({"tools": [*TOOLS, *TOOLS]}, "tools[1].name"),
    ({"tools": [{"name": "x", "input_schema": {"type": "nonsense"}}]}, "tools[0].input_schema.type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 3}}, "thinking.budget_tokens"),
    ({"thinking": "on"}, "thinking"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
]


@pytest.mark.parametrize(("body", "named"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input(http: httpx.Client, double: Served, body: dict[str, Any], named: str) -> None:
    answer = post(http, body)
    assert answer.status_code == 400, answer.text
    value = answer.json()
    assert value["type"] == "error"
    assert value["error"]["type"] == "invalid_request_error"
    assert named in value["error"]["message"]
    assert double.dispatcher.asked == []
    unlimited = {name: item for name, item in (BODY | body).items() if name != "max_tokens"}
    shared = "max_tokens" not in body and not {"temperature", "top_p", "top_k", "stop_sequences"} & set(body)
    if shared and not {"stream", "output_config"} & set(body):
        assert http.post("/v1/messages/count_tokens", json=unlimited).status_code == 400


def test_unknown_fields_and_nulls_are_ignored(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("ok")
    nothing = ("system", "tools", "tool_choice", "thinking", "temperature", "stop_sequences", "metadata", "stream")
    assert post(http, {"something": 1, **dict.fromkeys(nothing)}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/messages", "/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a": NaN}', b"\xff"])
def test_what_is_no_json(http: httpx.Client, path: str, data: bytes) -> None:
    answer = http.post(path, content=data)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_wrong_method(http: httpx.Client) -> None:
    answer = http.get("/v1/messages")
    assert (answer.status_code, answer.json()["type"]) == (405, "error")
