"""A chat template renders as in transformers, and one that would run or grow without end is stopped."""

import json
import resource
import subprocess
import sys

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fico_export.errors import ConfigError
from fico_export.runtime.inputs.template import MAX_SOURCE, ChatTemplate

MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What <b>is</b> it? é 🐈"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "  A cat,\n\n  black.  "}]},
    {"role": "user", "content": [{"type": "text", "text": ""}]},
]
ORDINARY = {
    "nested loops": "{% for m in messages %}{{ loop.index0 }}{% for p in m.content if p.type == 'text' %}"
    "{{ loop.length }}{{ loop.last }}{{ p.text | trim }}{% else %}none{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in [[1, [2]], [3]] recursive %}{{ loop.depth }}{{ loop(x) if x is iterable else x }}{% endfor %}",
    "macros": "{% macro turn(m, sep=' ') %}{{ m.role ~ sep ~ m.content[-1].text }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m, sep='|') }}{% endfor %}",
    "caller": "{% macro twice() %}{{ caller() }}{{ caller() }}{% endmacro %}{% call twice() %}x{% endcall %}",
    "blocks": "{% block a %}x{% block b %}y{% endblock %}{% endblock %}{{ self.b() }}",
    "namespaces": "{% set ns = namespace(n=0, roles=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.roles = ns.roles + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.roles | join(', ') }}{{ ns.roles }}",
    "operators": "{{ 2 ** 10 }}{{ 7 % 3 }}{{ '-' * 5 }}{{ [1] * 2 }}{{ 1.5 * 2 }}{{ '%s of %05.1f' % ('a', 2.5) }}{{ 1 ~ none ~ [2] }}",
    "formats": "{{ '{:>4}|{a!r}'.format(1, a='b') }}{{ '%-4s|%d' | format('a', 3) }}{{ '{x}'.format_map({'x': 1}) }}",
    "filters": "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ 'abc' | replace('b', 'xx') | upper | indent(2) | center(20) }}{{ {'b': 1, 'a': [2]} | dictsort }}{{ [3, 1] | sort | reverse | list }}"
    "{{ range(5) | batch(2, '-') | list }}{{ range(5) | slice(2) | list }}{{ messages | groupby('role') | map('first') | list }}",
    "json": "{{ {'é': [1, none, '<'], 'b': 1.5} | tojson }}{{ [1, [2]] | tojson(indent=2) }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
    "methods": "{{ 'a b'.split(' ') }}{{ ' x '.strip().zfill(4).ljust(6, '.') }}{{ ', '.join(['a', 'b']) }}{{ {'a': 1}.items() | list }}{{ 'a\\tb'.expandtabs(4) }}",
    "set and filter blocks": "{% set x %}a{{ 1 }}{% endset %}{{ x * 2 }}{% filter upper %}b{{ x }}{% endfilter %}{% set y | trim %} c {% endset %}{{ y }}",
    "tuples and slices": "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% endfor %}{{ messages[1:][0].role }}{{ (1, 2) + (3,) }}{{ messages[::-1][0].role }}",
    "loop controls": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "escaping": "{% autoescape true %}{{ messages[1].content[1].text ~ ('>' | safe) }}{% endautoescape %}{{ '<' | e }}",
    "conditions": "{{ 'x' if messages[0].role in ['system', 'tool'] else 'y' }}{% if messages is defined and tools is none %}z{% endif %}{{ nothing | default('d') }}",
    "cyclers": "{% set c = cycler('a', 'b') %}{% for m in messages %}{{ c.next() }}{{ loop.cycle('x', 'y') }}{% endfor %}{% set j = joiner(',') %}{{ j() }}{{ j() }}",
    "white space": "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n  {{ m.role -}}  \n  {% endif %}\n{%- endfor %}\n\nend\n",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "dictionaries": "{% set d = dict(a=1) %}{{ d }}{{ dict.fromkeys(['x'], 0) }}{{ d.get('a') }}{{ d | length }}",
}
GROW = "{% set ns = namespace(x='abcdefgh') %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
HOSTILE = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "recursive loops": "{% for i in range(100000) recursive %}{{ loop(range(100000)) if loop.depth < 5 }}{% endfor %}",
    "words in loops": "{% for i in range(100000) %}{% for j in range(100000) %}" + "x" * 9999 + "{% endfor %}{% endfor %}",
    "kept words": "{% set y %}{% for i in range(100000) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a macro in itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "callers": "{% macro m() %}{% for i in range(100000) %}{{ caller() }}{% endfor %}{% endmacro %}{% call m() %}{% call m() %}{% endcall %}{% endcall %}",
    "cycler": "{% set c = cycler(1) %}{% for i in range(100000) %}{% for j in range(100000) %}{% set x = c.next() %}{% endfor %}{% endfor %}",
    "repeated text": "{{ 'a' * 8000000000 }}",
    "repeated list": "{{ 8000000000 * [1] }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "division": "{{ (('f' * 4000000) | int(base=16)) // (('f' * 2000000) | int(base=16)) }}",
    "rounding": "{{ 5 | round(-90000000) }}",
    "concatenation": GROW.replace("STEP", "ns.x ~ ns.x"),
    "addition": GROW.replace("STEP", "ns.x + ns.x"),
    "list in lists": GROW.replace("STEP", "[ns.x, ns.x]"),
    "tuple in tuples": GROW.replace("STEP", "(ns.x, ns.x)").replace("{{ ns.x }}", "{{ {ns.x: 1} }}"),
    "dictionaries": GROW.replace("STEP", "dict(a=ns.x, b=ns.x)"),
    "namespaces": GROW.replace("STEP", "namespace(a=ns.x, b=ns.x)"),
    "doubled list": GROW.replace("STEP", "[ns.x] * 2"),
    "joined": GROW.replace("STEP", "[ns.x, ns.x] | join"),
    "replaced": GROW.replace("STEP", "ns.x | replace('a', 'aaaaaaaaa')"),
    "replaced by a method": GROW.replace("STEP", "ns.x.replace('a', 'aaaaaaaaa')"),
    "formatted": GROW.replace("STEP", "'%s%s' % (ns.x, ns.x)"),
    "formatted by braces": GROW.replace("STEP", "'{0}{0}'.format(ns.x)"),
    "captured": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "filter": "{{ 'a' | center(1000000000) }}",
    "mapped filter": "{{ ['a'] | map('center', 1000000000) | list }}",
    "method": "{{ 'a'.zfill(1000000000) }}",
    "bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "tabs": "{{ ('\\t' * 1000000).expandtabs(1000000) }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width by a star": "{{ '%*d' % (1000000000, 1) }}",
    "width of a filter": "{{ '%1000000000d' | format(1) }}",
    "width in braces": "{{ '{:>1000000000}'.format(1) }}",
    "width in braces by a value": "{{ '{:{}}'.format(1, 1000000000) }}",
    "width of a found method": "{{ ('{0:1000000000}' | attr('format'))(1) }}",
    "indent": "{{ ('\\n' * 1000000) | indent(1000000, true, true) }}",
    "indent of json": "{{ [1] | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "sum of lists": "{% for i in range(1000) %}{{ (range(60000) | batch(1) | sum(start=[])) | length }}{% endfor %}",
    "words without meaning": "{{ lipsum(n=1000000000) }}",
    "time": "{{ strftime_now('%Y' * 1000000) }}",
    "tags": "{{ ('<!---->' * 500000) | striptags }}",
    "links": "{{ ('http://a.' * 400000) | urlize }}",
    "constants": "{{ 'a' | center(4000000) | replace('a', 'b') | center(4000001) | center(4000002) }}" * 6,
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_a_template_renders_as_in_transformers(name):
    theirs, _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=ORDINARY[name], add_generation_prompt=True
    )
    ours = ChatTemplate(ORDINARY[name]).render(
        messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True
    )
    assert ours == theirs[0]
    assert ours


RENDERS = """
import json, sys, time
from fico_export.errors import ConfigError
from fico_export.runtime.inputs.template import ChatTemplate

for template in json.load(sys.stdin):
    began = time.thread_time()
    try:
        ended = ["rendered", ChatTemplate(template).render(messages=[])[:100]]
    except ConfigError as error:
        ended = [error.what, error.fix]
    print(json.dumps([*ended, time.thread_time() - began]))
"""


@pytest.fixture(scope="module")
def ended():
    """ended[name] → (error, fix, seconds of its thread) of each hostile template, in a process that cannot have more than 2 GB."""
    done = subprocess.run(
        [sys.executable, "-c", RENDERS],
        input=json.dumps(list(HOSTILE.values())),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(HOSTILE, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_without_end_is_stopped_in_little_memory(ended, name):
    what, fix, seconds = ended[name]

    assert "template was stopped" in what
    assert "chat_template.jinja" in fix
    assert seconds < 20


@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "1 + " * 9000 + "1 }}",
        "{% if a %}" * 500 + "{% endif %}" * 500,
        "{% for a in b %}" * 50 + "{% endfor %}" * 50,
        "{% for %}",
        "{{ 'a' | nothing }}",
        "x" * (MAX_SOURCE + 1),
    ],
    ids=range(7),
)
def test_what_is_no_template_is_refused(template):
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplate(template).render(messages=MESSAGES)


def test_what_a_template_took_is_not_counted_for_the_next():
    template = ChatTemplate("{% for i in range(20) %}{% set x = 'a' * 2000000 %}{% endfor %}done")
    assert [template.render() for _ in range(5)] == ["done"] * 5


def test_a_long_conversation_is_no_hostile_one():
    text = "One of many words. " * 500
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role in ("user", "assistant")]
    for name in ("nested loops", "filters", "namespaces"):
        assert ChatTemplate(ORDINARY[name]).render(messages=turns * 100, tools=None)
