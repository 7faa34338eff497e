"""From decoded JSON to typed values, with a sentence that names the key where that fails. Pure."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from coordinator.http.errors import BadRequest

Checked = TypeVar("Checked")
UNKNOWN_KEY = re.compile("unknown field `(.*)`")
MISSING_KEY = re.compile("Object missing required field `(.*)`")
FIRST_KEY = re.compile(r"\w+")
OUT_OF_RANGE = re.compile(r": expected (int|float) [<>]=? \S+$")
MAX_SHOWN = 40
"""Characters of a value that a sentence shows."""
STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
"""Matches one step of the path at the end of a sentence of msgspec's."""


def checked(raw: Any, kind: type[Checked], where: str = "") -> Checked:
    """Returns `raw` as a `kind`. Raises BadRequest, which names the wrong key with `where` before
    it."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        sentence, key = _sentence(str(error))
        if OUT_OF_RANGE.search(sentence):
            sentence += _got(raw, str(error))
        param = f"{where}{key}".replace(": ", ".") if key else None
        raise BadRequest(where + sentence, param) from None


def parse_object(raw: bytes | bytearray) -> dict[str, Any]:
    """Returns the JSON object that `raw` is. Raises BadRequest if it is something else."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def without_nulls(body: dict[str, Any]) -> dict[str, Any]:
    """Returns `body` without the keys whose value is null, which stands for the default."""
    return {key: value for key, value in body.items() if value is not None}


def _got(raw: Any, error: str) -> str:
    """Returns the end of a sentence about a number out of range: the number, cut if it is long."""
    value = raw
    for key, index in STEP.findall(error.rpartition(" - at `$")[2]):
        value = value.get(key) if key else value[int(index)]
    return f", got {value:g}" if isinstance(value, float) else f", got {str(value)[:MAX_SHOWN]}"


def _sentence(error: str) -> tuple[str, str]:
    """Turns msgspec's "Expected `int`, got `str` - at `$.key[0]`" into a sentence that begins with
    the key, and the key."""
    if unknown := UNKNOWN_KEY.search(error):
        return f"unknown key {unknown[1]}", unknown[1]
    if missing := MISSING_KEY.fullmatch(error):
        return f"{missing[1]} is missing", missing[1]
    what, _, path = error.partition(" - at `$.")
    path = path.rstrip("`")
    key = FIRST_KEY.match(path)
    sentence = f"{path or 'body'}: {what[0].lower()}{what[1:].replace('`', '')}"
    return sentence, key[0] if key else ""
