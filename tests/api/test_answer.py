"""The reader of answers: every family's tool calls, reasoning, and that no cut of a text changes what it means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.answer import AnswerReader, CallArguments, CallStart, Content, Delta, Readers, Reasoning, Reply
from backends.types import Accepted, AnswerFormat, CallSyntax, ChatRequest, Finished, Message, Text, Tool, ToolChoice

WEATHER = Tool(
    name="get_weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
)
TIME = Tool(name="get_time", parameters={"type": "object", "properties": {"zone": {"type": "string"}}})
TOOLS = (WEATHER, TIME)
PARIS = {"city": "Paris", "days": 3}
CET = {"zone": "CET"}
THINK = ("<think>", "</think>")

Calls = list[tuple[str, Any]]

# syntax, the text, content, the calls
CASES: list[tuple[CallSyntax, str, str, Calls]] = [
    ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>', "",
     [("get_weather", PARIS)]),
    ("hermes", 'Let me see.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n'
     '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>\n', "Let me see.",
     [("get_weather", PARIS), ("get_time", CET)]),
    ("hermes", '<tool_call>{"arguments": {"zone": "CET"}, "name": "get_time"}', "", [("get_time", CET)]),
    ("hermes", '<tool_call>{"name": "get_time", "arguments": "{\\"zone\\": \\"CET\\"}"}</tool_call>', "",
     [("get_time", CET)]),
    ("hermes", '<tool_call>{"name": "get_time"}</tool_call>', "", [("get_time", {})]),
    ("hermes", '<tool_call>{"name": "get_time", "arguments": null}</tool_call>', "", [("get_time", {})]),
    ("hermes", '<tool_call>[{"name": "get_time", "arguments": {"zone": "CET"}}, {"name": "get_time", "arguments": {}}]'
     "</tool_call>", "", [("get_time", CET), ("get_time", {})]),
    # The tokenizer has stripped the tags.
    ("hermes", '{"name": "get_time", "arguments": {"zone": "CET"}}\n{"name": "get_time", "arguments": {}}', "",
     [("get_time", CET), ("get_time", {})]),
    # Qwen3-Coder
    ("hermes", "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
     "</parameter>\n</function>\n</tool_call>", "", [("get_weather", PARIS)]),
    ("hermes", "<tool_call>\n<function=get_time>\n<parameter=zone>\n7\n</parameter>\n</function>\n</tool_call>", "",
     [("get_time", {"zone": "7"})]),
    ("hermes", "a < b, and b <tool", "a < b, and b <tool", []),
    ("hermes", "<tool_call>nothing of the kind</tool_call> so", "nothing of the kindso", []),
    ("llama3", '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', "", [("get_weather", PARIS)]),
    ("llama3", '{"type": "function", "name": "get_time", "parameters": {"zone": "CET"}}; '
     '{"name": "get_time", "parameters": {}}', "", [("get_time", CET), ("get_time", {})]),
    ("llama3", '<|python_tag|>{"type": "function", "function": {"name": "get_time", "parameters": {"zone": "CET"}}}',
     "", [("get_time", CET)]),
    ("llama3", '<|python_tag|>get_time.call(zone="CET")', "", [("get_time", CET)]),
    ("llama3", '[get_weather(city="Paris", days=3), get_time(zone="CET")]', "",
     [("get_weather", PARIS), ("get_time", CET)]),
    ("llama3", "[1, 2, 3] are numbers", "[1, 2, 3] are numbers", []),
    ("llama3", '{"name": "Bob", "parameters": {}} is a person', '{"name": "Bob", "parameters": {}} is a person', []),
    ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}, "id": "123456789"}]',
     "", [("get_weather", PARIS)]),
    ("mistral", '[TOOL_CALLS] [{"name": "get_time", "arguments": {"zone": "CET"}}, {"name": "get_time", '
     '"arguments": {}}]', "", [("get_time", CET), ("get_time", {})]),
    ("mistral", 'Well.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]get_time[CALL_ID]12345678a'
     '[ARGS]{"zone": "CET"}', "Well.", [("get_weather", PARIS), ("get_time", CET)]),
    ("mistral", '[TOOL_CALLS]get_time{"zone": "CET"}', "", [("get_time", CET)]),
    ("gemma", '```tool_code\nprint(get_weather(city="Paris", days=3))\n```', "", [("get_weather", PARIS)]),
    ("gemma", '```tool_code\nget_weather("Paris", 3)\n```', "", [("get_weather", PARIS)]),
    ("gemma", 'Sure:\n```json\n{"name": "get_time", "arguments": {"zone": "CET"}}\n```', "Sure:", [("get_time", CET)]),
    ("gemma", "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>", "",
     [("get_weather", PARIS)]),
    ("gemma", '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>', "", [("get_weather", PARIS)]),
    ("gemma", "```python\nprint(1)\n```\nprints one", "```python\nprint(1)\n```\nprints one", []),
    ("deepseek", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n'
     '{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n'
     '```json\n{"zone": "CET"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "",
     [("get_weather", PARIS), ("get_time", CET)]),
    ("deepseek", 'I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{"zone": "CET"}'
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "I look.", [("get_time", CET)]),
    ("functionary", '<function=get_weather>{"city": "Paris", "days": 3}</function>', "", [("get_weather", PARIS)]),
    ("functionary", 'get_weather\n{"city": "Paris", "days": 3}>>>get_time\n{"zone": "CET"}', "",
     [("get_weather", PARIS), ("get_time", CET)]),
    ("functionary", 'all\nI look.>>>get_time\n{"zone": "CET"}', "I look.", [("get_time", CET)]),
    ("functionary", "all\n>>> is a prompt", ">>> is a prompt", []),
    ("json", '{"name": "get_time", "arguments": {"zone": "CET"}}', "", [("get_time", CET)]),
    ("json", '{"tool_calls": [{"name": "get_time", "arguments": {"zone": "CET"}}, {"function": {"name": "get_weather",'
     '"arguments": {"city": "Paris", "days": 3}}}]}', "", [("get_time", CET), ("get_weather", PARIS)]),
    ("json", '```json\n{"name": "get_time", "arguments": {"zone": "CET"}}\n```', "", [("get_time", CET)]),
    ("json", '```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```', []),
    ("json", '{"name": "get_time", "argum', '{"name": "get_time", "argum', []),
    ("json", '{"answer": [1, {"b": "}"}]} ', '{"answer": [1, {"b": "}"}]} ', []),
]  # fmt: skip


def read(form: AnswerFormat, parts: Sequence[str], tools: Sequence[Tool] = TOOLS, **options: Any) -> Reply:
    reader = AnswerReader(form, tools, **options)
    deltas: list[Delta] = []
    for part in parts:
        deltas += reader.push(part, 1)
    deltas += reader.finish()
    seen: set[str] = set()
    for delta in deltas:
        if isinstance(delta, CallStart):
            assert delta.id not in seen
            assert delta.name
            seen.add(delta.id)
            assert delta.index == len(seen) - 1
        else:
            assert delta.text
        if isinstance(delta, CallArguments):
            assert delta.index == len(seen) - 1
    return Reply.of(deltas)


def same(reply: Reply) -> tuple[str, str, list[tuple[str, str]]]:
    """All of a reply but the random ids."""
    return reply.content, reply.reasoning, [(call.name, call.arguments) for call in reply.calls]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1][:24]}")
def test_what_a_family_writes(case: tuple[CallSyntax, str, str, Calls]) -> None:
    syntax, text, content, calls = case
    for parts in ([text], list(text)):
        reply = read(AnswerFormat(syntax), parts)
        assert reply.content == content
        assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == calls


@pytest.mark.parametrize("syntax", sorted({case[0] for case in CASES}))
@given(data=st.data())
def test_any_cut_of_a_text_means_the_same(syntax: CallSyntax, data: st.DataObject) -> None:
    texts = st.sampled_from([case[1] for case in CASES if case[0] == syntax])
    tags = st.sampled_from(
        [
            "<think>",
            "</think>",
            "<tool_call>",
            "[TOOL_CALLS]",
            "{",
            "}",
            '"',
            "\\",
            "\n",
            " ",
            "```",
            ">>>",
            "é",
            "name",
        ]
    )
    # Whole cases, cut ones, and what nobody would write.
    pieces = data.draw(st.lists(st.one_of(texts, tags, st.text(max_size=4)), max_size=6))
    text = "".join(pieces)
    text = text[: data.draw(st.integers(0, len(text)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    form = AnswerFormat(
        syntax, data.draw(st.sampled_from([None, THINK])), data.draw(st.booleans()), data.draw(st.booleans())
    )
    tools = data.draw(st.sampled_from([TOOLS, ()]))
    parallel = data.draw(st.booleans())
    assert same(read(form, parts, tools, parallel=parallel)) == same(read(form, [text], tools, parallel=parallel))


@given(text=st.text(alphabet=' abc<>[]{}\n`"', max_size=30))
def test_text_without_tags_is_content_to_the_last_byte(text: str) -> None:
    assert same(read(AnswerFormat(), list(text), ())) == (text, "", [])


@pytest.mark.parametrize(
    ("form", "text", "reasoning", "content"),
    [
        (AnswerFormat(think=THINK), "<think>\nHm. 2 < 3.\n</think>\n\nYes.", "Hm. 2 < 3.", "Yes."),
        (AnswerFormat(), "<think>\nHm.\n</think>\n\nYes.\n", "Hm.", "Yes.\n"),
        (AnswerFormat(), "\n <thinking>Hm.</thinking>Yes.", "Hm.", "Yes."),
        (AnswerFormat(think=THINK, thinking=True), "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        (AnswerFormat(think=THINK, thinking=True), "<think>Hm.</think>Yes.", "Hm.", "Yes."),
        (AnswerFormat(think=THINK, thinking=True), "Hm. And th", "Hm. And th", ""),  # unclosed
        (AnswerFormat(think=THINK), "<think>Hm.</thi", "Hm.</thi", ""),
        (AnswerFormat(think=THINK), "<think></think>Yes.", "", "Yes."),
        (AnswerFormat(think=THINK), "Yes.</think> No.", "", "Yes.No."),  # a stray end
        (AnswerFormat(think=THINK), "Yes.\n<think>Hm.</think>\nNo.", "Hm.", "Yes.No."),
        (AnswerFormat(), "It writes <think> there.", "", "It writes <think> there."),
        (AnswerFormat("mistral", think=("[THINK]", "[/THINK]")), "[THINK]Hm.[/THINK]Yes.", "Hm.", "Yes."),
        (AnswerFormat(think=THINK, thinking=True, raw=True), "<think>", "", "<think>"),
    ],
)
def test_reasoning(form: AnswerFormat, text: str, reasoning: str, content: str) -> None:
    for parts in ([text], list(text)):
        for tools in (TOOLS, ()):
            assert same(read(form, parts, tools)) == (content, reasoning, [])


def test_reasoning_then_calls() -> None:
    text = '<think>Hm.</think>\n\n<tool_call>{"name": "get_time", "arguments": {"zone": "CET"}}</tool_call>'
    reply = read(AnswerFormat("hermes", THINK), list(text))
    assert same(reply) == ("", "Hm.", [("get_time", '{"zone": "CET"}')])


def test_tokens_of_reasoning_are_counted() -> None:
    reader = AnswerReader(AnswerFormat(think=THINK, thinking=True))
    for part in ("Hm", ". ", "So", "</think>", "\n\n", "Yes", "."):
        reader.push(part, 1)
    assert reader.reasoning_tokens == 4


def test_only_one_call_where_several_are_not_wanted() -> None:
    text = CASES[1][1] + "and more"
    assert [call.name for call in read(AnswerFormat("hermes"), list(text), parallel=False).calls] == ["get_weather"]
    assert read(AnswerFormat("hermes"), [text], parallel=False).content == "Let me see."


def test_arguments_are_passed_on_as_they_come() -> None:
    reader = AnswerReader(AnswerFormat("hermes"), TOOLS)
    assert reader.push('<tool_call>{"name": "get_t') == []
    assert reader.push('ime", ') == []
    start, arguments = reader.push('"arguments": {"zo')
    assert isinstance(start, CallStart)
    assert (start.name, arguments) == ("get_time", CallArguments(0, '{"zo'))
    assert reader.push('ne": "C') == [CallArguments(0, 'ne": "C')]
    assert reader.push('ET"}}') == [CallArguments(0, 'ET"}')]
    assert reader.push("</tool_call>") == []
    assert reader.finish() == []


def test_plain_answers_become_plain() -> None:
    reader = AnswerReader(AnswerFormat())
    assert reader.push("<b") == [Content("<b")]
    assert reader.plain
    thinker = AnswerReader(AnswerFormat(think=THINK))
    assert thinker.push("<think>a") == [Reasoning("a")]
    assert not thinker.plain


def test_a_chat_of_several_choices() -> None:
    request = ChatRequest(model="m", messages=(Message(role="user", content="x"),), n=2, tools=TOOLS)
    readers = Readers(request)
    assert readers.feed(Accepted(3, AnswerFormat("hermes", THINK))) == []
    assert readers.feed(Text(0, "<think>a")) == [Reasoning("a")]
    start, arguments = readers.feed(Text(1, '<tool_call>{"name": "get_time"}'))
    assert isinstance(start, CallStart)
    assert arguments == CallArguments(0, "{}")
    assert readers.feed(Text(0, "</think>b")) == [Content("b")]
    assert (readers[0].calls, readers[1].calls) == (0, 1)


@pytest.mark.parametrize(
    ("choice", "called"),
    [(ToolChoice(mode="none"), False), (ToolChoice(allowed=("get_weather",)), False), (ToolChoice(), True)],
)
def test_only_what_may_be_called_is_a_call(choice: ToolChoice, called: bool) -> None:
    request = ChatRequest(model="m", messages=(Message(role="user", content="x"),), tools=TOOLS, tool_choice=choice)
    readers = Readers(request)
    deltas = [*readers.feed(Accepted(3)), *readers.feed(Text(0, '{"name": "get_time", "arguments": {}}'))]
    deltas += readers.feed(Finished(0, "stop"))
    assert bool(Reply.of(deltas).calls) is called
    assert bool(readers[0].calls) is called
