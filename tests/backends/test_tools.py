"""Tools in templates and grammars: how a model is told of them, and how it is held to calling them."""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import Any

import pytest

from api.answer import Delta, Readers, Reply
from backends import llama_cpp
from backends.chat.family import call_syntax, shown_tokens, think_tags
from backends.chat.template import ChatTemplate
from backends.types import (
    Accepted,
    AnswerFormat,
    AudioPart,
    CallerError,
    ChatRequest,
    Finished,
    ImagePart,
    LoadSpec,
    Message,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    Unsupported,
)
from tests.conformance.engines import Answer, ask, ask_all, opened
from tests.support.models import smollm2

os.environ.update(llama_cpp.backend.environment())  # where a worker would find llama.cpp; set before the import
toolgrammar = import_module("backends.llama_cpp.toolgrammar")

CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = Tool(name="get_weather", description="The weather.", parameters=CITY)
TIME = Tool(name="get_time")
CALL = ToolCall(id="call_1", name="get_weather", arguments='{"city": "Rome"}')
TURNS = (
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Well.", reasoning="Hm.", tool_calls=(CALL,)),
    Message(role="tool", content="sunny", name="get_weather", tool_call_id="call_1"),
    Message(role="tool", content="warm", tool_call_id="call_1"),
)
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TOLD = (
    "{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}{{ m.tool_call_id }}"
    "{% for c in m.tool_calls %}{{ c.id }}{{ c.function.name }}ARGUMENTS{% endfor %}{% endfor %}"
)


def made(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="^", eos="$")


def test_a_template_with_tools_gets_them_as_transformers_gives_them() -> None:
    text = made(TOLD.replace("ARGUMENTS", "{{ c.function.arguments | tojson }}")).render(TURNS, {}, [WEATHER])
    described = {"name": "get_weather", "description": "The weather.", "parameters": CITY}
    assert text == (
        json.dumps({"type": "function", "function": described})
        + '<user>Hi<assistant>Hm.Well.call_1get_weather{"city": "Rome"}<tool>sunnycall_1<tool>warmcall_1'
    )


def test_arguments_as_text_where_the_template_joins_them() -> None:
    text = made(TOLD.replace("ARGUMENTS", "{{ '|' + c.function.arguments }}")).render(TURNS, {}, [])
    assert 'get_weather|{"city": "Rome"}' in text


@pytest.mark.parametrize("arguments", ["", "[1]", '{"city": ', "nonsense"])
def test_arguments_that_are_no_object_are_shown_as_they_were(arguments: str) -> None:
    call = ToolCall(id="1", name="f", arguments=arguments)
    template = made(TOLD.replace("ARGUMENTS", "{{ c.function.arguments | tojson }}"))
    text = template.render([Message(role="assistant", tool_calls=(call,))], {}, [])
    assert text.endswith(json.dumps(arguments) if arguments else "{}")


def test_ids_that_mistrals_templates_take() -> None:
    source = TOLD.replace("ARGUMENTS", "{{ c.function.arguments | tojson }}") + "{# alphanumeric, length 9 #}"
    text = made(source).render(TURNS, {}, [])
    short = text.partition("Well.")[2][:9]
    assert short.isalnum()
    assert text.count(short) == 3
    mine = [Message(role="tool", content="x", tool_call_id="abcdefgh1")]
    assert "xabcdefgh1" in made(source).render(mine, {}, [])


def test_a_template_without_tools_gets_plain_messages() -> None:
    text = made(PLAIN).render(TURNS, {}, [WEATHER, TIME])
    system, _, rest = text.partition("<user>")
    assert system.startswith("<system>You can call functions.")
    assert json.dumps({"name": "get_weather", "description": "The weather.", "parameters": CITY}) in system
    assert rest == (
        'Hi\n<assistant>Well.\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n'
        "<user>Result of get_weather: sunny\nResult: warm\n"
    )
    asked = made(PLAIN).render([Message(role="system", content="Be brief."), *TURNS], {}, [TIME])
    assert asked.startswith("<system>Be brief.\n\nYou can call functions.")
    assert made(PLAIN).render(TURNS[:1], {}, []) == "<user>Hi\n"


def test_a_template_without_system_messages_gets_them_from_the_user() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}" + PLAIN
    turns = [Message(role="system", content="Be brief."), Message(role="user", content="Hi")]
    assert made(source).render(turns, {}) == "<user>Be brief.\n\nHi\n"
    with pytest.raises(CallerError, match="No system"):
        made(source).render(turns[:1], {})


def test_an_answer_that_goes_on_from_a_beginning() -> None:
    source = PLAIN.replace("\n", "</s>") + "{% if add_generation_prompt %}<a>{% endif %}"
    turns = [Message(role="user", content="Say cheese"), Message(role="assistant", content="I say ")]
    assert made(source).render(turns, {}, continues=True) == "<user>Say cheese</s><assistant>I say"


def test_blocks_for_training_mean_nothing() -> None:
    assert made("{% generation %}{{ messages[0].content }}{% endgeneration %}").render(TURNS[:1], {}) == "Hi"


@pytest.mark.parametrize(
    ("source", "syntax"),
    [
        ("<tool_call>", "hermes"),
        ("<tool_call><function=", "hermes"),
        ("<|start_header_id|> \"parameters\"", "llama3"),
        ("<|python_tag|>", "llama3"),
        ("[TOOL_CALLS]", "mistral"),
        ("<start_of_turn>", "gemma"),
        ("<|tool_call>", "gemma"),
        ("<｜tool▁call▁begin｜>", "deepseek"),
        ("<|python_tag|><function=", "functionary"),
        (">>>all", "functionary"),
        ("<|im_start|>", "json"),
    ],
)  # fmt: skip
def test_the_family_of_a_template(source: str, syntax: str) -> None:
    assert call_syntax(source) == syntax


