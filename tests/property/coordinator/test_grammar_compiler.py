"""What becomes of the grammars that clients write: accepted, or refused with a sentence."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.answers.grammars import (
    MAX_PENDING,
    MAX_REMEMBERED,
    MAX_SOURCE_CHARACTERS,
    GrammarCompiler,
    GrammarKind,
)
from coordinator.grammars.chains import MAX_RULES
from coordinator.grammars.error import GrammarError, TooManyGrammars
from tests.support.models.grammars import accepts, compiler, tokenizer_json

REFUSED: list[tuple[GrammarKind, str, str]] = [
    ("regex", "a(?=b)", "lookahead"),
    ("regex", "a(?!b)", "lookahead"),
    ("regex", "(?<=a)b", "lookbehind"),
    ("regex", "(?<!a)b", "lookbehind"),
    ("regex", r"(a)\1", "backreferences"),
    ("regex", r"(?P<x>a)(?P=x)", "backreferences"),
    ("regex", r"(a)?(?(1)b|c)", "backreferences"),
    ("regex", r"\bword\b", "word boundaries"),
    ("regex", "a^b", "anchor ^"),
    ("regex", "a$b", "anchor $"),
    ("regex", "(", "unterminated"),
    ("regex", "[z-a]", "bad character range"),
    ("regex", "(a" * 300 + ")" * 300, "nested"),
    ("regex", "(" * 5000 + ")" * 5000, "nested"),
    ("regex", r"[^\x00-\U0010ffff]", "no text"),
    ("json_schema", "{", "no JSON"),
    ("json_schema", "[]", "object"),
    ("json_schema", '{"type": "strin"}', "strin"),
    ("json_schema", '{"not": {}}', "not"),
    ("json_schema", '{"enum": []}', "Unsatisfiable"),
    ("json_schema", '{"$ref": "http://elsewhere/schema"}', "elsewhere"),
    ("json_schema", '{"a":' * 100_000, "characters"),
    ("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000, "recursion"),
    ("ebnf", "", "root"),
    ("ebnf", "root ::=", "line 1"),
    ("ebnf", "root ::= other", "other"),
    ("ebnf", 'root ::= "a"\nroot ::= "b"', "line 2"),
    ("ebnf", 'root ::= "a" (= "b")', "lookahead"),
    ("ebnf", 'root ::= TagDispatch(("a", b))', "TagDispatch"),
    ("ebnf", "root ::= " + "(" * 200 + '"a"' + ")" * 200, "nested"),
    ("ebnf", "root ::= [z-a]", "range"),
    ("ebnf", 'root ::= "a"{3,2}', "ends before it begins"),
    ("ebnf", "start: x", "unknown name"),
    ("structural_tag", "[]", "object"),
    ("structural_tag", "{}", "format"),
    ("structural_tag", '{"structures": [], "triggers": []}', "structures"),
    ("structural_tag", '{"structures": [{"begin": "a"}], "triggers": ["b"]}', "triggers"),
    ("structural_tag", '{"format": {"type": "qwen_xml_parameter"}}', "qwen_xml_parameter"),
]


@pytest.mark.parametrize(("kind", "source", "reason"), REFUSED)
def test_a_grammar_that_cannot_be_followed_is_refused(
    kind: GrammarKind, source: str, reason: str
) -> None:
    with pytest.raises(GrammarError) as refused:
        compiler().compile_now(kind, source)
    assert str(refused.value).startswith(f"{kind}")
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 500


def test_every_kind_has_a_refusal() -> None:
    assert {kind for kind, *_ in REFUSED} == set(get_args(GrammarKind))


def test_a_large_grammar_is_refused() -> None:
    with pytest.raises(GrammarError, match="characters"):
        compiler().compile_now("regex", "a" * (MAX_SOURCE_CHARACTERS + 1))


def test_what_is_compiled_is_remembered_and_not_for_ever() -> None:
    """What was used last stays."""

    async def test() -> None:
        fresh = GrammarCompiler(tokenizer_json())
        used = await fresh.compile("regex", "used")
        for i in range(MAX_REMEMBERED + 5):
            await fresh.compile("regex", f"a{i}")
            assert await fresh.compile("regex", "used") is used
        assert len(fresh._compiled) == MAX_REMEMBERED
        assert ("regex", "a0") not in fresh._compiled

    asyncio.run(test())


def test_what_is_being_compiled_is_compiled_once_and_too_many_at_once_are_refused() -> None:
    async def test() -> None:
        fresh = GrammarCompiler(tokenizer_json())
        wanted = [fresh.compile("regex", f"a{i % MAX_PENDING}") for i in range(2 * MAX_PENDING)]
        waiting = [asyncio.ensure_future(one) for one in wanted]
        await asyncio.sleep(0)  # all have asked
        with pytest.raises(TooManyGrammars, match="64 grammars wait"):
            await fresh.compile("regex", "b")
        grammars = await asyncio.gather(*waiting)
        assert all(grammars[i] is grammars[i + MAX_PENDING] for i in range(MAX_PENDING))
        assert await fresh.compile("regex", "b")

    asyncio.run(test())


LONG = 5000


def chain(first: str, rule: str, last: str) -> str:
    """Returns `first`, LONG rules each of which needs the next one, and the last one."""
    rules = [rule.format(this=f"r{i}", next=f"r{i + 1}") for i in range(LONG)]
    return "\n".join([first, *rules, last.format(this=f"r{LONG}")])


CHAINS: list[tuple[GrammarKind, str]] = [
    ("ebnf", chain("root ::= r0", "{this} ::= {next}", '{this} ::= "a"')),
    ("ebnf", chain("root ::= r0", "{this} ::= {next} | root", '{this} ::= "a"')),
    ("ebnf", chain("start: r0", "{this}: {next}", '{this}: "a"')),
    (
        "json_schema",
        json.dumps(
            {
                "$ref": "#/$defs/a0",
                "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(LONG)}
                | {f"a{LONG}": {"type": "null"}},
            }
        ),
    ),
]


@pytest.mark.parametrize(("kind", "source"), CHAINS)
def test_a_chain_that_would_end_the_process_is_refused(kind: GrammarKind, source: str) -> None:
    """llguidance follows chains by recursion on the machine's stack."""
    with pytest.raises(GrammarError, match=f"at most {MAX_RULES} go"):
        compiler().compile_now(kind, source)


