"""`last_words`: texts that a grammar writes out, which an answer may need at its end. Pure.

Where a set of characters allows all of them, as `.*` does before `</answer>`, nothing but the
grammar itself tells which text leads to the end.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

MAX_WORDS = 16
MAX_LENGTH = 64
"""Characters of a word; a longer one is left out."""
WORD = re.compile(r"(?:\\x\{[0-9a-fA-F]{1,6}\}|\\[^a-zA-Z0-9\s]|[a-zA-Z0-9@#%&=!<>,;_~'-])+")
NO_WORDS = re.compile(r"\[(?:\\.|[^\]\\])*\]|(?<!\\x)\{\d+(?:,\d*)?\}")
"""Matches sets of characters, and how often something comes."""
CHARACTER = re.compile(r"\\x\{(\w+)\}|\\(.)|(.)", re.DOTALL)
HOLDERS = ("lark_grammar", "regex", "pattern")
"""Keys whose value has regular expressions."""


@functools.lru_cache(64)
def last_words(grammar: str) -> tuple[bytes, ...]:
    """Returns the last texts that are written out in the regular expressions of a grammar in
    llguidance's form, the last one first."""
    words: dict[bytes, None] = {}
    for source in reversed(_sources(grammar)):
        for word in reversed(WORD.findall(NO_WORDS.sub(" ", source))):
            text = "".join(map(_character, CHARACTER.findall(word)))
            if len(text) <= MAX_LENGTH:
                words.setdefault(text.encode(errors="ignore"))
            if len(words) == MAX_WORDS:
                return tuple(words)
    return tuple(words)


def _character(found: tuple[str, str, str]) -> str:
    number, escaped, plain = found
    return chr(int(number, 16)) if number else escaped or plain


def _sources(grammar: str) -> list[str]:
    """Returns the texts with regular expressions, in the order in which they are written."""
    if not grammar.startswith("{"):
        return [grammar]
    sources: list[str] = []
    todo: list[Any] = [json.loads(grammar)]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo += reversed(one)
        elif isinstance(one, dict):
            sources += [one[key] for key in HOLDERS if isinstance(one.get(key), str)]
            todo += reversed(list(one.values()))
    return sources
