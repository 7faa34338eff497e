"""What the text of an answer must follow: response_format, and keys of SGLang and vLLM. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from coordinator.grammars.kinds import GrammarKind
from coordinator.http.errors import BadRequest
from coordinator.http.native.schema import GrammarSource
from coordinator.http.openai.common import CommonBody

SAME: dict[str, GrammarKind] = {
    "regex": "regex",
    "ebnf": "ebnf",
    "json_schema": "json_schema",
    "structural_tag": "structural_tag",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_grammar": "ebnf",
}
"""Keys whose value is a grammar of this kind."""
STRUCTURED: dict[str, GrammarKind] = {
    "json": "json_schema",
    "regex": "regex",
    "grammar": "ebnf",
    "structural_tag": "structural_tag",
}
"""Keys of vLLM's structured_outputs whose value is a grammar of this kind."""
SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
"""Matches characters that mean something in a regular expression."""
ANY_OBJECT = '{"type": "object"}'
FORMATS = "text, json_object, json_schema or structural_tag"


def grammar_of(body: CommonBody) -> GrammarSource | None:
    """Returns the one grammar that the body gives, if any. Raises BadRequest."""
    found = {
        key: GrammarSource(kind, _text(value), key)
        for key, kind in SAME.items()
        if (value := getattr(body, key))
    }
    if body.guided_choice:
        found["guided_choice"] = _one_of(body.guided_choice, "guided_choice")
    if body.structured_outputs and (grammar := _structured(body.structured_outputs)):
        found["structured_outputs"] = grammar
    if body.response_format and (grammar := _format(body.response_format)):
        found["response_format"] = grammar
    if len(found) > 1:
        keys = list(found)
        raise BadRequest(f"{' and '.join(keys)} are given; an answer follows one of them", keys[1])
    return next(iter(found.values()), None)


def _format(response_format: dict[str, Any]) -> GrammarSource | None:
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarSource("json_schema", ANY_OBJECT)
    if kind == "structural_tag":
        return GrammarSource("structural_tag", _text(response_format), "response_format")
    if kind != "json_schema":
        raise BadRequest(
            f"response_format.type is {kind!r}; it must be {FORMATS}", "response_format.type"
        )
    described = response_format.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    where = "response_format.json_schema.schema"
    if not isinstance(schema, dict):
        raise BadRequest(f"{where} must be an object with the JSON schema", where)
    return GrammarSource("json_schema", _text(schema), where)


def _structured(given: dict[str, Any]) -> GrammarSource | None:
    found = [
        _structured_one(given[key], kind, f"structured_outputs.{key}")
        for key, kind in STRUCTURED.items()
        if given.get(key)
    ]
    if given.get("json_object"):
        found.append(GrammarSource("json_schema", ANY_OBJECT))
    if choices := given.get("choice"):
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            raise BadRequest("structured_outputs.choice must be texts", "structured_outputs.choice")
        found.append(_one_of(choices, "structured_outputs.choice"))
    if len(found) > 1:
        raise BadRequest("structured_outputs: give one grammar", "structured_outputs")
    if not found and any(given.values()):
        raise BadRequest(
            f"structured_outputs has none of {', '.join([*STRUCTURED, 'json_object', 'choice'])}",
            "structured_outputs",
        )
    return found[0] if found else None


def _structured_one(value: Any, kind: GrammarKind, key: str) -> GrammarSource:
    is_object_too = kind in ("json_schema", "structural_tag")
    if not isinstance(value, str | dict if is_object_too else str):
        form = "a text or an object" if is_object_too else "a text"
        raise BadRequest(f"{key} must be {form}", key)
    return GrammarSource(kind, _text(value), key)


def _one_of(choices: list[str], key: str) -> GrammarSource:
    pattern = "|".join(f"({SPECIAL.sub(_escaped, one)})" for one in choices)
    return GrammarSource("regex", pattern, key)


def _escaped(match: re.Match[str]) -> str:
    return "\\" + match[0]


def _text(source: Any) -> str:
    return source if isinstance(source, str) else msgspec.json.encode(source).decode()
