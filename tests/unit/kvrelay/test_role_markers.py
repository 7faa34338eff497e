"""Roles are written as the templates of models render them."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from coordinator.answers.chat_template import ChatTemplate
from coordinator.answers.template_sources import built_in_templates
from kvrelay.language.expressions import LanguageError
from kvrelay.language.role_markers import (
    NAMED,
    RoleMarkers,
    named_markers,
    rendered_markers,
)

BOS = "<s>"
TALK = (
    ("system", "Be short."),
    ("user", "Hi"),
    ("assistant", "Hello"),
    ("user", "And?"),
    ("assistant", "Bye"),
)


def template(name: str) -> Any:
    special_tokens = {"bos_token": BOS, "eos_token": "</s>"}
    return ChatTemplate({"default": built_in_templates()[name]}, special_tokens)


def rendered(name: str) -> RoleMarkers:
    chat_template = template(name)

    def render(messages: Any, opens_answer: bool) -> str:
        return str(chat_template.render(messages, add_generation_prompt=opens_answer))

    return rendered_markers(render, BOS)


def written(markers: RoleMarkers, talk: Any) -> str:
    text, last = "", None
    for role, content in talk:
        text += markers.opening(last, role) + content
        last = role
    return text


@pytest.mark.parametrize("name", sorted(built_in_templates()))
@pytest.mark.parametrize("talk", [TALK, TALK[1:]])
def test_a_question_is_written_as_the_template_renders_it(name: str, talk: Any) -> None:
    """With all that was said before it, up to the begin of the answer."""
    markers = rendered(name)
    messages = [{"role": role, "content": content} for role, content in talk[:-1]]
    whole = template(name).render(messages, add_generation_prompt=True).removeprefix(BOS)
    # What the model itself has written begins with the space that these templates put there.
    space = " " if name in ("llama-2", "mistral") else ""
    said = [(role, (space if role == "assistant" else "") + text) for role, text in talk[:-1]]
    assert whole == written(markers, said) + markers.opening("user", "assistant")


@pytest.mark.parametrize("name", sorted(NAMED.keys() - {"plain", "mistral"}))
def test_named_templates_are_those_that_come_with_kvrelay(name: str) -> None:
    assert written(named_markers(name), TALK) == written(rendered(name), TALK)


def test_a_template_without_a_system_message_says_so() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat_template = ChatTemplate({"default": source}, {})
    markers = rendered_markers(
        lambda messages, opens: chat_template.render(messages, add_generation_prompt=opens), ""
    )
    assert markers.opening(None, "user") == "[user]"
    with pytest.raises(LanguageError, match=r"no message of system at the begin.*user → assistant"):
        markers.opening(None, "system")


def test_a_template_that_changes_what_is_said_is_refused() -> None:
    shouting = jinja2.Template("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(ValueError, match="as it is"):
        rendered_markers(lambda messages, _: shouting.render(messages=messages), "")
