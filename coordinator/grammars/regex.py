"""`rust_regex`: a regular expression of Python's, written in the syntax of llguidance's. Pure.

Python's own parser reads the pattern, so it means what `re.fullmatch` makes of it: a `{` that
begins no quantifier is a character, flags and groups are what they are there. What comes out
describes the same texts, but for `\\d`, which is a digit of ASCII: numbers are read by machines.
Lookaround, backreferences and whatever else no automaton can follow is refused by name.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, cast

from coordinator.grammars.error import GrammarError

if sys.version_info >= (3, 11):
    import re._constants as sre
    import re._parser as sre_parser
else:  # the same modules by their old names
    import sre_constants as sre
    import sre_parse as sre_parser

Node = tuple[Any, Any]
"""An operation of Python's parser, and its arguments."""

UNICODE_CATEGORIES: dict[Any, str] = {
    sre.CATEGORY_DIGIT: r"\p{Nd}",
    sre.CATEGORY_SPACE: r"\s\x{1c}-\x{1f}",
    sre.CATEGORY_WORD: r"\p{L}\p{N}_",
}
ASCII_CATEGORIES: dict[Any, str] = {
    sre.CATEGORY_DIGIT: "0-9",
    sre.CATEGORY_SPACE: r"\x{9}-\x{d}\x{20}",
    sre.CATEGORY_WORD: "a-zA-Z0-9_",
}
OPPOSITES: dict[Any, Any] = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}
REFUSED = {
    "ASSERT": "lookahead and lookbehind are not supported",
    "ASSERT_NOT": "negative lookahead and lookbehind are not supported",
    "FAILURE": "negative lookahead and lookbehind are not supported",
    "GROUPREF": "backreferences are not supported",
    "GROUPREF_IGNORE": "backreferences are not supported",
    "GROUPREF_EXISTS": "conditions on groups are backreferences, which are not supported",
    "ATOMIC_GROUP": "atomic groups, (?>…), are not supported",
    "POSSESSIVE_REPEAT": "possessive quantifiers, as in a++, are not supported",
}
"""By operation of Python's parser; there is no text that such a part alone would describe."""


def rust_regex(pattern: str) -> str:
    """Returns the regular expression for the texts that `re.fullmatch(pattern, …)` matches.

    Raises GrammarError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what later versions of Python may read otherwise
            parsed = sre_parser.parse(pattern)
        return _RegexWriter(parsed.state.flags).sequence(cast("Any", parsed), True, True)
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    except (re.error, OverflowError) as error:
        raise GrammarError(str(error)) from None


class _RegexWriter:
    """Writes parts of a pattern under some flags.

    `at_start` and `at_end` say whether nothing can come before or behind a part: there, anchors
    hold and mean nothing.
    """

    def __init__(self, flags: int) -> None:
        self._flags = flags

    def sequence(self, nodes: Sequence[Node], at_start: bool, at_end: bool) -> str:
        first = next((i for i, node in enumerate(nodes) if node[0] is not sre.AT), len(nodes))
        last = max((i for i, node in enumerate(nodes) if node[0] is not sre.AT), default=-1)
        return "".join(
            self._node(node, at_start and i <= first, at_end and i >= last)
            for i, node in enumerate(nodes)
        )

    def _node(self, node: Node, at_start: bool, at_end: bool) -> str:
        operation, argument = node
        if operation is sre.LITERAL:
            return self._folded(character(chr(argument)))
        if operation is sre.NOT_LITERAL:
            return self._folded(f"[^{character(chr(argument))}]")
        if operation is sre.ANY:
            return "(?s:.)" if self._flags & re.DOTALL else r"[^\n]"
        if operation is sre.IN:
            return self._folded(self._set(argument))
        if operation is sre.BRANCH:
            branches = (self.sequence(list(b), at_start, at_end) for b in argument[1])
            return f"(?:{'|'.join(branches)})"
        if operation is sre.SUBPATTERN:
            _, added, removed, inner = argument
            flags = (self._flags | added) & ~removed
            return f"(?:{_RegexWriter(flags).sequence(list(inner), at_start, at_end)})"
        if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._repeat(argument, at_start, at_end)
        if operation is sre.AT:
            return self._anchor(argument, at_start, at_end)
        raise GrammarError(REFUSED.get(str(operation), f"{operation} is not supported"))

    def _repeat(self, argument: Any, at_start: bool, at_end: bool) -> str:
        least, most, inner = argument
        is_once = most == 1
        text = self.sequence(list(inner), at_start and is_once, at_end and is_once)
        top = "" if most is sre.MAXREPEAT else int(most)
        return f"(?:{text}){{{least},{top}}}"

    def _anchor(self, kind: Any, at_start: bool, at_end: bool) -> str:
        if kind in (sre.AT_BOUNDARY, sre.AT_NON_BOUNDARY):
            raise GrammarError(r"word boundaries, \b and \B, are not supported")
        is_start = kind in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
        if at_start if is_start else at_end:
            return ""
        sign, place = ("^", "start") if is_start else ("$", "end")
        raise GrammarError(f"an anchor {sign} is only supported at the {place} of the whole")

    def _set(self, items: Sequence[Node]) -> str:
        is_negated = items[0][0] is sre.NEGATE
        members = "".join(self._member(item, is_negated) for item in items[is_negated:])
        return f"[^{members}]" if is_negated else f"[{members}]"

    def _member(self, item: Node, is_negated: bool) -> str:
        operation, argument = item
        if operation is sre.LITERAL:
            return character(chr(argument))
        if operation is sre.RANGE:
            first, last = argument
            return f"{character(chr(first))}-{character(chr(last))}"
        assert operation is sre.CATEGORY
        is_opposite = argument in OPPOSITES
        category = OPPOSITES.get(argument, argument)
        # Only ASCII's digits are let in; where digits are kept out, all of them are.
        is_let_in = is_opposite == is_negated
        is_ascii = self._flags & re.ASCII or (category is sre.CATEGORY_DIGIT and is_let_in)
        characters = (ASCII_CATEGORIES if is_ascii else UNICODE_CATEGORIES)[category]
        return f"[^{characters}]" if is_opposite else characters

    def _folded(self, text: str) -> str:
        return f"(?i:{text})" if self._flags & re.IGNORECASE else text


def character(text: str) -> str:
    """Returns one character as it is written in llguidance's regular expressions, and also inside
    `/…/` in Lark."""
    if 0xD800 <= ord(text) < 0xE000:
        raise GrammarError(f"U+{ord(text):04X} is half of a character; write the whole one")
    return text if text.isascii() and text.isalnum() else rf"\x{{{ord(text):x}}}"
