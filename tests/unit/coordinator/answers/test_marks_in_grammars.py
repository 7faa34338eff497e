"""Tags whose marks are tokens of their own can be followed, whatever the tokenizer calls these."""

from __future__ import annotations

import json

import pytest

from coordinator.answers.grammars import GrammarCompiler
from infra.models import EMBEDDED
from protocol.model.grammars import grammar_tokenizer, open_matcher
from tests.support.models.model_directories import added_token

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
FIRST_ID = 2048
"""Ids of the embedded model end before it."""


@pytest.mark.parametrize("is_special", [False, True])
def test_marks_that_are_tokens_are_followed(is_special: bool) -> None:
    content = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    for i, mark in enumerate(MARKS):
        content["added_tokens"].append(added_token(mark, is_special) | {"id": FIRST_ID + i})
    tokenizer_json = json.dumps(content)
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
