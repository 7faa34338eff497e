"""Tags whose marks are tokens of their own can be followed, whatever the tokenizer calls these."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer

from coordinator.answers.grammars import GrammarCompiler
from coordinator.conversation import formats
from coordinator.conversation.thoughts import TAGS
from infra.models import EMBEDDED
from protocol.model.grammars import grammar_tokenizer, open_matcher
from tests.support.models.model_directories import added_token

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
    grammar = GrammarCompiler(tokenizer_json).compile_now("structural_tag", source)
    tokenizer = grammar_tokenizer(tokenizer_json)
    matcher = open_matcher(tokenizer, grammar)
    while not matcher.is_accepting():
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = (mask & -mask).bit_length() - 1
        assert allowed >= 0 and matcher.consume_token(allowed), matcher.get_error()


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