# Regular expressions

CHARACTERS = [
    "a",
    "b",
    "B",
    "é",
    "É",
    "²",
    "٣",
    "3",
    "{",
    "}",
    "[",
    "]",
    '"',
    "\n",
    " ",
    "_",
    ",",
    "/",
]
ATOMS = [
    *["a", "b", "é", "{", "}", "]", '"', ",", "/", ".", r"\{", r"\]", r"\.", r"\n", " "],
    *["[ab]", "[^ab]", "[]a]", "[^]]", "[a-c{]", r"[\w,]", r"[^\s]", "[a&&b]", r"[\]\-]"],
    *[r"\w", r"\W", r"\D", r"\s", r"\S", "(?:ab)", "(?P<n>a)", "(?i:b)", "(?s:.)", r"\x61", "{ "],
]
QUANTIFIERS = ["", "", "", "*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{,2}", "{1,}"]
piece = st.tuples(st.sampled_from(ATOMS), st.sampled_from(QUANTIFIERS)).map("".join)
chain = st.lists(piece, min_size=1, max_size=4).map("".join)
pattern = st.lists(chain, min_size=1, max_size=3).map("|".join)
PREFIXES = ["", "^", "(?i)", "(?a)", "(?s)"]


@pytest.mark.filterwarnings("ignore:Possible set:FutureWarning")
@settings(max_examples=150, deadline=None)
@given(
    prefix=st.sampled_from(PREFIXES),
    body=pattern,
    texts=st.lists(st.text(st.sampled_from(CHARACTERS), max_size=5), min_size=10, max_size=20),
)
def test_a_regex_means_what_fullmatch_makes_of_it(prefix: str, body: str, texts: list[str]) -> None:
    """Of patterns that contain no \\d, whose digits are those of ASCII."""
    source = f"{prefix}(?:{body})"
    try:
        python = re.compile(source)
    except re.error:  # as in {1,}*: multiple repeat
        with pytest.raises(GrammarError):
            compiler().compile_now("regex", source)
        return
    try:
        grammar = compiler().compile_now("regex", source)
    except GrammarError as error:
        assert "supported" in str(error), "a{1,}+ is possessive for some versions of Python"
        return
    for text in [*texts, "", "a", "ab", "{", "a{", "b]"]:
        assert accepts(grammar, text) == bool(python.fullmatch(text)), (source, text)


@pytest.mark.parametrize(
    ("source", "accepted", "rejected"),
    [
        ('{ "a": 1 }', '{ "a": 1 }', "{}"),
        ("a{", "a{", "a"),
        ("x{a}", "x{a}", "xa"),
        ("^(a|b)$", "b", "ab"),
        ("^a|b$", "b", "^a"),
        (r"\Aa\Z", "a", "a\n"),
        (r"\d+", "12", "٣"),
        (r"[^\d]", "x", "٣"),
        (r"(?x) a b  # why", "ab", "a b"),
        ("(?m)^a$", "a", "a\n"),
        ("", "", "a"),
        ("a|", "", "b"),
        (r"\u00e9\U0001F600", "é😀", "é"),
    ],
)
def test_regexes_in_particular(source: str, accepted: str, rejected: str) -> None:
    grammar = compiler().compile_now("regex", source)
    assert accepts(grammar, accepted)
    assert not accepts(grammar, rejected)


# EBNF

JSON_EBNF = r"""
root ::= value   # llama.cpp's json.gbnf, in short
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws
    (value ("," ws value)*)?
  "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | [ \n\t]{0,20}
"""


