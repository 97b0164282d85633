"""The official clients of Anthropic, Ollama and Open Responses: against the double, a real model, and the fake one.

Whether a model is clever enough for tools is not tested; the fake one says what it is told to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pydantic
import pytest

from tests.api.dialects import CITY
from tests.api.double import MODEL
from tests.support.ends import until
from tests.support.nodes import RunningNode, running_node, write_model

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SYSTEM = "You are helpful."
QUESTION = "Name a colour."


class Place(pydantic.BaseModel):
    """What a model is to answer."""

    city: str


@pytest.fixture(scope="module")
def obedient_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a fake model answers that says what it is told to: `obedient`, and `thinker`, which thinks first."""
    data = tmp_path_factory.mktemp("obedient")
    write_model(data, "obedient", backend="fake", slots=8, engine={"obeys": True, "calls": "hermes"})
    thinks: dict[str, Any] = {"think": ["<think>", "</think>"], "thinking": True}
    write_model(data, "thinker", backend="fake", slots=8, engine={"obeys": True, **thinks})
    with running_node(data) as node:
        yield node.url


@pytest.fixture
def claude(node_url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=node_url, api_key="none", max_retries=0, timeout=120)


@pytest.fixture
def llama(node_url: str) -> ollama.Client:
    return ollama.Client(host=node_url, timeout=120)


@pytest.fixture
def gpt(node_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{node_url}/v1", api_key="none", max_retries=0, timeout=120)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_anthropic_goes_on_with_an_answer(real_node: RunningNode) -> None:
    claude = anthropic.Anthropic(base_url=real_node.url, api_key="none", max_retries=0, timeout=120)
    asked: dict[str, Any] = {"model": MODEL, "extra_body": {"temperature": 0}}
    question: Any = user("Tell me about the sea.")
    whole = claude.messages.create(max_tokens=40, messages=[question], **asked).content[0]
    assert whole.type == "text"
    cut = whole.text.rindex(" ", 0, len(whole.text) // 2)  # before a space, where a token begins
    begun: Any = {"role": "assistant", "content": whole.text[:cut]}
    rest = claude.messages.create(max_tokens=8, messages=[question, begun], **asked).content[0]
    assert rest.type == "text"
    assert whole.text.startswith(whole.text[:cut] + rest.text)
    assert len(rest.text) > 8


def test_anthropic_whole_and_streamed(claude: anthropic.Anthropic, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": 12,
        "system": SYSTEM,
        "messages": [user(QUESTION)],
        "extra_body": {"temperature": 0},
    }
    whole = claude.messages.create(**asked)
    assert (whole.role, whole.stop_reason) == ("assistant", "max_tokens")
    assert whole.content[0].type == "text"
    with claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text  # type: ignore[union-attr]
    assert final.stop_reason == "max_tokens"
    used = final.usage
    assert used.output_tokens == whole.usage.output_tokens == 12
    total = used.input_tokens + (used.cache_read_input_tokens or 0)
    counted = claude.messages.count_tokens(model=model, system=SYSTEM, messages=[{"role": "user", "content": QUESTION}])
    assert counted.input_tokens == total


def test_anthropic_refusals(claude: anthropic.Anthropic, model: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="none", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model=model, max_tokens=0, messages=[{"role": "user", "content": "x"}])


def test_anthropic_blind_model(claude: anthropic.Anthropic, real_node: RunningNode) -> None:
    seeing = anthropic.Anthropic(base_url=real_node.url, api_key="none", max_retries=0)
    source: Any = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    with pytest.raises(anthropic.BadRequestError):
        seeing.messages.create(
            model="smol",
            max_tokens=5,
            messages=[{"role": "user", "content": [{"type": "image", "source": source}]}],
        )


def test_anthropic_tools_and_thinking(obedient_node: str) -> None:
    claude = anthropic.Anthropic(base_url=obedient_node, api_key="none", max_retries=0)
    tools: Any = [{"name": "weather", "description": "The weather.", "input_schema": CITY}]
    messages: list[Any] = [user(f"say:{CALL}")]
    with claude.messages.stream(model="obedient", max_tokens=99, tools=tools, messages=messages) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    [call] = first.content
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sun."}
    told = {"type": "text", "text": "say:It shines."}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result, told]}]
    second = claude.messages.create(model="obedient", max_tokens=99, tools=tools, messages=messages)
    assert (second.stop_reason, second.content[0].type) == ("end_turn", "text")
    thought = claude.messages.create(
        model="thinker",
        max_tokens=2048,
        thinking={"type": "enabled", "budget_tokens": 1024},
        messages=[{"role": "user", "content": "say:Hm.</think>Yes."}],
    )
    assert [block.type for block in thought.content] == ["thinking", "text"]


def test_ollama_whole_and_streamed(llama: ollama.Client, model: str) -> None:
    options = {"num_predict": 12, "temperature": 0}
    messages = [{"role": "system", "content": SYSTEM}, user(QUESTION)]
    whole = llama.chat(model, messages, options=options)
    streamed = list(llama.chat(model, messages, options=options, stream=True))
    assert "".join(part.message.content or "" for part in streamed) == whole.message.content
    assert (streamed[-1].done, streamed[-1].done_reason, streamed[-1].eval_count) == (True, "length", 12)
    assert llama.generate(model, QUESTION, system=SYSTEM, options=options).response == whole.message.content
    continued = llama.generate(model, "One, two,", raw=True, options=options, stream=True)
    assert "".join(part.response or "" for part in continued)


