"""Patterns that end an answer, found in a text that grows, in time linear in the text. Pure.

Python's `re` backtracks, and a pattern like `(a+)+$` could hold the event loop for ever. So its
parser alone is used (SGLang takes the same syntax), and what it parses is run as a nondeterministic
automaton without backtracking (Thompson, "Regular expression search algorithm", 1968): one pass,
each character costs at most the number of the pattern's states, which is bounded. So is what sets
ask of a character: single ones are looked up, and each range or class counts as a state.

What looks around, refers back, or asks where a word or a line ends is refused, since a growing
text does not know yet what follows. A `$` that ends a pattern asks for the end of the text so far,
which every match has found, since it is looked for after each character.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

MAX_STATES = 512
"""States of all patterns of a request together: what a character may cost."""

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_constants: Any = importlib.import_module(
    "re._constants" if sys.version_info >= (3, 11) else "sre_constants"
)
IGNORE_CASE, DOT_ALL = _parser.SRE_FLAG_IGNORECASE, _parser.SRE_FLAG_DOTALL
ASCII, MULTILINE = _parser.SRE_FLAG_ASCII, _parser.SRE_FLAG_MULTILINE
CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda c: c.isalnum() or c == "_",
}
BEGINNINGS = ("AT_BEGINNING", "AT_BEGINNING_STRING")
ENDINGS = ("AT_END", "AT_END_STRING")
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")

CharTest = Callable[[str], bool]


class BadStopRegex(Exception):
    """The pattern cannot be used; the message says why."""


@dataclass
class _State:
    """A state of the automaton. It takes a character if `accepts` is set, else it costs none."""

    accepts: CharTest | None = None
    next: list[int] = field(default_factory=list)
    needs_start: bool = False
    """It can be passed only where the text begins."""


class StopRegexes:
    """Finds the first match of any pattern in a growing text, and says how much is safe to show.

    A match ends as soon as it can: at the first character with which any pattern matches. It begins
    as early as it can.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises BadStopRegex if a pattern cannot be used."""
        self._states: list[_State] = []
        self._num_tests = 0
        """The ranges and classes in all sets, beyond the first of each."""
        self._ends: dict[int, str] = {}
        """The pattern that has matched in each last state."""
        self._begins = [self._add(pattern) for pattern in patterns]
        self._entries = self._closure(dict.fromkeys(self._begins, 0), 1).keys()
        """The states in which a match may begin, but for those at the beginning of the text."""
        self._searched = 0
        self._alive: dict[int, int] = {}
        """Where in the text the earliest match begins that has come to each state."""

    def find(self, text: str) -> tuple[int, int, str] | None:
        """Returns where the first match begins and ends, and its pattern, or None. `text` must only
        grow from call to call, and not after a match."""
        for position in range(self._searched, len(text)):
            found = self._step(text[position], position)
            if found is not None:
                return found
        self._searched = len(text)
        return None

    def safe_length(self, text: str) -> int:
        """Returns how many characters of `text`, which was searched already, can be shown: the rest
        may be the beginning of a match."""
        return min(self._alive.values(), default=len(text))

    def _step(self, character: str, position: int) -> tuple[int, int, str] | None:
        entries = self._entries
        if position == 0:
            entries = self._closure(dict.fromkeys(self._begins, 0), 0).keys()
        reached: dict[int, int] = {}
        for state, began in chain(self._alive.items(), zip(entries, repeat(position))):
            accepts = self._states[state].accepts
            if accepts is not None and accepts(character):
                for target in self._states[state].next:
                    reached[target] = min(began, reached.get(target, began))
        if not reached:
            self._alive = {}
            return None
        self._alive = self._closure(reached, position + 1)
        matches = [(self._alive[end], end) for end in self._ends if end in self._alive]
        if not matches:
            return None
        began, end = min(matches)
        return began, position + 1, self._ends[end]

    def _closure(self, reached: dict[int, int], position: int) -> dict[int, int]:
        """Returns `reached` and all states that come behind it at no cost; of those, only the ones
        that take a character or end a pattern."""
        earliest: dict[int, int] = {}
        for state, began in sorted(reached.items(), key=lambda item: item[1]):
            todo = [state]
            while todo:
                at = todo.pop()
                if at in earliest or (self._states[at].needs_start and position > 0):
                    continue
                earliest[at] = began
                if self._states[at].accepts is None:
                    todo += self._states[at].next
        return {
            state: began
            for state, began in earliest.items()
            if self._states[state].accepts is not None or state in self._ends
        }

    def _add(self, pattern: str) -> int:
        """Adds the states of a pattern and returns its first one."""
        try:
            parsed = _parser.parse(pattern)
        except (_constants.error, OverflowError, RecursionError) as error:
            raise BadStopRegex(f"{pattern!r} is no regular expression: {error}") from None
        try:
            begin = self._new()
            end = self._sequence(_without_end(parsed), begin, parsed.state.flags, pattern)
        except RecursionError:
            raise BadStopRegex(f"{pattern!r} is nested too deeply") from None
        self._ends[end] = pattern
        if end in self._closure({begin: 0}, 0):
            raise BadStopRegex(f"{pattern!r} matches the empty text: every answer would be empty")
        return begin

    def _new(self, accepts: CharTest | None = None) -> int:
        if len(self._states) + self._num_tests >= MAX_STATES:
            raise BadStopRegex(f"the patterns are too large: they need over {MAX_STATES} states")
        self._states.append(_State(accepts))
        return len(self._states) - 1

    def _sequence(self, items: Any, begin: int, flags: int, pattern: str) -> int:
        """Adds the states of parsed items after the state `begin`; returns the state behind
        them."""
        at = begin
        for code, value in items:
            at = self._item(str(code), value, at, flags, pattern)
        return at

    def _item(self, code: str, value: Any, begin: int, flags: int, pattern: str) -> int:
        if code == "SUBPATTERN":
            _, added, removed, items = value
            return self._sequence(items, begin, (flags | added) & ~removed, pattern)
        if code == "ATOMIC_GROUP":  # without backtracking every group is one
            return self._sequence(value, begin, flags, pattern)
        if code == "BRANCH":
            end = self._new()
            for items in value[1]:
                self._link(self._sequence(items, self._behind(begin), flags, pattern), end)
            return end
        if code in REPEATS:
            least, most, items = value
            return self._repeat(items, begin, (int(least), most), flags, pattern)
        if code == "AT" and str(value) in BEGINNINGS and not flags & MULTILINE:
            at = self._behind(begin)
            self._states[at].needs_start = True
            return at
        accepts = _char_test(code, value, flags)
        if accepts is None:
            what = {
                "GROUPREF": "a backreference",
                "AT": r"a border of lines or words ($ before its end, \b)",
            }
            name = what.get(code, "lookaround" if code.startswith("ASSERT") else code.lower())
            raise BadStopRegex(f"{pattern!r} has {name}, which a growing text cannot answer")
        if code == "IN":
            self._num_tests += max(0, sum(map(_is_test, value)) - 1)
        at, end = self._new(accepts), self._new()
        self._link(begin, at)
        self._link(at, end)
        return end

    def _repeat(
        self, items: Any, begin: int, times: tuple[int, Any], flags: int, pattern: str
    ) -> int:
        least, most = times
        at = begin
        for _ in range(least):
            at = self._sequence(items, self._behind(at), flags, pattern)
        end = self._new()
        self._link(at, end)
        if most == _constants.MAXREPEAT:
            loop = self._behind(at)
            self._link(self._sequence(items, loop, flags, pattern), loop)
            self._link(loop, end)
            return end
        for _ in range(int(most) - least):
            at = self._sequence(items, self._behind(at), flags, pattern)
            self._link(at, end)
        return end

    def _behind(self, state: int) -> int:
        """Returns a new state behind `state`, so that what loops back does not come to `state`."""
        at = self._new()
        self._link(state, at)
        return at

    def _link(self, state: int, target: int) -> None:
        self._states[state].next.append(target)


def _without_end(parsed: Any) -> list[Any]:
    """Returns the parsed items of a pattern but for a `$` or `\\Z` at its end."""
    items = list(parsed)
    is_bound = bool(items) and str(items[-1][0]) == "AT" and str(items[-1][1]) in ENDINGS
    return items[:-1] if is_bound else items


def _char_test(code: str, value: Any, flags: int) -> CharTest | None:
    """Returns what one parsed item says of a character; None if it says nothing of one."""
    test = _plain_test(code, value, flags)
    if test is None or not flags & IGNORE_CASE:
        return test
    return lambda c: any(len(form) == 1 and test(form) for form in (c, c.lower(), c.upper()))


def _plain_test(code: str, value: Any, flags: int) -> CharTest | None:
    if code == "ANY":
        return (lambda c: True) if flags & DOT_ALL else (lambda c: c != "\n")
    if code in ("LITERAL", "NOT_LITERAL"):
        literal = chr(value)
        return literal.__eq__ if code == "LITERAL" else literal.__ne__
    if code == "RANGE":
        low, high = map(chr, value)
        return lambda c: low <= c <= high
    if code == "CATEGORY":
        name = str(value).removeprefix("CATEGORY_")
        in_unicode = CATEGORIES[name.removeprefix("NOT_")]
        inside = (lambda c: c.isascii() and in_unicode(c)) if flags & ASCII else in_unicode
        return (lambda c: not inside(c)) if name.startswith("NOT_") else inside
    if code != "IN":
        return None
    is_negated = str(value[0][0]) == "NEGATE"
    literals = frozenset(chr(part) for kind, part in value if str(kind) == "LITERAL")
    parts = [_plain_test(str(one[0]), one[1], flags) for one in value if _is_test(one)]
    tests = [part for part in parts if part is not None]
    return lambda c: (c in literals or any(test(c) for test in tests)) != is_negated


def _is_test(member: Any) -> bool:
    """Returns whether a member of a set is a range or a class."""
    return str(member[0]) not in ("NEGATE", "LITERAL")