@pytest.mark.parametrize(
    ("source", "accepted", "rejected"),
    [
        ('root ::= [a-z]* "x"', ["x", "abx", "xx"], ["", "ab"]),
        ('root ::= "a"* "a"', ["a", "aaa"], [""]),
        ('root ::= "a" root "b" | ""', ["", "aabb"], ["aab", "abab"]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["a", ""]),
        ('root ::= ("a" | b-rule)+\nb-rule ::= [^\\]\\-^a]{2}', ["a", "axy"], ["x", "--", "^^"]),
        (r'root ::= "\x41\u00e9\U0001F600\n\"\\" .', ['Aé😀\n"\\x'], ["A"]),
        ("root ::= [-+] [a\\-z] [^-]", ["-az", "+-a"], ["-ba", "+--"]),
        (
            'root ::= (a | "(" root ")") ("," root)?\na ::= [0-9]+',
            ["1,(2,3)", "((4))"],
            ["(1", ","],
        ),
        ('%llguidance {}\nstart: "a" /b+/', ["abb"], ["a"]),
        (
            JSON_EBNF.replace("ws ::= |", 'ws ::= "" |'),
            ['{"a": [1, -2.5e3, "x\\n", null], "b": {}}', "[]", '"é"'],
            ["{", '{"a"}', "[1,]", "01"],
        ),
    ],
)
def test_an_ebnf_describes_what_it_says(
    source: str, accepted: list[str], rejected: list[str]
) -> None:
    grammar = compiler().compile_now("ebnf", source)
    assert [accepts(grammar, text) for text in accepted] == [True] * len(accepted)
    assert [accepts(grammar, text) for text in rejected] == [False] * len(rejected)


rule_part = st.recursive(
    st.sampled_from(['"a"', '"b"', "[ab]", '""', "[^a]"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({' '.join(parts)})"),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({' | '.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "?", "+", "{2}", "{1,2}"])).map(
            lambda repeated: f"({''.join(repeated)})"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(part=rule_part, texts=st.lists(st.text("abc", max_size=5), min_size=8, max_size=8))
def test_an_ebnf_without_recursion_is_a_regular_expression(part: str, texts: list[str]) -> None:
    """Python's, with the quotes and spaces left out."""
    pattern = re.compile(part.replace('""', "(?:)").replace('"', "").replace(" ", ""))
    try:
        grammar = compiler().compile_now("ebnf", f"root ::= {part}")
    except GrammarError as error:
        pytest.fail(f"{part}: {error}")
    for text in texts:
        assert accepts(grammar, text) == bool(pattern.fullmatch(text)), (part, text)


# Structural tags

TAG = {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"}
TAGS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {
            "structures": [
                {"begin": "<f=add>", "schema": {"type": "integer"}, "end": "</f>"},
                {"begin": "<f=say>", "schema": {"type": "string"}, "end": "</f>"},
            ],
            "triggers": ["<f="],
        },
        ["plain", "a < b <f", 'so <f=add>3</f> and <f=say>"x"</f>.', "<f=add>1</f><f=add>2</f>"],
        ["<f=add>x</f>", "<f=other>", "<f=add>3</f", "<f=say>3</f>"],
    ),
    (
        {
            "type": "structural_tag",
            "format": {
                "type": "sequence",
                "elements": [
                    {"type": "const_string", "value": "<t>/"},
                    {
                        "type": "or",
                        "elements": [
                            {"type": "regex", "pattern": "a+/"},
                            {"type": "grammar", "grammar": 'root ::= "x" root | ""'},
                        ],
                    },
                    TAG,
                ],
            },
        },
        ["<t>/aa/<a>free</a>", "<t>/xx<a></a>", "<t>/<a><</a>"],
        ["<t>/b<a></a>", "<t>/a/<a>", "<t>/a/<a></a></a>"],
    ),
    (
        {"format": {"type": "tags_with_separator", "tags": [TAG], "separator": ", "}},
        ["", "<a>1</a>", "<a>1</a>, <a>2</a>"],
        ["x", "<a>1</a>,", "<a>1</a><a>2</a>"],
    ),
    (
        {
            "format": {
                "type": "triggered_tags",
                "tags": [{**TAG, "begin": "<|system|>go"}],
                "triggers": ["<|system|>"],
                "at_least_one": True,
                "stop_after_first": True,
            }
        },
        ["so <|system|>go x</a>"],
        ["so", "<|system|>stop x</a>", "<|system|>go x</a> more"],
    ),
]


@pytest.mark.parametrize(("tag", "accepted", "rejected"), TAGS)
def test_structural_tags_mark_places_in_free_text(
    tag: dict[str, Any], accepted: list[str], rejected: list[str]
) -> None:
    """A special token in a tag is the token itself, not its letters."""
    grammar = compiler().compile_now("structural_tag", json.dumps(tag))
    assert [accepts(grammar, t, with_special_tokens=True) for t in accepted] == [True] * len(
        accepted
    )
    assert [accepts(grammar, t, with_special_tokens=True) for t in rejected] == [False] * len(
        rejected
    )