def test_ollama_formats(llama: ollama.Client, model: str) -> None:
    options = {"num_predict": 200, "temperature": 0}
    answer = llama.chat(model, [user("Where is the Eiffel Tower?")], format=Place.model_json_schema(), options=options)
    assert Place.model_validate_json(answer.message.content or "").city


def test_ollama_embeddings_and_models(llama: ollama.Client, model: str) -> None:
    one, two = llama.embed(model, ["a red apple", "a green pear"]).embeddings
    assert len(one) == len(two) > 0
    assert llama.embeddings(model, "a red apple").embedding == pytest.approx(one, abs=1e-3)
    assert model in [found.model for found in llama.list().models]
    assert "completion" in (llama.show(model).capabilities or [])
    assert model in [found.model for found in llama.ps().models]
    with pytest.raises(ollama.ResponseError) as missing:
        llama.chat("none", [user("x")])
    assert missing.value.status_code == 404


def test_ollama_tools(obedient_node: str) -> None:
    llama = ollama.Client(host=obedient_node)
    tools: Any = [{"type": "function", "function": {"name": "weather", "description": "x", "parameters": CITY}}]
    messages: list[Any] = [user(f"say:{CALL}")]
    first = llama.chat("obedient", messages, tools=tools)
    [call] = first.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Paris"})
    messages += [first.message, {"role": "tool", "tool_name": "weather", "content": "Sun."}, user("say:It shines.")]
    second = llama.chat("obedient", messages, tools=tools)
    assert (second.message.content, second.message.tool_calls) == ("It shines.", None)
    thought = llama.chat("thinker", [user("say:Hm.</think>Yes.")], think=True)
    assert (thought.message.thinking, thought.message.content) == ("Hm.", "Yes.")


def test_ollama_unloads(obedient_node: str) -> None:
    llama = ollama.Client(host=obedient_node)
    llama.generate("thinker", "")
    assert "thinker" in [found.model for found in llama.ps().models]
    assert llama.generate("thinker", "", keep_alive=0).done_reason == "unload"
    assert until(lambda: "thinker" not in [found.model for found in llama.ps().models])


def test_responses_whole_streamed_and_continued(gpt: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "instructions": SYSTEM, "input": QUESTION, "temperature": 0}
    whole = gpt.responses.create(max_output_tokens=12, **asked)
    assert (whole.status, whole.output_text != "") == ("incomplete", True)
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    text = ""
    for event in gpt.responses.create(max_output_tokens=12, stream=True, **asked):
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == whole.output_text
    more = gpt.responses.create(model=model, input="And one more?", previous_response_id=whole.id, max_output_tokens=3)
    assert more.usage is not None
    assert whole.usage is not None
    assert more.usage.input_tokens > whole.usage.input_tokens
    assert gpt.responses.retrieve(more.id).output == more.output
    gpt.responses.delete(more.id)
    with pytest.raises(openai.NotFoundError):
        gpt.responses.retrieve(more.id)


def test_responses_parsed(gpt: openai.OpenAI, model: str) -> None:
    answer = gpt.responses.parse(
        model=model, input="Where is the Eiffel Tower?", text_format=Place, temperature=0, max_output_tokens=200
    )
    assert answer.output_parsed is not None
    assert answer.output_parsed.city


def test_responses_in_the_background_and_resumed(gpt: openai.OpenAI, model: str) -> None:
    stream = gpt.responses.create(model=model, input=QUESTION, background=True, stream=True, max_output_tokens=12)
    first = next(iter(stream))
    assert first.type == "response.created"
    stream.close()
    rest = list(gpt.responses.retrieve(first.response.id, stream=True, starting_after=first.sequence_number))
    assert [event.sequence_number for event in rest] == list(range(1, len(rest) + 1))
    assert rest[-1].type in ("response.completed", "response.incomplete")
    cancelled = gpt.responses.cancel(first.response.id)
    assert cancelled.status == rest[-1].type.removeprefix("response."), "what has ended stays as it is"
    items = gpt.responses.input_items.list(first.response.id).data
    assert items[0].type == "message"


def test_responses_over_a_websocket(gpt: openai.OpenAI, model: str) -> None:
    with gpt.responses.connect() as connection:
        connection.response.create(model=model, input=QUESTION, max_output_tokens=5, store=False)
        for event in connection:
            if event.type in ("response.completed", "response.incomplete"):
                break
        assert event.response.output_text  # type: ignore[union-attr]


def test_responses_tools_end_to_end(obedient_node: str) -> None:
    gpt = openai.OpenAI(base_url=f"{obedient_node}/v1", api_key="none", max_retries=0)
    tools: Any = [{"type": "function", "name": "weather", "parameters": CITY, "strict": True}]
    with gpt.responses.stream(model="obedient", input=f"say:{CALL}", tools=tools) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    [call] = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Paris"}
    given: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "Sun."}, user("say:It shines.")]
    second = gpt.responses.create(model="obedient", input=given, previous_response_id=first.id, tools=tools)
    assert second.output_text == "It shines."
    thought = gpt.responses.create(model="thinker", input="say:Hm.</think>Yes.")
    assert [item.type for item in thought.output] == ["reasoning", "message"]
    assert thought.output_text == "Yes."
