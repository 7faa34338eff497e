"""Structural tags: free text in which marked places follow a schema, as calls of tools do. Pure.

Both of SGLang's forms, written as Lark: the older one with `structures` and `triggers`, and the one
of xgrammar with a `format`, https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from coordinator.grammars.error import GrammarError
from coordinator.grammars.json_schemas import followable_schema
from coordinator.grammars.lark import lark_of
from coordinator.grammars.regex import character, rust_regex

ANY_TEXT = "/(?s:.)*/"
Object = dict[str, Any]


def structural_tag_grammar(
    source: str, special_tokens: Mapping[str, int], spelled_too: Collection[str] = ()
) -> str:
    """Returns the grammar as llguidance takes it. `special_tokens` are those of the tokenizer, by
    their texts: where a tag has one, the token itself is meant; or, for those in `spelled_too`, the
    token or its text in other tokens. Raises GrammarError."""
    try:
        tag = msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise GrammarError(f"it is no JSON: {error}") from None
    if not isinstance(tag, dict):
        raise GrammarError("it must be a JSON object")
    writer = _TagWriter(special_tokens, spelled_too)
    if "format" in tag:
        return writer.grammar(_get(tag, "format", dict))
    if "structures" not in tag:
        raise GrammarError("give either format, or structures and triggers")
    tags = [
        {**one, "content": {"type": "json_schema", "json_schema": _get(one, "schema", dict, {})}}
        for one in _objects(tag, "structures")
    ]
    form = {"type": "triggered_tags", "tags": tags, "triggers": _get(tag, "triggers", list)}
    return writer.grammar(form)


class _TagWriter:
    """Writes each format as an expression of Lark; what needs a name gets a rule of its own."""

    def __init__(self, special_tokens: Mapping[str, int], spelled_too: Collection[str]) -> None:
        self._special_tokens = special_tokens
        self._spelled_too = spelled_too
        self._lines: list[str] = []
        self._embedded: list[Object] = []
        """Grammars that rules name by `@`."""
        self._kinds: dict[str, Callable[[Object], str]] = {
            "const_string": lambda form: self._text(_get(form, "value", str)),
            "json_schema": self._json_schema,
            "regex": lambda form: _regex(_get(form, "pattern", str)),
            "grammar": self._ebnf,
            "any_text": lambda form: ANY_TEXT,
            "sequence": lambda form: self._all(form, " "),
            "or": lambda form: self._all(form, " | "),
            "tag": self._tag,
            "triggered_tags": self._triggered_tags,
            "tags_with_separator": self._tags_with_separator,
        }

    def grammar(self, form: Object) -> str:
        try:
            start = self._format(form)
        except RecursionError:
            raise GrammarError("it is nested too deeply") from None
        lark = "\n".join([f"start: {start}", *self._lines, ""])
        grammars = [{"name": "structural_tag", "lark_grammar": lark}, *self._embedded]
        return json.dumps({"grammars": grammars})

    def _format(self, form: Object) -> str:
        kind = _get(form, "type", str)
        if kind not in self._kinds:
            raise GrammarError(
                f"the format {kind} is not supported; these are: {', '.join(self._kinds)}"
            )
        return self._kinds[kind](form)

    def _rule(self, body: str, attribute: str = "") -> str:
        name = f"rule_{len(self._lines)}"
        self._lines.append(f"{name}{attribute}: {body}")
        return name

    def _text(self, text: str) -> str:
        """Writes a text; special tokens in it are asked for by their ids."""
        if not text:
            return '""'
        specials = sorted(self._special_tokens, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, specials))})", text) if specials else [text]
        return " ".join(self._part(part) for part in parts if part)

    def _part(self, text: str) -> str:
        """Writes a special token, or a text without any."""
        if text not in self._special_tokens:
            return self._plain(text)
        token = f"<[{self._special_tokens[text]}]>"
        return f"({token} | {self._plain(text)})" if text in self._spelled_too else token

    def _json_schema(self, form: Object) -> str:
        schema = form.get("json_schema", {})
        if not isinstance(schema, dict | bool):
            raise GrammarError("json_schema must be a JSON object")
        if form.get("style", "json") != "json":
            raise GrammarError(f"json_schema in the style {form['style']} is not supported")
        if isinstance(schema, dict):
            schema = followable_schema(schema)
        return self._rule(f"%json {json.dumps(schema)}")

    def _ebnf(self, form: Object) -> str:
        name = f"grammar_{len(self._embedded)}"
        lark = lark_of(_get(form, "grammar", str), self._special_tokens)
        self._embedded.append({"name": name, "lark_grammar": lark})
        return f"@{name}"

    def _all(self, form: Object, separator: str) -> str:
        parts = [self._format(part) for part in _objects(form, "elements")]
        return self._rule(separator.join(parts))

    def _tag(self, form: Object) -> str:
        begin = _get(form, "begin", str)
        return self._rule(f"{self._text(begin)} {self._body(form)}")

    def _body(self, form: Object) -> str:
        """Writes a tag behind its beginning. Free text in it ends where its end comes first."""
        content = _get(form, "content", dict)
        end = form.get("end", "")
        ends = end if isinstance(end, list) else [end]
        if not ends or not all(isinstance(one, str) for one in ends):
            raise GrammarError("end must be a string, or a list of strings")
        if content.get("type") == "any_text" and all(ends):
            return self._rule(" | ".join(self._lazily(one) for one in ends))
        return f"{self._format(content)} ({' | '.join(map(self._text, ends))})"

    def _lazily(self, end: str) -> str:
        """Any text up to the first `end`, and that."""
        token = self._special_tokens.get(end)
        if token is None:
            return self._rule(f"{ANY_TEXT} {self._plain(end)}", "[lazy]")
        if end not in self._spelled_too:
            return self._rule(f"{ANY_TEXT} <[{token}]>")
        spelled = self._rule(f"{ANY_TEXT} {self._plain(end)}", "[lazy]")
        # Text before the token must not have its spelling, which has ended it already.
        before = f"BEFORE_{len(self._lines)}"
        self._lines.append(f"{before}: {ANY_TEXT} & ~({ANY_TEXT} {self._plain(end)} {ANY_TEXT})")
        return self._rule(f"{before} <[{token}]> | {spelled}")

    def _plain(self, text: str) -> str:
        return f"/{''.join(map(character, text))}/"

    def _triggered_tags(self, form: Object) -> str:
        triggers = _get(form, "triggers", list)
        tags: list[str] = []
        by_trigger: dict[str, list[str]] = {}
        for tag in _objects(form, "tags"):
            begin = _get(tag, "begin", str)
            trigger = next((t for t in triggers if isinstance(t, str) and begin.startswith(t)), "")
            if not trigger:
                raise GrammarError(f"the tag {begin!r} begins with none of the triggers")
            rest = begin[len(trigger) :]
            body = f"{self._text(rest)} {self._body(tag)}"
            by_trigger.setdefault(trigger, []).append(self._rule(body))
        for trigger, bodies in by_trigger.items():
            tags.append(self._rule(f"{self._lazily(trigger)} ({' | '.join(bodies)})"))
        any_tag = self._rule(" | ".join(tags))
        least = 1 if form.get("at_least_one") else 0
        if form.get("stop_after_first"):
            return any_tag if least else self._rule(f"{any_tag} | {ANY_TEXT}")
        return self._rule(f"{any_tag}{{{least},}} {ANY_TEXT}")

    def _tags_with_separator(self, form: Object) -> str:
        tags = self._rule(" | ".join(self._tag(tag) for tag in _objects(form, "tags")))
        separator = self._text(_get(form, "separator", str))
        more = "" if form.get("stop_after_first") else f" ({separator} {tags})*"
        return f"({tags}{more})" if form.get("at_least_one") else f"({tags}{more})?"


def _regex(pattern: str) -> str:
    written = rust_regex(pattern)
    return f"/{written}/" if written else '""'


def _get(form: Object, key: str, kind: type, default: Any = None) -> Any:
    value = form.get(key, default)
    if not isinstance(value, kind):
        names: dict[Any, str] = {str: "a string", dict: "an object", list: "a list"}
        raise GrammarError(f"{key} must be {names[kind]}")
    return value


def _objects(form: Object, key: str) -> Sequence[Object]:
    values = _get(form, key, list)
    if not values or not all(isinstance(value, dict) for value in values):
        raise GrammarError(f"{key} must be a list of objects, of one at least")
    return values
