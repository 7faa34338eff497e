"""Tags whose marks are tokens of their own can be followed, whatever the tokenizer calls these."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer

from coordinator.answers.grammars import GrammarCompiler, GrammarKind
from coordinator.conversation import formats
from coordinator.conversation.thoughts import TAGS
from infra.models import EMBEDDED
from protocol.model.grammars import grammar_tokenizer, open_matcher
from tests.support.models.model_directories import added_token
from tests.support.models.tokenizers import byte_fallback, byte_level

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
FIRST_ID = 2048
"""Ids of the embedded model end before it."""


def tokenizer_with(marks: Sequence[str], is_special: bool) -> str:
    """The tokenizer.json of the embedded model with tokens for `marks`, FIRST_ID the first."""
    content = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    for i, mark in enumerate(marks):
        content["added_tokens"].append(added_token(mark, is_special) | {"id": FIRST_ID + i})
    return json.dumps(content)


@pytest.mark.parametrize("is_special", [False, True])
def test_marks_that_are_tokens_are_followed(is_special: bool) -> None:
    tokenizer_json = tokenizer_with(MARKS, is_special)
    tag = {
        "type": "sequence",
        "elements": [{"type": "const_string", "value": f"{mark}a"} for mark in MARKS],
    }
    source = json.dumps({"type": "structural_tag", "format": tag})
    assert followed(tokenizer_json, "structural_tag", source)


TEXTS = [f"{before}{mark}{mark}b" for before in ("", "x", "<") for mark in MARKS]
WRITTEN: dict[GrammarKind, Callable[[str], str]] = {
    "regex": re.escape,
    "json_schema": lambda text: json.dumps({"const": text}),
    "ebnf": lambda text: f'root ::= "{text}"',
}
"""Grammars that describe one text and nothing else."""


@pytest.mark.parametrize("is_special", [False, True])
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_text_that_must_come_is_spelled_though_there_is_a_token_for_it(
    kind: GrammarKind, is_special: bool
) -> None:
    tokenizer_json = tokenizer_with(MARKS, is_special)
    for text in TEXTS:
        answer = followed(tokenizer_json, kind, WRITTEN[kind](text))
        whole = json.dumps(text) if kind == "json_schema" else text
        shown = Tokenizer.from_str(tokenizer_json).decode(answer, skip_special_tokens=True)
        assert shown == whole


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_vocabulary_that_has_the_marks_itself_is_followed_too(
    make: Callable[[], Tokenizer],
) -> None:
    """Many have the texts of added tokens among their pieces, with merges that make them."""
    content = json.loads(make().to_str())
    model = content["model"]
    pieces = "<", "m", ">", "<m", "<m>"
    for piece in pieces:
        model["vocab"].setdefault(piece, max(model["vocab"].values()) + 1)
    model["merges"] = [["<", "m"], ["<m", ">"]]
    content["added_tokens"] = [added_token("<m>", True) | {"id": model["vocab"]["<m>"]}]
    tokenizer_json = json.dumps(content)
    mark = model["vocab"]["<m>"]
    spelled = followed(tokenizer_json, "regex", "<m>")
    assert mark not in spelled
    assert grammar_tokenizer(tokenizer_json).decode_bytes(spelled) == b"<m>"
    assert followed(tokenizer_json, "ebnf", "start: <m>") == [mark]


def test_lark_names_special_tokens_and_nothing_else_is_one() -> None:
    tokenizer_json = tokenizer_with(MARKS, is_special=True)
    lark = 'start: <tool_call> /<tool_call>\\/"/ "\\"<tool_call>" </tool_call> // <tool_call>'
    answer = followed(tokenizer_json, "ebnf", lark)
    assert [token for token in answer if token >= FIRST_ID] == [FIRST_ID, FIRST_ID + 1]
    text = Tokenizer.from_str(tokenizer_json).decode(answer, skip_special_tokens=True)
    assert text == '<tool_call>/""<tool_call>'


def followed(tokenizer_json: str, kind: GrammarKind, source: str) -> list[int]:
    """Returns the answer of which each token is the first of those that are allowed."""
    grammar = GrammarCompiler(tokenizer_json).compile_now(kind, source)
    tokenizer = grammar_tokenizer(tokenizer_json)
    matcher = open_matcher(tokenizer, grammar)
    tokens: list[int] = []
    while not matcher.is_accepting():
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        tokens.append((mask & -mask).bit_length() - 1)
        assert tokens[-1] >= 0 and matcher.consume_token(tokens[-1]), matcher.get_error()
    return tokens


def test_a_thought_ends_with_its_mark_whether_that_is_a_token_or_spelled() -> None:
    """Some models are trained on the token, and any may spell it: both are the same text."""
    tokenizer_json = tokenizer_with((TAGS.begin, TAGS.end), is_special=False)
    begin, end = [FIRST_ID], [FIRST_ID + 1]
    form = TAGS.grammar("free", formats.text("END"))
    source = json.dumps({"type": "structural_tag", "format": form})
    grammar = GrammarCompiler(tokenizer_json).compile_now("structural_tag", source)
    tokenizer = grammar_tokenizer(tokenizer_json)
    embedded = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))

    def follows(*parts: str | list[int]) -> bool:
        matcher = open_matcher(tokenizer, grammar)
        ids = [
            token
            for part in parts
            for token in (
                embedded.encode(part, add_special_tokens=False).ids
                if isinstance(part, str)
                else part
            )
        ]
        return all(matcher.consume_token(token) for token in ids) and matcher.is_accepting()

    assert follows("END")
    for first in (begin, "<think>"):
        for last in (end, "</think>"):
            assert follows(first, "\nhm\n", last, "\n\nEND")
            assert not follows(first, "\nhm\n", last, "and on")
            assert not follows(first, "\nhm\n", last, "and on", last, "END")
