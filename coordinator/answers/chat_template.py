"""`ChatTemplate`: messages to the text that a model was trained on, as transformers renders it.

Templates come with models, from strangers. They run in Jinja's sandbox, which lets them change and
reach nothing, and both what they write and the steps of their loops are bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coordinator.answers.template_steps import STEPS, StepBudget, TooManySteps, count_steps

MAX_CHARACTERS = 1 << 24
"""A longer text would fit no model; a template that writes it is broken or hostile."""
MAX_SOURCE_CHARACTERS = 1 << 18
"""No template that is published has a tenth; a long one takes seconds to compile."""
MAX_STEPS = 1 << 20
"""Rounds of loops and calls of macros: a chat of 100,000 messages takes fewer, and so many
that do nothing take a tenth of a second."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which messages have the model's thoughts; templates read the first one."""
READS_PARTS = re.compile(
    r"""\bfor\s+\w+\s+in\s+(?:\w+(?:\.|\[['"]))?content(?:['"]\])?\s*(?:%|if|-)"""
)
"""Matches a loop over the content of a message."""
MARK = "CONTINUE_FINAL_MESSAGE_TAG "

Message = Mapping[str, Any]


class ChatTemplateError(ValueError):
    """A template is broken, or cannot render these messages; the message says which and why."""


class ChatTemplate:
    """The templates of one model by name: "default", and often "tool_use" for chats with tools."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`special_tokens` are variables of every template, such as bos_token. Raises
        ChatTemplateError for a template that cannot be compiled."""
        environment = _Environment(now)
        self._templates = {name: _compiled(environment, name, sources[name]) for name in sources}
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens)

    @cached_property
    def reads_parts(self) -> bool:
        """True if a template goes through the parts of a message's content, which may then be a
        list of them and not one text."""
        return any(READS_PARTS.search(source) for source in self._sources.values())

    def mentions(self, word: str) -> bool:
        """Returns whether a template has `word` in it, such as the name of a role."""
        return any(word in source for source in self._sources.values())

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Returns the text of a chat with its special tokens; it is to be tokenized without others.

        With `continue_final_message` the text ends within the last message, for the model to go on.
        `variables` are the template's own switches. Long chats, and templates that do too much,
        take up to a few seconds. Raises ChatTemplateError.
        """
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ChatTemplateError(
                f"the model has the chat templates {', '.join(sorted(self._templates))} and no "
                "default; choose one with --chat-template"
            )
        if not messages:
            raise ChatTemplateError("the chat has no messages")
        chat = [_prepared(message) for message in messages]
        last = ""
        if continue_final_message:
            if add_generation_prompt:
                raise ChatTemplateError(
                    "continue_final_message and add_generation_prompt exclude each other"
                )
            last = _mark_end(chat[-1])
        text = _written(
            self._templates[name],
            {
                **self._special_tokens,
                **variables,
                "messages": chat,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
                STEPS: StepBudget(MAX_STEPS),
            },
        )
        return _until_mark(text, last) if continue_final_message else text


def _prepared(message: Message) -> dict[str, Any]:
    """Returns a message as templates expect it: without keys that are null, which many templates
    would write as "None", and with its reasoning under every name that is in use."""
    if not isinstance(message, Mapping):
        raise ChatTemplateError(f"a message is {message!r}; it must be an object with a role")
    prepared = {key: value for key, value in message.items() if value is not None}
    reasoning = next((prepared[key] for key in REASONING if key in prepared), None)
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    return prepared


def _mark_end(message: dict[str, Any]) -> str:
    """Marks the end of the last message, so that it can be found in the text. Returns its text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + MARK
        return content
    parts = [dict(part) for part in content] if isinstance(content, list) else []
    texts = [part for part in parts if isinstance(part.get("text"), str)]
    if not texts:
        raise ChatTemplateError("continue_final_message: the last message has no text to continue")
    last = str(texts[-1]["text"])
    texts[-1]["text"] += MARK
    message["content"] = parts
    return last


def _until_mark(text: str, last: str) -> str:
    """Returns the text before the mark, behind the `last` message; without the spaces before it, if
    the template trims."""
    place = text.rfind(MARK.strip())
    if place < 0 or last.strip() not in text:
        raise ChatTemplateError(
            "continue_final_message: the chat template leaves the last message out, or changes it"
        )
    kept = text[:place]
    return kept if text.startswith(MARK, place) else kept.rstrip()


def _written(template: Template, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    num_characters = 0
    try:
        for piece in template.generate(variables):
            num_characters += len(piece)
            if num_characters > MAX_CHARACTERS:
                raise ChatTemplateError(
                    f"the chat template writes more than {MAX_CHARACTERS} characters"
                )
            pieces.append(piece)
    except ChatTemplateError:
        raise
    except TooManySteps as error:
        raise ChatTemplateError(
            f"the chat template does not come to an end: {error}; shorten the chat, or name "
            "another template with --chat-template"
        ) from error
    except TemplateError as error:
        raise ChatTemplateError(f"the chat template refuses the chat: {error}") from error
    except Exception as error:  # whatever its expressions make of values they do not expect
        raise ChatTemplateError(
            f"the chat template cannot render the chat ({type(error).__name__}: {error}); are "
            "its messages of the form that the model's template expects?"
        ) from error
    return "".join(pieces)


def _compiled(environment: _Environment, name: str, source: str) -> Template:
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise ChatTemplateError(
            f"the chat template {name!r} has {len(source)} characters, and may have "
            f"{MAX_SOURCE_CHARACTERS}; name another one with --chat-template"
        )
    try:
        return environment.from_string(count_steps(environment, environment.parse(source)))
    except RecursionError as error:
        raise ChatTemplateError(
            f"the chat template {name!r} cannot be compiled: it is nested too deeply; name another "
            "one with --chat-template"
        ) from error
    except TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template {name!r} cannot be compiled: line {error.lineno}: {error.message}; "
            "correct it, or name another one with --chat-template"
        ) from error


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with what transformers adds to it."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        del self.globals["lipsum"]  # which makes any number of paragraphs in one call
        self.globals["dict"] = _new_dict  # the class itself has more than templates may reach
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: now().strftime(form)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes what intercepted operators do, unless it may take all memory."""
        is_repetition = isinstance(left, Sized) or isinstance(right, Sized)
        if operator == "**" or (is_repetition and _size(left) * _size(right) > MAX_CHARACTERS):
            raise TemplateError(f"chat templates cannot have {left!r:.40} {operator} {right!r:.40}")
        return super().call_binop(context, operator, left, right)


def _size(factor: Any) -> float:
    """Returns the length of a text or list, or how often one is repeated."""
    if isinstance(factor, Sized):
        return len(factor)
    return abs(factor) if isinstance(factor, int | float) else 1


class _Generation(Extension):
    """The block `{% generation %}`, which marks answers for training and changes nothing here."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_write")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _write(self, caller: Macro) -> str:
        return str(caller())


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON. Jinja's own filter would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _new_dict(*items: Any, **named: Any) -> dict[Any, Any]:
    return dict(*items, **named)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
