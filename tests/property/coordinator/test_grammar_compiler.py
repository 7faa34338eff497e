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
    ("json_schema", '{"not": {}}', "it has not, which"),
    ("json_schema", '{"items": [{}, {"not": {}}]}', "items.1 has not, which"),
    ("json_schema", '{"oneOf": [{"type": "number"}, {"type": "integer"}]}', "use anyOf"),
    ("json_schema", '{"pattern": "\\\\bword"}', "word boundaries"),
    ("json_schema", '{"multipleOf": 999983}', "common multiple"),
    ("json_schema", '{"allOf": [{"multipleOf": 1.63}, {"multipleOf": 173}]}', "common multiple"),
    ("json_schema", '{"type": "integer", "minimum": 1e20}', "beyond"),
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
    ("ebnf", 'start: "a" %json {"multipleOf": 999983}', "common multiple"),
    ("ebnf", 'start: "a" %json {"multipleOf": ', "%json"),
    ("structural_tag", "[]", "object"),
    (
        "structural_tag",
        '{"format": {"type": "json_schema", "json_schema": {"properties": {"a": {"if": {}}}}}}',
        "properties.a has if",
    ),
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


CHAINED_SCHEMA = json.dumps(
    {
        "$ref": "#/$defs/a0",
        "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(LONG)}
        | {f"a{LONG}": {"type": "null"}},
    }
)
CHAINS: list[tuple[GrammarKind, str]] = [
    ("ebnf", chain("root ::= r0", "{this} ::= {next}", '{this} ::= "a"')),
    ("ebnf", chain("root ::= r0", "{this} ::= {next} | root", '{this} ::= "a"')),
    ("ebnf", chain("start: r0", "{this}: {next}", '{this}: "a"')),
    ("json_schema", CHAINED_SCHEMA),
    ("ebnf", f"start: %json {CHAINED_SCHEMA}"),
    ("ebnf", f"start: %json {CHAINED_SCHEMA}".replace("$ref", r"\u0024Re\u0066".lower())),
    (
        "structural_tag",
        f'{{"format": {{"type": "json_schema", "json_schema": {CHAINED_SCHEMA}}}}}',
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


# JSON schemas

KEYS = {"enum": ["a", "b"]}
SCHEMAS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "string", "format": "path"}, ['"x y"'], ["1"]),
    ({"format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"2100-02-29"', '"2024-04-31"']),
    (
        {"format": "date-time"},
        ['"2024-12-31T23:59:59.25+01:00"', '"2024-12-31T00:00:00Z"'],
        ['"2024-12-31T23:59:60Z"', '"2024-12-31"', '"2024-12-31T24:00:00Z"'],
    ),
    ({"format": "time"}, ['"12:34:56Z"'], ['"12:34"', '"12:60:00Z"']),
    ({"format": "date", "pattern": "^2"}, ['"2024-01-01"'], ['"1024-01-01"']),
    ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.0001", '"x"'], ["0", "0.0", "0.51"]),
    ({"minimum": -0.5, "exclusiveMaximum": 0}, ["-0.5", "-0.01"], ["-0", "0", "-0.51"]),
    ({"exclusiveMinimum": 0, "maximum": 2}, ["0.5", "2"], ["0", "2.1"]),
    (
        {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1},
        ["-9223372036854774784", "9223372036854774784"],
        ["9223372036854775808"],
    ),
    ({"multipleOf": 0.25}, ["0.25", "1.50"], ["0.3"]),
    ({"type": "array", "uniqueItems": False}, ["[1, 1]"], ["1"]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[1]"], ["[1, 1]"]),
    ({"type": "object", "propertyNames": {"type": "string"}}, ['{"c": 1}'], ["1"]),
    (
        {"type": "object", "propertyNames": KEYS, "additionalProperties": {"type": "null"}},
        ['{"a": null, "b": null}', "{}"],
        ['{"c": null}', '{"a": 1}'],
    ),
    (
        {"type": "object", "propertyNames": {"$ref": "#/$defs/k"}, "$defs": {"k": KEYS}},
        ['{"a": 1}'],
        ['{"c": 1}'],
    ),
    (
        {"type": "object", "propertyNames": {"pattern": r"^k\d$"}},
        ['{"k1": [], "k2": 0}'],
        ['{"k": 1}', '{"kk1": 1}'],
    ),
    ({"type": "object", "propertyNames": {"enum": []}}, ["{}"], ['{"a": 1}']),
    ({"properties": {"format": {"const": "path"}}}, ['{"format": "path"}'], ['{"format": 1}']),
    ({"const": {"format": "path"}}, ['{"format": "path"}'], ["{}"]),
]


@pytest.mark.parametrize(("schema", "accepted", "rejected"), SCHEMAS)
@pytest.mark.parametrize("is_in_tag", [False, True])
def test_schemas_mean_what_they_say_alone_and_in_tags(
    schema: dict[str, Any], accepted: list[str], rejected: list[str], is_in_tag: bool
) -> None:
    tag = {"format": {"type": "json_schema", "json_schema": schema}}
    kind: GrammarKind = "structural_tag" if is_in_tag else "json_schema"
    grammar = compiler().compile_now(kind, json.dumps(tag if is_in_tag else schema))
    assert [accepts(grammar, text) for text in accepted] == [True] * len(accepted)
    assert [accepts(grammar, text) for text in rejected] == [False] * len(rejected)


@pytest.mark.parametrize(
    "schema",
    [
        *({key: [5]} for key in ("format", "pattern", "properties", "allOf", "multipleOf")),
        {"type": 5, "minimum": 1},
        {"type": ["integer"], "maximum": -(10**400)},
        {"multipleOf": 10**400 + 1},
        {"propertyNames": {"enum": 5}},
        {"propertyNames": {"enum": ["a", 5]}},
        {"propertyNames": {"pattern": {}}},
        {"propertyNames": {"$ref": ["a"]}},
        {"x-guidance": 5},
    ],
)
def test_a_schema_that_is_none_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarError):
        compiler().compile_now("json_schema", json.dumps(schema))


def test_white_space_is_bounded_also_in_tags() -> None:
    schema: dict[str, Any] = {"type": "array"}
    tag = {"format": {"type": "json_schema", "json_schema": schema}}
    for grammar in (
        compiler().compile_now("json_schema", json.dumps(schema)),
        compiler().compile_now("structural_tag", json.dumps(tag)),
    ):
        assert accepts(grammar, f"[{' ' * 40}]") and not accepts(grammar, f"[{' ' * 41}]")


@pytest.mark.parametrize(
    ("pattern", "accepted", "rejected"),
    [
        ("^a{$", "a{", "a"),
        ("^{a}{2}$", "{a}}", "{a}"),
        ("^[a&&b]$", "&", "ab"),
        ("^[[]$", "[", ""),
        ("^[]a]$", "]", "b"),
        ("^[^]]$", "a", "]"),
        (r"^[\w-\.]+$", "a-._", "a b"),
        (r"^\d$", "3", "٣"),
        (r"^[\d,]\D$", ",٣", "٣,"),
        (r"^\w\W$", "aé", "éa"),
        (r"^\ud83d\ude00$", "😀", "a"),
        (r"^\p{Lu}\u{e9}$", "Éé", "éé"),
        (r"^\<a\>\/$", "<a>/", "a"),
        ("a|b$", "xab", "c"),
    ],
)
def test_a_pattern_is_one_of_ecmascript(pattern: str, accepted: str, rejected: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    grammar = compiler().compile_now("json_schema", json.dumps(schema))
    assert accepts(grammar, json.dumps(accepted, ensure_ascii=False))
    assert not accepts(grammar, json.dumps(rejected, ensure_ascii=False))


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
            'start: %json {"const": "<|bos|>"} "," %json {"format": "date"}',
            ['"<|bos|>","2024-02-29"'],
            ['"<|bos|>","2023-02-29"', '"x","2024-02-29"'],
        ),
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
