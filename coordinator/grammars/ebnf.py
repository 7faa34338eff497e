"""Reads EBNF as xgrammar and llama.cpp (GBNF) write it: `root ::= "a" [0-9]+ | other`. Pure.

https://xgrammar.mlc.ai/docs/tutorials/ebnf_guided_generation.html
https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md

A rule goes on to the next `name ::=`, over as many lines as it likes. Characters in quotes and sets
may be escaped as in Python. This file knows nothing of what becomes of the rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.grammars.error import GrammarError

MAX_DEPTH = 50
"""Brackets may be nested so deeply."""
TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<refused>\(\s*=|(?:TagDispatch|TokenTagDispatch|Token|ExcludeToken)\s*\()
    |(?P<rule>[A-Za-z_][\w.-]*)(?=\s*::=)
    |(?P<name>[A-Za-z_][\w.-]*)
    |(?P<is>::=)
    |(?P<text>"(?:[^"\\\n]|\\.)*")
    |(?P<set>\[\^?(?:[^\]\\\n]|\\.)*\])
    |(?P<times>\{\s*\d+\s*(?:,\s*\d*\s*)?\})
    |(?P<sign>[()|*+?.])""",
    re.VERBOSE | re.ASCII,
)
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
NAMED_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "b": "\b", "0": "\0"}
REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True)
class Text:
    """These characters; "" for nothing."""

    text: str


@dataclass(frozen=True)
class CharacterSet:
    """One character of these ranges, or (negated) of no range."""

    ranges: tuple[tuple[str, str], ...]
    is_negated: bool


@dataclass(frozen=True)
class Reference:
    """What the rule of this name describes."""

    name: str


@dataclass(frozen=True)
class Chain:
    """Parts that follow each other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Choice:
    """One of these."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Repeat:
    """A part from `least` to `most` times; None: without end."""

    part: Part
    least: int
    most: int | None


Part = Text | CharacterSet | Reference | Chain | Choice | Repeat
ANY_CHARACTER = CharacterSet((), is_negated=True)


@dataclass(frozen=True)
class _EbnfToken:
    kind: str
    text: str
    line: int


def parse_ebnf(source: str) -> dict[str, Part]:
    """Returns the rules by name, in their order. Raises GrammarError, which names the line."""
    rules = _EbnfParser(_tokens(source)).rules()
    if "root" not in rules:
        raise GrammarError("there is no rule root; write root ::= …")
    return rules


def _tokens(source: str) -> list[_EbnfToken]:
    tokens: list[_EbnfToken] = []
    position, line = 0, 1
    while position < len(source):
        match = TOKEN.match(source, position)
        if match is None:
            raise GrammarError(f"line {line}: {source[position : position + 20]!r} is not expected")
        kind = match.lastgroup or ""
        if kind == "refused":
            what = "lookahead, (= …)," if "=" in match[0] else match[0] + "…)"
            raise GrammarError(f"line {line}: {what} is not supported")
        if kind != "space":
            tokens.append(_EbnfToken(kind, match[0], line))
        line += match[0].count("\n")
        position = match.end()
    tokens.append(_EbnfToken("end", "", line))
    return tokens


class _EbnfParser:
    def __init__(self, tokens: Sequence[_EbnfToken]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def rules(self) -> dict[str, Part]:
        rules: dict[str, Part] = {}
        while self._peek().kind != "end":
            name = self._take()
            if name.kind != "rule":
                raise _error(name, f"a rule, name ::= …, is expected, not {name.text!r}")
            if name.text in rules:
                raise _error(name, f"the rule {name.text} is there already")
            self._take()  # ::=
            rules[name.text] = self._choice()
            if self._peek().text == ")":
                raise _error(self._peek(), "there is no ( for this )")
        return rules

    def _choice(self) -> Part:
        parts = [self._chain()]
        while self._peek().text == "|":
            self._take()
            parts.append(self._chain())
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _chain(self) -> Part:
        parts: list[Part] = []
        while self._peek().kind not in ("rule", "end") and self._peek().text not in ("|", ")"):
            parts.append(self._repeated())
        if not parts:
            raise _error(self._peek(), 'a part is missing; write "" for nothing')
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def _repeated(self) -> Part:
        part = self._part()
        while True:
            token = self._peek()
            if token.kind == "times":
                least, comma, most = token.text[1:-1].replace(" ", "").partition(",")
                last = int(most) if most else None if comma else int(least)
                if last is not None and last < int(least):
                    raise _error(token, f"{token.text} ends before it begins")
                part = Repeat(part, int(least), last)
            elif token.text in REPEATS and token.kind == "sign":
                part = Repeat(part, *REPEATS[token.text])
            else:
                return part
            self._take()

    def _part(self) -> Part:
        token = self._take()
        if token.kind == "text":
            return Text("".join(text for text, _ in _characters(token, token.text[1:-1])))
        if token.kind == "set":
            return _set(token)
        if token.kind == "name":
            return Reference(token.text)
        if token.text == ".":
            return ANY_CHARACTER
        if token.text == "(":
            return self._group(token)
        raise _error(token, f"{token.text!r} is not expected")

    def _group(self, begin: _EbnfToken) -> Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(begin, f"brackets are nested more than {MAX_DEPTH} deep")
        part = self._choice()
        if self._take().text != ")":
            raise _error(begin, "there is no ) for this (")
        self._depth -= 1
        return part

    def _peek(self) -> _EbnfToken:
        return self._tokens[self._next]

    def _take(self) -> _EbnfToken:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token


def _set(token: _EbnfToken) -> CharacterSet:
    """Reads `[a-z_]`; a `-` that was escaped, or stands first or last, is a character."""
    inner = token.text[1:-1]
    is_negated = inner.startswith("^")
    characters = _characters(token, inner[is_negated:])
    ranges: list[tuple[str, str]] = []
    at = 0
    while at < len(characters):
        first = last = characters[at][0]
        at += 1
        if at + 1 < len(characters) and characters[at] == ("-", False):
            last = characters[at + 1][0]
            at += 2
            if last < first:
                raise _error(token, f"the range {first}-{last} ends before it begins")
        ranges.append((first, last))
    if not ranges and not is_negated:
        raise _error(token, "the set [] has no character")
    return CharacterSet(tuple(ranges), is_negated)


def _characters(token: _EbnfToken, raw: str) -> list[tuple[str, bool]]:
    """Returns the characters of a text or set, and of each whether it was escaped."""
    characters: list[tuple[str, bool]] = []
    position = 0
    while position < len(raw):
        escape = ESCAPE.match(raw, position)
        if escape is None:
            characters.append((raw[position], False))
            position += 1
        else:
            characters.append((_unescaped(token, escape), True))
            position = escape.end()
    return characters


def _unescaped(token: _EbnfToken, escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    if code is not None:
        number = int(code, 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise _error(token, f"{escape[0]} is no character")
        return chr(number)
    if escape[4] in NAMED_ESCAPES:
        return NAMED_ESCAPES[escape[4]]
    if escape[4].isalnum():
        raise _error(token, f"{escape[0]} is no escape that is known")
    return escape[4]


def _error(token: _EbnfToken, message: str) -> GrammarError:
    return GrammarError(f"line {token.line}: {message}")
