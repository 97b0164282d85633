"""A model's own template: rendered as transformers does, and shut in: it is a stranger's program."""

from __future__ import annotations

from typing import Any

import pytest

from backends.chat.template import ChatTemplate
from backends.types import CallerError, LoadFailed, Message, TextPart

TURNS = (Message(role="system", content="Be brief."), Message(role="user", content="<Hi> & 'bye'", name="Ann"))


def render(source: str, kwargs: dict[str, Any] | None = None) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(TURNS, kwargs or {})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[1].content }}{{ eos_token }}", "<s><Hi> & 'bye'</s>"),
        ("{% for m in messages %}{{ m['role'] }}{% if not loop.last %},{% endif %}{% endfor %}", "system,user"),
        ("a\n    {% if add_generation_prompt %}\nb\n    {% endif %}\nc", "a\nb\nc"),
        ("{% for m in messages %}{% if loop.index0 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "system"),
        ("{{ messages[1]|tojson }}", '{"role": "user", "content": "<Hi> & \'bye\'", "name": "Ann"}'),
        ("{{ {'a': [1]}|tojson(indent=1) }}", '{\n "a": [\n  1\n ]\n}'),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{{ missing }}{{ messages[0].name }}", ""),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ enable_thinking }}", "False"),
    ],
)
def test_the_dialect(source: str, text: str) -> None:
    assert render(source, {"enable_thinking": False}) == text


PARTS = """
{%- for m in messages %}{{ m.role }}:
{%- for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% elif part.type == 'image' %}<image>{% endif %}
{%- endfor %};{% endfor %}"""


def test_a_template_that_knows_parts_alone_gets_parts() -> None:
    """As those of SmolVLM and LLaVA are."""
    assert render(PARTS) == "system:Be brief.;user:<Hi> & 'bye';"
    parts = Message(role="user", content=(TextPart("<mark>"), TextPart("What is it?")))
    template = ChatTemplate(PARTS, bos="", eos="")
    assert template.render([parts], {}) == "user:<mark>What is it?;"
    begun = [*TURNS, Message(role="assistant", content="It is")]
    assert template.render(begun, {}, continues=True).endswith("assistant:It is")


def test_a_template_that_knows_both_gets_text() -> None:
    source = "{% for m in messages %}{{ m.content if m.content is string else 'parts' }};{% endfor %}"
    assert render(source) == "Be brief.;<Hi> & 'bye';"


def test_a_caller_cannot_replace_what_is_ours() -> None:
    mine = {"messages": [], "bos_token": "x", "add_generation_prompt": False}
    assert render("{{ bos_token }}{{ messages|length }}{{ add_generation_prompt }}", mine) == "<s>2True"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('Roles must alternate.') }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].role }}",
        "{{ messages + 1 }}",
        "{{ messages[0].content() }}",
        "{{ strftime_now(7) }}",
        "{{ range(10 ** 9)|length }}",
        "{{ {}|tojson(indent=[]) }}",
        "{{ missing.at.all }}",
        "{{ missing|tojson }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'other' %}",
    ],
)
def test_what_it_refuses_is_the_callers_fault(source: str) -> None:
    with pytest.raises(CallerError, match="chat template refuses") as caught:
        render(source)
    assert caught.value.param == "messages"


def test_its_own_words_are_passed_on() -> None:
    with pytest.raises(CallerError, match="Roles must alternate"):
        render("{{ raise_exception('Roles must alternate.') }}")


GLOBALS = "__globals__"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ [''.__class__]|map(attribute='__mro__')|list }}",
        "{{ messages.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ joiner.__init__[GLOBALS] }}",
        "{{ namespace.__init__.__globals__['__builtins__'] }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ strftime_now.__globals__.datetime }}",
        "{{ strftime_now.__code__.co_consts }}",
        "{{ self.__init__.__globals__.x }}",
        "{{ self._TemplateReference__context.eval_ctx }}",
        "{{ lipsum.__globals__.os }}",
        "{{ range.__self__.open }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
        "{{ ('{0.__class__.__mro__}'|safe).format('') }}",
        "{% set x = ''.format %}{{ '{0.__class__.__mro__}'|attr('format')('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'root'}) }}",
        "{{ messages.clear() }}",
        "{{ [1].__reduce__()[0].__mro__ }}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends '/etc/passwd' %}",
    ],
)
def test_an_escape_is_refused(source: str) -> None:
    with pytest.raises(CallerError):
        render(source, {"GLOBALS": GLOBALS})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ messages.__class__ }}",
        "{{ messages|attr('__len__') }}",
        "{{ ''|attr('__cl' ~ 'ass__')|attr('__mro__') }}",
    ],
)
def test_what_is_unsafe_does_not_even_show(source: str) -> None:
    assert render(source) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{",
        "{% for %}",
        "{% endif %}",
        "{{ x | nofilter }}",
        "{% unknown %}",
        "{% for m in messages %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if 1 %}" * 5000,
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "-" * 5000 + "1 }}",
    ],
    ids=lambda source: str(source[:12]),
)
def test_a_broken_one_cannot_be_loaded(source: str) -> None:
    with pytest.raises(LoadFailed, match="chat template is broken"):
        ChatTemplate(source, bos="", eos="")
