"""Chains of rules: llguidance follows them by recursion on the machine's stack, and a chain of a
few thousand ends the process. So the rules of a grammar are counted before it sees them. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from coordinator.grammars.error import GrammarError

MAX_RULES = 1000
"""So many rules, or references of schemas, may follow each other: a third of what was seen to pass
on a thread's usual stack of 8 MiB."""
RULE = re.compile(r"^[ \t]*[?!]?\w[\w.]*(?:\{[^}]*\}|\[[^\]]*\])?[ \t]*:", re.MULTILINE)
REFERENCE = re.compile(r'"(?:\$|\\u0024)(?:r|\\u0072)(?:e|\\u0065)(?:f|\\u0066)"', re.IGNORECASE)
"""Matches the key `$ref` of a schema that is within a text of Lark, behind `%json`."""


def require_short_chains(grammar: str) -> None:
    """Raises GrammarError if a grammar has so many rules that a chain of them may be too long. It
    is one that llguidance takes: a text of Lark, or JSON with such texts and schemas."""
    is_json = grammar.startswith("{")
    num_rules = _num_rules(json.loads(grammar) if is_json else {"lark_grammar": grammar})
    if num_rules > MAX_RULES:
        raise GrammarError(f"it has {num_rules} rules or references; at most {MAX_RULES} go")


def _num_rules(part: Any) -> int:
    """Counts rules in the texts of Lark, and references in schemas."""
    num_rules, todo = 0, [part]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo += one
        elif isinstance(one, dict):
            todo += one.values()
            num_rules += isinstance(one.get("$ref"), str)
            if isinstance(lark := one.get("lark_grammar"), str):
                num_rules += len(RULE.findall(lark)) + len(REFERENCE.findall(lark))
    return num_rules
