"""`followable_schema`: a JSON schema, written so that llguidance follows it. Pure.

llguidance refuses keywords that it does not know, also where they ask for nothing, and it takes
some numbers and patterns for others. What can be said otherwise is, here; what comes out describes
the same documents, or nearly all of them. What cannot is left for llguidance to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any

from coordinator.grammars.error import GrammarError
from coordinator.grammars.patterns import rust_pattern
from coordinator.grammars.schema_formats import write_format

Schema = dict[str, Any]

WHITESPACE = r"[ \n\r\t]{0,40}"
"""Between the parts of a document; without a bound a small model may go on with it for ever."""
FLEXIBLE = "whitespace_flexible"
IN_ONE = frozenset(
    (
        *("items", "additionalItems", "unevaluatedItems", "contains", "not", "if", "then", "else"),
        *("additionalProperties", "unevaluatedProperties", "propertyNames"),
    )
)
"""Keywords whose value is a schema."""
IN_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
"""Keywords whose value is a list of schemas."""
IN_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
"""Keywords whose value has schemas by name."""
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
MAX_INTEGER = (1 << 63) - (1 << 10)
"""The largest float below what an int64 holds: llguidance reads bounds as floats, and takes larger
ones for others."""
MAX_MULTIPLE = 20_000
"""The time that a multiple takes to compile grows with its square: this one takes 0.2 s."""


def followable_schema(schema: Schema) -> Schema:
    """Returns the schema as llguidance follows it, with bounded white space. Raises GrammarError
    for numbers that it would follow wrongly, or not in time."""
    try:
        written = _Writer(schema).schema(schema)
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    guidance = written.setdefault("x-guidance", {})
    if isinstance(guidance, dict) and not guidance.keys() & {"whitespace_pattern", FLEXIBLE}:
        written["x-guidance"] = {**guidance, "whitespace_pattern": WHITESPACE}
    return written


def place_of(keywords: Collection[str], schema: Any) -> str:
    """Returns where one of the keywords is first, as `properties.name`; "" if that is the top, or
    nowhere. What is around a schema that is named `json_schema` is left out."""
    todo: list[tuple[str, Any]] = [("", schema)]
    while todo:
        place, one = todo.pop()
        if isinstance(one, dict) and any(keyword in one for keyword in keywords):
            return place
        inner = one.items() if isinstance(one, dict) else enumerate(one)
        todo += [
            ("" if key == "json_schema" else f"{place}.{key}".lstrip("."), value)
            for key, value in reversed(list(inner))
            if isinstance(value, dict | list)
        ]
    return ""


class _Writer:
    """Writes the parts of one schema."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._multiple = 1
        """Of this all multiples so far are divisors."""

    def schema(self, schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        written = {key: self._value(key, value) for key, value in schema.items()}
        for rewrite in (
            _pattern,
            write_format,
            _unique_items,
            self._names,
            _bounds,
            _above_nothing,
        ):
            rewrite(written)
        self._check_multiple(written.get("multipleOf"))
        return written

    def _value(self, key: str, value: Any) -> Any:
        if key in IN_LISTS and isinstance(value, list):
            return [self.schema(one) for one in value]
        if key in IN_MAPS and isinstance(value, dict):
            name: Callable[[str], str] = rust_pattern if key == "patternProperties" else str
            return {name(one): self.schema(inner) for one, inner in value.items()}
        return self.schema(value) if key in IN_ONE else value

    def _names(self, schema: Schema) -> None:
        """Says by the names of properties what `propertyNames` says of them."""
        names = self._named(schema.get("propertyNames"))
        if names is None or "properties" in schema or "patternProperties" in schema:
            return
        values = schema.get("additionalProperties", True)
        keys = [names["const"]] if "const" in names else names.get("enum")
        if isinstance(keys, list) and all(isinstance(key, str) for key in keys):
            schema["properties"] = dict.fromkeys(keys, values)
            schema["additionalProperties"] = False
        elif isinstance(names.get("pattern"), str):
            schema["patternProperties"] = {names["pattern"]: values}
            schema["additionalProperties"] = False
        elif names.keys() & {"const", "enum", "pattern"}:
            return
        del schema["propertyNames"]

    def _named(self, names: Any) -> Schema | None:
        """Returns the schema of names if it is a plain one: names in a list, a pattern, or any."""
        if isinstance(names, dict) and isinstance(ref := names.get("$ref"), str):
            place: Any = self._root
            for step in ref.removeprefix("#/").split("/"):
                place = place.get(step) if isinstance(place, dict) else None
            names = place
        if names is True:
            return {}
        if not isinstance(names, dict) or names.get("type", "string") != "string":
            return None
        said = names.keys() - {"type", "title", "description"}
        return names if said in (set(), {"enum"}, {"const"}, {"pattern"}) else None

    def _check_multiple(self, multiple: Any) -> None:
        if not _is_number(multiple) or not 0 < multiple < math.inf:
            return
        digits = Decimal(repr(multiple)).as_tuple().digits
        number = int("".join(map(str, digits)).strip("0"))
        self._multiple = math.lcm(self._multiple, number)
        if self._multiple > MAX_MULTIPLE:
            raise GrammarError(
                f"multipleOf {str(multiple)[:40]} takes too long to follow: the least common "
                f"multiple of all in a schema, without the zeros at its end, may be {MAX_MULTIPLE}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pattern(schema: Schema) -> None:
    if isinstance(pattern := schema.get("pattern"), str):
        schema["pattern"] = rust_pattern(pattern)


def _unique_items(schema: Schema) -> None:
    """Leaves out that items are unique if that is not asked for, or there is one at most."""
    if schema.get("uniqueItems") is False or schema.get("maxItems") in (0, 1):
        schema.pop("uniqueItems", None)


def _bounds(schema: Schema) -> None:
    """Brings the bounds of integers into the range in which they are followed."""
    kinds = schema.get("type")
    if not isinstance(kinds, str | list) or "integer" not in kinds or "number" in kinds:
        return
    for key in BOUNDS:
        if not _is_number(bound := schema.get(key, 0)) or abs(bound) <= MAX_INTEGER:
            continue
        is_least = key in BOUNDS[:2]
        if is_least == (bound > 0):
            raise GrammarError(
                f"{key} {str(bound)[:40]} is beyond {MAX_INTEGER}, as far as one goes"
            )
        schema[key] = -MAX_INTEGER if is_least else MAX_INTEGER


def _above_nothing(schema: Schema) -> None:
    """Says that a number below 1 is not 0 by its size: where 0 alone is excluded, llguidance lets
    it in."""
    for excluded, included, others, sign in (
        ("exclusiveMinimum", "minimum", ("maximum", "exclusiveMaximum"), 1),
        ("exclusiveMaximum", "maximum", ("minimum", "exclusiveMinimum"), -1),
    ):
        sizes = [abs(schema[one]) for one in others if _is_number(schema.get(one))]
        size = min(sizes, default=1)
        if _is_number(schema.get(excluded)) and schema[excluded] == 0 and 0 < size < 1:
            del schema[excluded]
            schema[included] = sign * 10.0 ** (math.floor(math.log10(size)) - 6)
