"""Chats are rendered as transformers renders them; broken templates and chats are told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from coordinator.answers import chat_template as chat_template_module
from coordinator.answers.chat_template import ChatTemplate, ChatTemplateError
from coordinator.answers.template_sources import built_in_templates, template_sources
from coordinator.answers.tokenizer import Tokenizer
from infra.models import EMBEDDED
from protocol.config import ConfigError
from protocol.errors import UserError
from protocol.model.directory import ModelDirectoryError
from tests.support.models import tokenizers
from tests.support.models.model_directories import write_tokenizer

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
REFERENCE = PreTrainedTokenizerFast(tokenizer_object=tokenizers.byte_level(), **SPECIAL_TOKENS)

SYSTEM = {"role": "system", "content": "You are terse."}
USER = {"role": "user", "content": " What is 2 < 3 & 'é'? "}
ASSISTANT = {"role": "assistant", "content": "It is true."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"rain": true}'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells <the> weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CHATS: dict[str, Sequence[dict[str, Any]]] = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ASSISTANT, USER],
    "tools": [SYSTEM, USER, CALL, RESULT],
    "thoughts": [USER, ASSISTANT | {"reasoning": "Hm."}, USER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
}
TEMPLATES = {
    **built_in_templates(),
    "embedded": str(template_sources(EMBEDDED, "")["default"]),
    "llama-3.1": """{{- bos_token }}
{%- if tools is not defined %}{%- set tools = none %}{%- endif %}
{%- set ns = namespace(system='', rest=messages) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set ns.rest = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- ns.system }}{{- "<|eot_id|>" }}
{%- for message in ns.rest %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if message.content is string %}
            {{- message['content'] | trim }}
        {%- else %}
            {%- for part in message.content if part.type == 'text' %}{{ part.text }}{%- endfor %}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls|length != 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + "}" }}
    {%- else %}
        {{- "ipython: " + message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}
""",
    "deepseek": """{% if not add_generation_prompt is defined %}
{% set add_generation_prompt = false %}
{% endif %}
{% macro shown(message) %}
{{ message.get('reasoning_content', '') }}|{{ message['content'] }}
{%- endmacro %}
{% for message in messages %}
  {% if message['role'] == 'tool' %}
    {% continue %}
  {% endif %}
  {% if loop.index > 40 %}{% break %}{% endif %}
{{ message['role'].title() }}: {{ shown(message) }}
{% generation %}{{ eos_token if message['role'] == 'assistant' }}{% endgeneration %}

{% endfor %}
{% for key, value in (documents or [dict(title='none')])[0].items() %}
{{ key }}={{ value }};
{%- endfor %}
{{ 'Assistant:' if add_generation_prompt }}
{{- ' <think>' if enable_thinking is defined and enable_thinking }}
""",
}


def template_of(source: str, **more: str) -> ChatTemplate:
    return ChatTemplate({"default": source, **more}, SPECIAL_TOKENS)


def reference(source: str, chat: Any, **options: Any) -> str | None:
    """Returns what transformers renders; None if it refuses."""
    try:
        return str(
            REFERENCE.apply_chat_template(chat, chat_template=source, tokenize=False, **options)
        )
    except Exception:
        return None


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(name: str, chat: str) -> None:
    template, source = template_of(TEMPLATES[name]), TEMPLATES[name]
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "tools": TOOLS},
        {"add_generation_prompt": True, "enable_thinking": True},
        {"add_generation_prompt": False, "documents": [{"title": "t", "text": "x"}]},
        {"add_generation_prompt": False, "continue_final_message": True},
    ):
        expected = reference(source, CHATS[chat], **options)
        if expected is not None:
            assert template.render(CHATS[chat], **options) == expected  # type: ignore[arg-type]
        else:
            with pytest.raises(ChatTemplateError):
                template.render(CHATS[chat], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_renders_the_plain_chats(name: str) -> None:
    for chat in ("one", "system", "turns"):
        text = template_of(TEMPLATES[name]).render(CHATS[chat])
        assert "2 < 3 & 'é'?" in text, "nothing is escaped"


def test_tools_have_a_template_of_their_own_where_the_model_has_one() -> None:
    template = template_of("plain", tool_use="with tools")
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=TOOLS) == "with tools"
    with pytest.raises(ChatTemplateError, match="rag, tool_use and no default"):
        ChatTemplate({"rag": "", "tool_use": ""}, {}).render([USER])


def test_templates_know_the_date() -> None:
    day = datetime(2026, 2, 3)
    template = ChatTemplate({"default": "{{ strftime_now('%d %b %Y') }}"}, {}, lambda: day)
    assert template.render([USER]) == "03 Feb 2026"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('no system prompts, please') }}", "refuses .*no system prompts"),
        ("{{ messages[7].content.x }}", "refuses the chat"),
        ("{{ messages[0].content + 1 }}", "cannot render .*TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ 'x' * 99999999999 }}", "cannot have 'x'"),
        ("{{ 99999 ** 99999 }}", "cannot have 99999"),
        ("{{ lipsum(n=99999999) }}", "'lipsum' is undefined"),
        ("{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "more than .* characters"),
    ],
)
def test_what_a_template_cannot_do_is_told(source: str, says: str) -> None:
    with pytest.raises(ChatTemplateError, match=says):
        template_of(source).render([USER])


def test_chats_of_another_form_are_told() -> None:
    template = template_of("{{ messages[0].content }}")
    with pytest.raises(ChatTemplateError, match="no messages"):
        template.render([])
    with pytest.raises(ChatTemplateError, match="'hello'; it must be an object"):
        template.render(["hello"])  # type: ignore[list-item]
    with pytest.raises(ChatTemplateError, match="no text to continue"):
        template.render([CALL], add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(ChatTemplateError, match="exclude each other"):
        template.render([USER], continue_final_message=True)


def test_the_length_of_a_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_module, "MAX_CHARACTERS", 10)
    template = template_of("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert template.render([{"content": "12345"}] * 2) == "1234512345"
    with pytest.raises(ChatTemplateError, match="more than 10 characters"):
        template.render([{"content": "12345"}] * 3)


ENDLESS = {
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a condition that nothing meets": (
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}"
    ),
    "a macro that calls itself twice": (
        "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}"
        "{% endmacro %}{{ twice(60) }}"
    ),
    "a loop that calls itself twice": (
        "{% for n in [60] recursive %}{% if n %}{{ loop([n - 1, n - 1]) }}{% endif %}{% endfor %}"
    ),
    "a block that calls itself twice": (
        "{% set ns = namespace(depth=0) %}"
        "{% block b %}{% set ns.depth = ns.depth + 1 %}"
        "{% if ns.depth < 60 %}{{ self.b() }}{{ self.b() }}{% endif %}"
        "{% set ns.depth = ns.depth - 1 %}{% endblock %}"
    ),
    "the body of a call": (
        "{% macro twice(n) %}{% set outer = caller %}{% if n %}"
        "{% call twice(n - 1) %}{{ outer() }}{{ outer() }}{% endcall %}"
        "{% else %}{{ caller() }}{% endif %}{% endmacro %}{% call twice(60) %}{% endcall %}"
    ),
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS.keys())
def test_no_template_runs_for_ever(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_module, "MAX_STEPS", 1000)
    with pytest.raises(ChatTemplateError, match=r"no.* come to an end: .* more than 1000 steps"):
        template_of(source).render([USER])


def test_every_rendering_has_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_module, "MAX_STEPS", 3)
    template = template_of("{% for m in messages if m.role != 'tool' %}.{% endfor %}")
    assert [template.render([RESULT, USER]) for _ in range(3)] == ["."] * 3
    with pytest.raises(ChatTemplateError, match="more than 3 steps; shorten the chat"):
        template.render([USER, USER])


class TestSources:
    def test_files_go_before_tokenizer_config(self, tmp_path: Path) -> None:
        write_tokenizer(tmp_path, tokenizer_config={"chat_template": "of the config"})
        assert template_sources(tmp_path, "") == {"default": "of the config"}
        more = tmp_path / "additional_chat_templates"
        more.mkdir()
        (more / "tool_use.jinja").write_text("of tools")
        (tmp_path / "chat_template.jinja").write_text("of the file")
        assert template_sources(tmp_path, "") == {"default": "of the file", "tool_use": "of tools"}

    def test_tokenizer_config_may_have_several_with_names(self, tmp_path: Path) -> None:
        named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
        write_tokenizer(tmp_path, tokenizer_config={"chat_template": named})
        assert template_sources(tmp_path, "") == {"default": "a", "rag": "b"}
        assert template_sources(tmp_path, "rag") == {"default": "b"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [1]}))
        with pytest.raises(ModelDirectoryError, match="neither a text nor a list"):
            template_sources(tmp_path, "")

    def test_the_operator_names_a_file_or_one_that_comes_along(self, tmp_path: Path) -> None:
        write_tokenizer(tmp_path)
        assert template_sources(tmp_path, "") == {}
        file = tmp_path / "mine.jinja"
        file.write_text("mine")
        assert template_sources(tmp_path, str(file)) == {"default": "mine"}
        assert template_sources(tmp_path, "chatml")["default"].startswith("{%- for message")
        with pytest.raises(ConfigError, match=r"'alpaca'; .* file .* chatml, .* qwen"):
            template_sources(tmp_path, "alpaca")
        with pytest.raises(ConfigError, match=r"'A{199}; it must be a file"):
            template_sources(tmp_path, "A" * 10_000)
        with pytest.raises(ModelDirectoryError, match="cannot be read as text"):
            (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe")
            template_sources(tmp_path, str(tmp_path / "bytes.jinja"))

    def test_a_template_that_does_not_compile_stops_the_start(self, tmp_path: Path) -> None:
        broken = {"chat_template": "{% for m in messages %}\n{{ m }"}
        write_tokenizer(tmp_path, tokenizer_config=broken)
        with pytest.raises(UserError, match=r"'default' cannot be compiled: line 2.*--chat-templ"):
            Tokenizer(tmp_path)
        assert Tokenizer(tmp_path, "chatml").chat_template is not None

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
            ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "nested too deeply"),
            ("a" * 300_000, "has 300000 characters, and may have 262144; name another one"),
        ],
    )
    def test_what_would_take_too_much_to_compile_is_refused(self, source: str, says: str) -> None:
        with pytest.raises(ChatTemplateError, match=says):
            ChatTemplate({"default": source}, {})

    def test_the_embedded_model_has_one(self) -> None:
        tokenizer = Tokenizer(EMBEDDED)
        assert tokenizer.chat_template is not None
        assert tokenizer.chat_template.render([USER]).startswith("<|bos|><|user|>")
