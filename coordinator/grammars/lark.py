"""Writes rules of an EBNF as Lark, in the form that llguidance reads. Pure.

llguidance reads a text as lexemes, each as long as can be. So `[a-z]* "x"`, as two lexemes, would
describe nothing: the first one takes the x. Hence all that is regular, which is every rule that
does not come back to itself, and every run of such parts in the other rules, becomes one lexeme.
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from coordinator.grammars.ebnf import (
    Chain,
    CharacterSet,
    Choice,
    Part,
    Reference,
    Repeat,
    Text,
    parse_ebnf,
)
from coordinator.grammars.error import GrammarError
from coordinator.grammars.json_schemas import followable_schema
from coordinator.grammars.regex import character

LARK = re.compile(r"^\s*(?:%llguidance\b|\??start\s*(?:\[[^\]]*\])?\s*:(?!:=))", re.MULTILINE)
NAMED_TOKEN = re.compile(
    r"""(?://|\#)[^\n]* | "(?:\\.|[^"\\\n])*" | /(?:\\.|[^/\\\n])+/ | (?P<token><[^<>\s]+>)""",
    re.VERBOSE,
)
"""Matches what Lark can have around a `<`: comments, texts, regular expressions, special tokens."""
JSON_BEGIN = re.compile(r"%json\s*(?=\{)")
JSON = json.JSONDecoder()


def lark_of(source: str, special_tokens: Mapping[str, int]) -> str:
    """Returns the grammar in Lark's syntax; it may be written in that already, where `<name>` is a
    special token. `special_tokens` has their ids, by which they are asked for. Raises
    GrammarError."""
    if not LARK.search(source):
        return _LarkWriter(parse_ebnf(source)).lark()
    return NAMED_TOKEN.sub(lambda found: _by_id(found, special_tokens), _with_schemas(source))


def _with_schemas(source: str) -> str:
    """Returns Lark whose schemas, behind `%json`, are written so that llguidance follows them."""
    parts: list[str] = []
    end = 0
    while found := JSON_BEGIN.search(source, end):
        try:
            schema, after = JSON.raw_decode(source, found.end())
        except (ValueError, RecursionError):
            break  # llguidance says what is wrong with it
        parts += [source[end : found.end()], json.dumps(followable_schema(schema))]
        end = after
    return "".join([*parts, source[end:]])


def _by_id(found: re.Match[str], special_tokens: Mapping[str, int]) -> str:
    """Returns a special token of Lark by its id; all else, as texts and comments, as it is."""
    number = special_tokens.get(found["token"]) if found["token"] else None
    return found[0] if number is None else f"<[{number}]>"


class _LarkWriter:
    def __init__(self, rules: Mapping[str, Part]) -> None:
        self._rules = rules
        self._lines: list[str] = []
        self._num_lexemes = 0
        for name, rule in rules.items():
            for other in _references(rule):
                if other not in rules:
                    raise GrammarError(f"the rule {name} names {other}, which is no rule")
        self._recursive = _recursive(rules)
        # Upper case makes a lexeme of a rule; the number keeps names apart.
        self._names = {
            name: f"rule_{i}" if name in self._recursive else f"RULE_{i}"
            for i, name in enumerate(rules)
        }

    def lark(self) -> str:
        for name, rule in self._rules.items():
            is_lexeme = name not in self._recursive
            body = self._regular(rule) if is_lexeme else self._free(rule)
            self._lines.append(f"{self._names[name]}: {body}")
        return "\n".join([f"start: {self._names['root']}", *self._lines, ""])

    def _is_regular(self, part: Part) -> bool:
        return self._recursive.isdisjoint(_references(part))

    def _regular(self, part: Part) -> str:
        """Writes a part of a lexeme."""
        if isinstance(part, Text):
            return f"/{''.join(map(character, part.text))}/" if part.text else '""'
        if isinstance(part, CharacterSet):
            return f"/{_set(part)}/"
        if isinstance(part, Reference):
            return self._names[part.name]
        if isinstance(part, Repeat):
            return f"({self._regular(part.part)}){_times(part)}"
        separator = " " if isinstance(part, Chain) else " | "
        return f"({separator.join(map(self._regular, part.parts))})"

    def _free(self, part: Part) -> str:
        """Writes a part of a rule that comes back to itself."""
        if self._is_regular(part):
            return self._lexeme(part)
        if isinstance(part, Reference):
            return self._names[part.name]
        if isinstance(part, Repeat):
            return f"({self._free(part.part)}){_times(part)}"
        if isinstance(part, Choice):
            return f"({' | '.join(map(self._free, part.parts))})"
        assert isinstance(part, Chain)
        return f"({' '.join(map(self._free, self._runs(part)))})"

    def _runs(self, chain: Chain) -> Iterator[Part]:
        """Yields its parts, regular ones that follow each other as one."""
        run: list[Part] = []
        for part in chain.parts:
            if self._is_regular(part):
                run.append(part)
                continue
            if run:
                yield Chain(tuple(run))
            run = []
            yield part
        if run:
            yield Chain(tuple(run))

    def _lexeme(self, part: Part) -> str:
        name = f"LEXEME_{self._num_lexemes}"
        self._num_lexemes += 1
        self._lines.append(f"{name}: {self._regular(part)}")
        return name


def _references(part: Part) -> set[str]:
    if isinstance(part, Reference):
        return {part.name}
    if isinstance(part, Repeat):
        return _references(part.part)
    if isinstance(part, Chain | Choice):
        return set().union(*map(_references, part.parts))
    return set()


def _recursive(rules: Mapping[str, Part]) -> set[str]:
    """Returns the rules that come back to themselves, and those that need one of these."""
    waits_for = {name: _references(rule) for name, rule in rules.items()}
    needed_by: dict[str, list[str]] = {name: [] for name in rules}
    for name, others in waits_for.items():
        for other in others:
            needed_by[other].append(name)
    ready = [name for name, others in waits_for.items() if not others]
    while ready:
        name = ready.pop()
        del waits_for[name]
        for user in needed_by[name]:
            waits_for[user].discard(name)
            if not waits_for[user]:
                ready.append(user)
    return set(waits_for)


def _times(repeat: Repeat) -> str:
    return f"{{{repeat.least},{'' if repeat.most is None else repeat.most}}}"


def _set(part: CharacterSet) -> str:
    if not part.ranges:
        return "(?s:.)"
    ranges = "".join(f"{character(first)}-{character(last)}" for first, last in part.ranges)
    return f"[^{ranges}]" if part.is_negated else f"[{ranges}]"
