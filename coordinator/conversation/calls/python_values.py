"""Python's literals, as arguments of pythonic calls have them, and what they are in JSON. Pure."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from coordinator.conversation.json_object import MAX_DEPTH
from coordinator.conversation.tape import Reading, Tape

PLAIN = re.compile(r"[^\[\](){},'\"]*")
QUOTES = "'\""
IN_STRING = {quote: re.compile(rf"(?:[^{quote}\\]|\\[\s\S])*") for quote in QUOTES}
NAMES = {"true": True, "false": False, "null": None}
"""Words of JSON, which models mix into Python."""


def read_value(tape: Tape) -> Reading[str | None]:
    """Reads up to the comma or bracket that ends the value. Returns the value as JSON; None if
    there is none, or none that JSON has."""
    begin, depth, quote = tape.place, 0, ""
    while True:
        match = (IN_STRING[quote] if quote else PLAIN).match(tape.text, tape.place)
        tape.place = match.end() if match else tape.place
        character = tape.text[tape.place : tape.place + 1]
        if character in ("", "\\"):  # at the end, which may be half of an escape
            if not (yield from tape.more()):
                return None
            continue
        if not depth and not quote and character in ",)]}":
            return as_json(tape.text[begin : tape.place])
        tape.place += 1
        if character in QUOTES:
            quote = "" if quote else character
        else:
            depth += 1 if character in "[({" else -1 if character in "])}" else 0
        if depth > MAX_DEPTH:
            return None


def as_json(text: str) -> str | None:
    """Returns a literal of Python or JSON as JSON; None if it is none."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _converted(text)
    return text.strip()


def _converted(text: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes in strings
            value = _value(ast.parse(text.strip(), mode="eval").body)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return written if written.isprintable() else json.dumps(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    """Returns what a literal is. Raises ValueError for what JSON has not."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in NAMES:
        return NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        keys = [None if key is None else _value(key) for key in node.keys]
        if all(isinstance(key, str) for key in keys):
            return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _value(node.operand)
        if isinstance(operand, int | float) and not isinstance(operand, bool):
            return -operand
    raise ValueError("JSON has no such value")


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")
