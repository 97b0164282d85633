"""Open Responses to the letter: events in order, items, what the engine is asked, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from backends.types import ChatRequest, ImagePart, TextPart
from tests.api.dialects import CALLS, CITY, CRASH, HERMES, THINKING, events, says
from tests.api.double import MODEL
from tests.api.serving import Served
from tests.api.test_streams import saying
from tests.support.images import PNG, data_url

BODY = {"model": MODEL, "input": "hi"}
TOOL = {"type": "function", "name": "weather", "description": "The weather.", "parameters": CITY, "strict": True}
LIFE = ["response.created", "response.in_progress"]
# All that the specification asks of a response, whatever became of it.
FIELDS = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id"),
    *("instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p"),
    *("presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage"),
    *("max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata"),
    *("safety_identifier", "prompt_cache_key", "user"),
}


def create(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post("/v1/responses", json=BODY | body)
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    assert set(value) == FIELDS
    return value


def stream(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = http.post("/v1/responses", json=BODY | body | {"stream": True})
    found = events(answer)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def asked(double: Served) -> ChatRequest:
    request = double.dispatcher.asked[-1]
    assert isinstance(request, ChatRequest)
    return request


def part_events(stem: str, deltas: int) -> list[str]:
    """The types of the events of an item with one part."""
    middle = [f"{stem}.delta"] * deltas
    added = ["response.output_item.added", "response.content_part.added"]
    return [*added, *middle, f"{stem}.done", "response.content_part.done", "response.output_item.done"]


def test_a_stream_of_text(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hel", "lo\u2028")
    found = stream(http, {"metadata": {"a": "b"}})
    assert [event["type"] for event in found] == [*LIFE, *part_events("response.output_text", 2), "response.completed"]
    created, progress, added, part, first, second, done, part_done, item_done, completed = found
    identity = created["response"]["id"]
    assert created["response"]["status"] == progress["response"]["status"] == "in_progress"
    assert (created["response"]["output"], created["response"]["usage"]) == ([], None)
    item = added["item"]["id"]
    assert item.startswith("msg_")
    assert identity.removeprefix("resp_") in item
    empty = {"type": "message", "id": item, "status": "in_progress", "role": "assistant", "content": []}
    assert added["item"] == empty
    place = {"item_id": item, "output_index": 0, "content_index": 0}
    whole = {"type": "output_text", "text": "Hello\u2028", "annotations": [], "logprobs": []}
    assert part == place | {
        "type": "response.content_part.added",
        "sequence_number": 3,
        "part": whole | {"text": ""},
    }
    for event, text in ((first, "Hel"), (second, "lo\u2028")):
        number = event["sequence_number"]
        kind = "response.output_text.delta"
        assert event == place | {"type": kind, "sequence_number": number, "delta": text, "logprobs": []}
    assert done == place | {
        "type": "response.output_text.done",
        "sequence_number": 6,
        "text": "Hello\u2028",
        "logprobs": [],
    }
    assert part_done["part"] == whole
    assert item_done["item"] == empty | {"status": "completed", "content": [whole]}
    response = completed["response"]
    assert set(response) == FIELDS
    assert (response["status"], response["id"], response["metadata"]) == ("completed", identity, {"a": "b"})
    assert response["output"] == [item_done["item"]]
    assert response["completed_at"] >= response["created_at"]
    assert response["usage"]["total_tokens"] == response["usage"]["input_tokens"] + response["usage"]["output_tokens"]


def test_a_stream_of_tool_calls(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says(*CALLS, form=HERMES)
    found = stream(http, {"tools": [TOOL]})
    kinds = [event["type"] for event in found]
    stem = "response.function_call_arguments"
    assert kinds[:7] == [*LIFE, *part_events("response.output_text", 1)][:7]
    assert kinds.count(f"{stem}.done") == 2
    for number, city in ((1, "Paris"), (2, "Rome")):
        own = [event for event in found if event.get("output_index") == number]
        added, *deltas, done, item_done = own
        assert added["item"]["arguments"] == ""
        assert {event["type"] for event in deltas} == {f"{stem}.delta"}
        assert "".join(event["delta"] for event in deltas) == done["arguments"] == f'{{"city": "{city}"}}'
        assert all(event["item_id"] == added["item"]["id"] for event in (*deltas, done))
        item = item_done["item"]
        assert set(item) == {"type", "id", "call_id", "name", "arguments", "status"}
        assert (item["type"], item["name"], item["status"]) == ("function_call", "weather", "completed")
    output = found[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert output[1]["call_id"] != output[2]["call_id"]
    assert found[-1]["response"]["tools"] == [TOOL]


def test_a_stream_of_reasoning(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hm", "m.</think>", "Yes.", form=THINKING)
    found = stream(http, {"reasoning": {"effort": "low"}})
    assert [event["type"] for event in found] == [
        *LIFE,
        *part_events("response.reasoning_text", 2),
        *part_events("response.output_text", 1),
        "response.completed",
    ]
    response = found[-1]["response"]
    thought, said = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert thought["summary"] == []
    assert said["content"][0]["text"] == "Yes."
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert response["reasoning"] == {"effort": "low", "summary": None}
    assert asked(double).template_kwargs == {"enable_thinking": True, "reasoning_effort": "low"}


def test_a_length_stop_is_incomplete(http: httpx.Client, double: Served) -> None:
    found = stream(http, {"max_output_tokens": 3})
    *_, item_done, last = found
    assert last["type"] == "response.incomplete"
    assert item_done["item"]["status"] == "incomplete"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    whole = create(http, {"max_output_tokens": 3})
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_an_error_in_the_middle(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("Hel", error=CRASH)
    found = stream(http, {})
    *_, item_done, error, failed = found
    assert item_done["item"]["status"] == "incomplete"
    number = error.pop("sequence_number")
    assert number == len(found) - 2
    assert error == {"type": "error", "code": "engine_crashed", "message": "The engine died.", "param": None}
    assert failed["type"] == "response.failed"
    response = failed["response"]
    assert (response["status"], response["error"]) == (
        "failed",
        {"code": "server_error", "message": "The engine died."},
    )
    assert http.get(f"/v1/responses/{response['id']}").json() == response
    assert double.dispatcher.running == 0
    for script in (says("Hel", error=CRASH), saying([], CRASH)):
        double.dispatcher.script = script
        answer = http.post("/v1/responses", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_crashed")


def test_the_conversation_goes_back_to_its_first_turn(http: httpx.Client, double: Served) -> None:
    last = None
    for turn in range(4):
        double.dispatcher.script = says(f"answer {turn}")
        extra = {"previous_response_id": last, "instructions": f"rule {turn}", "input": f"question {turn}"}
        last = create(http, extra)["id"]
    messages = [(message.role, message.content) for message in asked(double).messages]
    assert messages == [
        ("system", "rule 3"),  # instructions are not inherited
        *(pair for turn in range(3) for pair in (("user", f"question {turn}"), ("assistant", f"answer {turn}"))),
        ("user", "question 3"),
    ]


def test_items(http: httpx.Client, double: Served) -> None:
    image = data_url(PNG)
    first = create(http, {})
    given = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look."}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "content": None},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Sun."},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "Rain."}]},
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "So."}, {"type": "refusal", "refusal": "No."}],
        },
        {"type": "item_reference", "id": first["output"][0]["id"]},
        {"role": "user", "content": [{"type": "input_image", "image_url": image}, {"type": "input_text", "text": "?"}]},
    ]
    double.dispatcher.script = says("ok")
    create(http, {"input": given, "tools": [TOOL]})
    system, user, call, one, two, said, last = asked(double).messages
    assert (system.role, system.content) == ("system", "Be kind.")
    assert (user.role, user.content) == ("user", "Look.")
    assert (call.role, call.reasoning, call.content) == ("assistant", "Hm.", "")
    assert [(item.id, item.arguments) for item in call.tool_calls] == [("c1", '{"city":"Paris"}'), ("c2", "{}")]
    assert [(item.role, item.content, item.tool_call_id, item.name) for item in (one, two)] == [
        ("tool", "Sun.", "c1", "weather"),
        ("tool", "Rain.", "c2", "weather"),
    ]
    assert (said.role, said.content) == ("assistant", f"So.\nNo.\n{first['output'][0]['content'][0]['text']}")
    assert last.content == (ImagePart(data=PNG, media_type="image/png"), TextPart("?"))


@pytest.mark.parametrize(
    ("choice", "mode", "allowed"),
    [
        (None, "auto", ()),
        ("auto", "auto", ()),
        ("none", "none", ()),
        ("required", "required", ()),
        ({"type": "function", "name": "weather"}, "required", ("weather",)),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
            "auto",
            ("weather",),
        ),
    ],
)
def test_choices_of_tools(http: httpx.Client, double: Served, choice: Any, mode: str, allowed: tuple[str, ...]) -> None:
    double.dispatcher.script = says("ok")
    create(http, {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False})
    found = asked(double).tool_choice
    assert (found.mode, found.allowed) == (mode, allowed)
    assert found.parallel is (mode == "none")


@pytest.mark.parametrize("where", ["text", "text_format"])
def test_structured_output(http: httpx.Client, double: Served, where: str) -> None:
    wanted = {"type": "json_schema", "name": "place", "schema": CITY}
    response = create(http, {where: {"format": wanted} if where == "text" else wanted})
    assert response["output"][0]["content"][0]["text"] == '{"city": "word"}'
    assert response["text"]["format"]["schema"] == CITY
    create(http, {"text": {"format": {"type": "json_object"}}})
    assert asked(double).json_schema == {}


def test_logprobs(http: httpx.Client) -> None:
    response = create(http, {"top_logprobs": 2, "max_output_tokens": 4})
    entries = response["output"][0]["content"][0]["logprobs"]
    assert len(entries) == 4
    assert len(entries[0]["top_logprobs"]) == 2
    found = stream(http, {"include": ["message.output_text.logprobs"], "max_output_tokens": 4})
    told = [entry for event in found if event["type"].endswith("text.delta") for entry in event["logprobs"]]
    assert len(told) == 4


def test_sampling(http: httpx.Client, double: Served) -> None:
    double.dispatcher.script = says("ok")
    wanted = {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 1, "frequency_penalty": -1, "max_output_tokens": 9}
    response = create(http, wanted)
    request = asked(double)
    assert (request.sampling.temperature, request.sampling.top_p, request.max_tokens) == (0.5, 0.9, 9)
    assert (request.sampling.presence_penalty, request.sampling.frequency_penalty) == (1, -1)
    assert {name: response[name] for name in wanted} == wanted


def test_truncation(http: httpx.Client, double: Served) -> None:
    turns = [
        {"role": role, "content": f"{role} {number} " + "x" * 150}
        for number in range(20)
        for role in ("user", "assistant")
    ]
    question = {"role": "user", "content": "And?"}
    body = {"input": [{"role": "system", "content": "Be kind."}, *turns, question]}
    refused = http.post("/v1/responses", json=BODY | body)
    assert refused.status_code == 400
    assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == ("context_length_exceeded", "input")
    for streamed in (False, True):
        double.dispatcher.asked.clear()
        answer = http.post("/v1/responses", json=BODY | body | {"truncation": "auto", "stream": streamed})
        assert answer.status_code == 200
        kept = asked(double).messages
        assert (kept[0].role, kept[1].role, kept[-1].content) == ("system", "user", "And?")
        assert len(kept) < 20
    hopeless = http.post("/v1/responses", json=BODY | {"input": "x" * 9999, "truncation": "auto"})
    assert hopeless.json()["error"]["code"] == "context_length_exceeded"


def one(item: Any) -> dict[str, Any]:
    return {"input": [item]}


def part(value: Any) -> dict[str, Any]:
    return one({"role": "user", "content": [value]})


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 7}, "input"),
    (one("x"), "input[0]"),
    (one({}), "input[0].type"),
    (one({"type": "web_search_call"}), "input[0].type"),
    (one({"role": "wizard", "content": "x"}), "input[0].role"),
    (one({"role": "user"}), "input[0].content"),
    (one({"type": "function_call", "name": "x", "arguments": "{}"}), "input[0].call_id"),
    (one({"type": "function_call", "call_id": "x", "name": "x", "arguments": {}}), "input[0].arguments"),
    (one({"type": "function_call_output", "call_id": "x"}), "input[0].output"),
    (one({"type": "reasoning", "content": "x", "summary": 7}), "input[0].summary"),
    (one({"type": "item_reference"}), "input[0].id"),
    (part("x"), "input[0].content[0]"),
    (part({"type": "input_text"}), "input[0].content[0].text"),
    (part({"type": "input_file", "file_id": "x"}), "input[0].content[0].type"),
    (part({"type": "input_image"}), "input[0].content[0].image_url"),
    (part({"type": "input_image", "image_url": "data:image/png;base64,?"}), "input[0].content[0].image_url"),
    ({"model": 7}, "model"),
    ({"instructions": 7}, "instructions"),
    ({"previous_response_id": 7}, "previous_response_id"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 2**40}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": "x"}, "top_p"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"presence_penalty": 9}, "presence_penalty"),
    ({"tools": "x"}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [TOOL | {"parameters": {"type": "nonsense"}}]}, "tools[0].parameters.type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
    ({"metadata": {"a": 7}}, "metadata.a"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
    ({"store": "no"}, "store"),
    ({"stream": 7}, "stream"),
    ({"background": True, "store": False}, "background"),
    ({"truncation": "some"}, "truncation"),
    ({"include": "x"}, "include"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input(http: httpx.Client, double: Served, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/responses", json=BODY | body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert double.dispatcher.asked == []


def test_what_is_missing(http: httpx.Client) -> None:
    unknown = http.post("/v1/responses", json=BODY | {"previous_response_id": "resp_x"})
    assert unknown.status_code == 404
    error = unknown.json()["error"]
    assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
    reference = http.post("/v1/responses", json=BODY | one({"type": "item_reference", "id": "msg_x"}))
    assert (reference.status_code, reference.json()["error"]["param"]) == (404, "input[0].id")
    assert http.post("/v1/responses", json=BODY | {"model": "none"}).json()["error"]["code"] == "model_not_found"


def test_unknown_fields_and_nulls_are_ignored(http: httpx.Client, double: Served) -> None:
    nothing = ("instructions", "tools", "tool_choice", "text", "reasoning", "metadata", "store", "stream", "include")
    create(http, {"something": 1, **dict.fromkeys(nothing)})
