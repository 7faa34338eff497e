"""`rust_pattern`: the pattern of a JSON schema, ECMAScript's, in llguidance's syntax. Pure.

Most patterns mean the same in both. What does not is written otherwise here: a `{` that begins no
quantifier, what means something only in Rust's sets, `\\d` and `\\w`, which are of ASCII in
ECMAScript, and characters of two halves. All else is left for llguidance to take or to refuse.
"""

from __future__ import annotations

import re

PART = re.compile(
    r"""(?P<pair>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})
    | (?P<control>\\c[a-zA-Z])
    | (?P<escape>\\[pPu]\{[^{}]*\}|\\.)
    | (?P<quantifier>(?<!^)\{(?:\d+(?:,\d*)?|,\d+)\})
    | (?P<character>.)""",
    re.VERBOSE | re.DOTALL,
)
SPELLED = {
    r"\d": "[0-9]",
    r"\D": "[^0-9]",
    r"\w": "[a-zA-Z0-9_]",
    r"\W": "[^a-zA-Z0-9_]",
    r"\<": r"\x{3c}",
    r"\>": r"\x{3e}",
    r"\0": r"\x{0}",
}
DOUBLED = "&~-"
"""Twice in a row, each of these is an operation on sets in Rust, and itself in ECMAScript."""


def rust_pattern(pattern: str) -> str:
    """Returns the pattern in the syntax of llguidance's regular expressions."""
    written: list[str] = []
    set_begins_at = -1
    """The place behind the `[` of the set that is open; -1 if none is."""
    before = ""
    for found in PART.finditer(pattern):
        part, kind = found[0], found.lastgroup
        is_in_set = set_begins_at >= 0
        if kind == "character" and part == "[" and not is_in_set:
            set_begins_at = found.end() + pattern.startswith("^", found.end())
        elif kind == "character" and part == "]" and is_in_set and found.start() > set_begins_at:
            set_begins_at = -1
        else:
            needs_escape = part in "[{" or (is_in_set and part in DOUBLED and part == before)
            part = _written(part, kind, needs_escape, is_in_set)
        written.append(part)
        before = found[0]
    return "".join(written)


def _written(part: str, kind: str | None, needs_escape: bool, is_in_set: bool) -> str:
    if kind == "pair":
        high, low = int(part[2:6], 16), int(part[8:], 16)
        return rf"\x{{{0x10000 + ((high - 0xD800) << 10) + low - 0xDC00:x}}}"
    if kind == "control":
        return rf"\x{{{ord(part[2]) % 32:x}}}"
    if part == r"\b" and is_in_set:
        return r"\x{8}"
    if kind == "escape":
        return SPELLED.get(part, part)
    return f"\\{part}" if kind == "character" and needs_escape else part
