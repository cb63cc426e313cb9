"""Chat templates: rendered as transformers does, chosen from where they are stored, and kept on a short lead."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import zoo
from cases.tokenizers import CHATML, write_tokenizer
from zoo.text import ChatTemplate

TALK = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Is 1 < 2 & 'é' a \"letter\"?"},
    {"role": "assistant", "content": "Yes.", "tool_calls": [{"name": "f", "arguments": {"x": [1, 2.5, None]}}]},
    {"role": "tool", "content": "42", "reasoning": None},
    {"role": "user", "content": "  Thanks  "},
]
TEMPLATES = {
    "chatml": CHATML,
    "blocks": """
    {%- if messages[0]['role'] == 'system' %}
        {%- set system = messages[0].content %}{% set rest = messages[1:] %}
    {%- else %}
        {%- set rest = messages -%}
    {%- endif %}
    {{ bos_token + system }}
    {% for m in rest %}
        {% if loop.first %}first {% elif loop.last %}last of {{ loop.length }} {% endif %}
        {% if m.role == 'tool' %}{% continue %}{% endif %}
        {{ m.role ~ ': ' ~ m['content']|trim }}{{ eos_token }}
    {% endfor %}
    """,
    "macros": """{%- macro show(x, depth=0) -%}
    {%- if x is mapping %}{% for k, v in x|dictsort %}{{ k }}={{ show(v, depth + 1) }};{% endfor %}
    {%- elif x is iterable and x is not string %}[{% for v in x %}{{ show(v) }}{{ "," if not loop.last }}{% endfor %}]
    {%- else %}{{ x }}{% endif %}{%- endmacro %}
    {%- set ns = namespace(count=0, text='') %}
    {%- for m in messages %}
        {%- set ns.count = ns.count + 1 %}{% set ns.text = ns.text + '|' + m.content %}
        {%- if m.tool_calls is defined %}{{ show(m.tool_calls) }}{{ m.tool_calls | tojson }}
        {{- m|tojson(indent=2) }}{% endif %}
        {%- generation %}{{ m.content.split('.')[0].upper() }}{% endgeneration %}
    {%- endfor %}{{ ns.count * 2 }}{{ ns.text }}{{ ['a', 'b'] | join(', ') }}
    {{- '%s-%d' % ('x', 3) }}{{ '{:>4}'.format('r') }}
    {%- for _ in range(3) %}{% if loop.index0 == 1 %}{% break %}{% endif %}x{% endfor %}
    {{- dict(a=1) }}{{ tools is none }}""",
    "filters": """{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}
    {{- messages | rejectattr('role', 'equalto', 'user') | list | length }}{{ messages | groupby('role') | length }}
    {%- set block %}{{ messages[-1].content | replace(' ', '_') | indent(2) }}{% endset %}{{ block | default('none') }}
    {{- undefined_thing | default('none') }}{{ messages[0].get('nothing', 'no') }}{{ 'e' in messages[0].content }}""",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_text_and_ids_are_those_of_transformers(name, prompt, tmp_path):
    from transformers import PreTrainedTokenizerFast

    folder = write_tokenizer(tmp_path, chat_template=TEMPLATES[name])
    ours, theirs = zoo.load_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=prompt)
    assert ours.render(TALK, add_generation_prompt=prompt) == expected
    assert ours.chat(TALK, add_generation_prompt=prompt) == theirs.encode(expected, add_special_tokens=False)


def test_templates_know_further_variables_and_the_date(tmp_path):
    text = "{{ tools[0].name }}{{ enable_thinking }}{{ strftime_now('%Y') }}{{ pad_token is defined }}"
    tokenizer = zoo.load_tokenizer(write_tokenizer(tmp_path, chat_template=text))
    said = tokenizer.render(TALK, tools=[{"name": "f"}], enable_thinking=False)
    assert said == f"fFalse{time.strftime('%Y')}False"


def test_where_templates_are_stored(tmp_path):
    several = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    folder = write_tokenizer(tmp_path, chat_template=several)
    tokenizer = zoo.load_tokenizer(folder)
    assert tokenizer.render(TALK) == "one" and tokenizer.render(TALK, tools=[{"name": "f"}]) == "two"
    assert tokenizer.render(TALK, template="tool_use") == "two"
    with pytest.raises(ValueError, match=r"no chat template 'three'; it has default, tool_use: put"):
        tokenizer.render(TALK, template="three")
    (folder / "chat_template.jinja").write_text("file")
    assert zoo.load_tokenizer(folder).render(TALK) == "file"
    write_tokenizer(folder, chat_template=None)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no chat template: put a chat_template.jinja beside.*--plain"):
        zoo.load_tokenizer(folder).chat(TALK)


def rendered(text: str, messages: object = TALK) -> str:
    return ChatTemplate(text, "SOURCE").render(messages, bos_token="<s>")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            "SOURCE: the chat template refuses these messages: roles must",
        ),
        ("{{ nothing.at.all }}", "refuses these messages: 'nothing' is undefined"),
        ("{% if %}", "is no jinja2, line 1"),
        ("{{ '1' + 1 }}", "fails on these messages: TypeError"),
        ("{{ 1 / 0 }}", "fails on these messages: ZeroDivisionError"),
        ("{{ (" * 2000, "is no jinja2|fails on these messages: RecursionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails on these messages: RecursionError"),
    ],
)
def test_templates_that_fail_are_one_error(text, message):
    with pytest.raises(ValueError, match=message) as error:
        rendered(text)
    assert str(error.value).startswith("SOURCE: ")


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}",
        "{{ messages|attr('__class__') }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ ['x']|map('attr', '__class__')|list }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ dict.__subclasses__() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ self.__init__ }}",
        "{{ cycler.__init__ }}",
        "{{ lipsum() }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
    ],
)
def test_templates_reach_nothing_outside(text):
    try:
        said = rendered(text)
    except ValueError as error:
        assert str(error).startswith("SOURCE: the chat template ")
    else:  # jinja2 calls an attribute that none may have undefined, and writes it as nothing
        assert said.strip("[]") == "" or set(said) <= set("[]Undefined, ")


GROW = "{% set ns = namespace(a='x' * 1000) %}{% for _ in range(99999) %}"
BOMBS = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ ['a'] * 10 ** 9 }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ 'a' | center(9999999999) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (10 ** 10, 1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ [1] | tojson(indent=10 ** 10) }}",
    "{{ [1] | slice(10 ** 10) | list }}",
    "{{ range(10 ** 10) }}",
    GROW + "{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    GROW + "{% set ns.a = ns.a + ns.a %}{% endfor %}",
    GROW + "{% set ns.a %}{{ ns.a }}{{ ns.a }}{% endset %}{% endfor %}",
    GROW + "{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
    GROW + "{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}",
    GROW + "{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | string | length }}",
    GROW + "{% set ns.a = ns.a | replace('x', 'xx') %}{% endfor %}",
    GROW + "{% set ns.a = ns.a.join([ns.a, ns.a]) %}{% endfor %}",
    GROW + "{{ ns.a }}{% endfor %}",
    GROW + "{{ ns.a }}{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for _ in range(99999) %}{% for _ in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(n=3) %}{% for _ in range(99999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [[]] recursive %}{% for _ in range(999) %}{{ x }}{% endfor %}{{ loop([[]] * 9) }}{% endfor %}",
]


@pytest.mark.parametrize("text", BOMBS)
def test_templates_end(text, monkeypatch):
    from zoo.text import sandbox

    monkeypatch.setattr(sandbox, "CHARACTERS", 1 << 22)  # sooner than for users
    begun = time.monotonic()
    with pytest.raises(ValueError, match="SOURCE: the chat template "):
        rendered(text)
    assert time.monotonic() - begun < sandbox.SECONDS


def test_a_long_conversation_is_within_the_budget():
    talk = [{"role": role, "content": "word " * 200} for role in ("user", "assistant")] * 100  # 200,000 characters
    for text in TEMPLATES.values():
        assert len(rendered(text.replace("+ system", ""), talk)) > 100


@pytest.mark.parametrize(
    "messages", [[], "Hello", None, [{"content": "x"}], [{"role": 5}], {"role": "user"}, [["user"]]]
)
def test_messages_that_are_none(messages):
    with pytest.raises(ValueError, match="messages must be a list of at least one"):
        rendered("x", messages)


def test_messages_of_other_objects_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="texts, numbers, lists and objects alone"):
        rendered("x", [{"role": "user", "content": tmp_path}])
    assert rendered("{{ messages[0].content[0].type }}", [{"role": "user", "content": ({"type": "text"},)}]) == "text"
    assert json.loads(rendered("{{ messages | tojson }}", TALK[:2])) == TALK[:2]