def test_the_tags_of_reasoning_in_a_template() -> None:
    assert think_tags("{{ content.split('</think>')[-1] }}") == ("<think>", "</think>")
    assert think_tags("[THINK]") == ("[THINK]", "[/THINK]")
    assert think_tags("no thoughts") is None


class Marks:
    """A vocabulary in which some marks are one token, and the rest are letters."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [7] if text == "<tool_call>" else [8] if text == "</think>" else list(text.encode())


def test_control_tokens_that_are_marks_are_shown() -> None:
    assert shown_tokens(Marks(), "hermes") == {7: b"<tool_call>", 8: b"</think>"}
    assert shown_tokens(Marks(), "llama3") == {8: b"</think>"}


# -- a real model, held to each notation --

SOURCES = {
    "json": "<|im_start|>",
    "hermes": "<tool_call>",
    "llama3": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
    "mistral with ARGS": "[TOOL_CALLS][ARGS]",
    "gemma": "<start_of_turn>",
    "deepseek": "tool▁call▁begin ```json",
    "deepseek 3.1": "tool▁call▁begin",
    "functionary 3.1": "<function=",
    "functionary 3.2": ">>>all",
}
CHATML = (
    "{# MARK #}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(request: ChatRequest, answer: Answer) -> Reply:
    readers = Readers(request)
    deltas: list[Delta] = []
    for chunk in answer.chunks:
        deltas += readers.feed(chunk)
    return Reply.of(deltas)


def asking(**options: Any) -> ChatRequest:
    messages = (Message(role="user", content="What is the weather in Oslo, and what time is it?"),)
    return ChatRequest(model="m", messages=messages, tools=(WEATHER, TIME), **{"max_tokens": 96, **options})


@pytest.mark.parametrize("name", SOURCES)
async def test_a_model_held_to_a_familys_notation_calls(name: str) -> None:
    load = LoadSpec(
        name="m",
        path=str(smollm2()),
        slots=2,
        context_tokens=1024,
        sampling={"temperature": 0.0},
        chat_template=CHATML.replace("MARK", SOURCES[name]),
    )
    async with opened(llama_cpp.backend, load) as worker:  # type: ignore[attr-defined]
        alone = ToolChoice(mode="required", allowed=("get_weather",), parallel=False)
        one = asking(tool_choice=alone, max_tokens=400)  # marks may be a token a byte
        some = asking(tool_choice=ToolChoice(mode="required"))
        answers = await ask_all(worker, [one, some])
        assert answers[0].accepted.format.calls == name.split()[0]
        assert answers[0].finished().reason == "stop"
        reply, several = read(one, answers[0]), read(some, answers[1])
        assert (reply.content, reply.reasoning) == ("", "")
        if not name.startswith("deepseek"):  # its marks may be cut off in the middle of a character of this vocabulary
            assert several.content == ""
        [call] = reply.calls
        assert call.name == "get_weather"
        assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
        assert len(several.calls) <= toolgrammar.MAX_CALLS
        assert {call.name for call in several.calls} <= {"get_weather", "get_time"}
        for call in several.calls[:-1]:  # the last one may be cut off
            json.loads(call.arguments)


async def test_thoughts_come_before_what_a_grammar_holds() -> None:
    source = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    load = LoadSpec(name="m", path=str(smollm2()), slots=2, context_tokens=1024, chat_template=source)
    async with opened(llama_cpp.backend, load) as worker:  # type: ignore[attr-defined]
        for options in (
            {"tool_choice": ToolChoice(mode="required", parallel=False)},
            {"json_schema": CITY, "tool_choice": ToolChoice(mode="none")},
        ):
            request = asking(**options)
            answer = await ask(worker, request)
            assert answer.accepted.format == AnswerFormat("json", ("<think>", "</think>"), True)
            reply = read(request, answer)
            assert reply.reasoning


def test_the_grammar_of_an_answer_or_calls() -> None:
    form = AnswerFormat("hermes", ("<think>", "</think>"), True)
    grammar = toolgrammar.tool_grammar("<tool_call>", form, [WEATHER], parallel=True, schema='{"type": "object"}')
    first = grammar.splitlines()[0]
    assert first.startswith('root ::= thought ("<tool_call>\\n" call')
    assert first.endswith("| answer)")
    assert "{0,7}" in first
    assert 'thought ::= ([^<] | [<] [^/])* "</think>"' in grammar


def test_a_tools_schema_that_cannot_be_used_is_the_tools_fault() -> None:
    bad = Tool(name="f", parameters={"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}})
    with pytest.raises(CallerError) as raised:
        toolgrammar.tool_grammar("", AnswerFormat(), [bad], parallel=True, schema=None)
    assert raised.value.param == "tools"


@pytest.mark.parametrize("part", [ImagePart(data=b"x"), AudioPart(data=b"x")])
async def test_a_part_that_the_model_does_not_understand_is_named(part: ImagePart | AudioPart) -> None:
    load = LoadSpec(name="m", path=str(smollm2()), slots=1, context_tokens=256)
    turns = (Message(role="user", content="a"), Message(role="user", content=(TextPart("b"), part)))
    async with opened(llama_cpp.backend, load) as worker:  # type: ignore[attr-defined]
        with pytest.raises(Unsupported) as raised:
            await ask(worker, ChatRequest(model="m", messages=turns))
    assert raised.value.param == "messages[1].content[1]"


def test_what_is_told_travels() -> None:
    accepted = Accepted(3, AnswerFormat("mistral", ("[THINK]", "[/THINK]"), True))
    assert Readers(asking()).feed(accepted) == []
    assert Readers(asking()).feed(Finished(0, "stop")) == []
