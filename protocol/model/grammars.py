"""What coordinators and nodes must make of a grammar alike: llguidance's view of a tokenizer, and
bounds for what a grammar may cost.

An answer ends with one of the end tokens of its request, of which llguidance is not told. It gets a
token of its own for the end, which no model has.
"""

from __future__ import annotations

import json

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

END_OF_GRAMMAR = "<|kvrelay_end_of_grammar|>"
MAX_GRAMMAR_BYTES = 1 << 20
"""Of a grammar as nodes get it."""


def grammar_tokenizer(tokenizer_json: str) -> LLTokenizer:
    """Makes llguidance's tokenizer of a tokenizer.json. It has one id more than that has, the last
    one, which stands for the end. Takes a while: read it once."""
    content = json.loads(tokenizer_json)
    added = content.setdefault("added_tokens", [])
    pieces = content["model"]["vocab"]  # a list for tokenizers of the kind Unigram
    ids = range(len(pieces)) if isinstance(pieces, list) else pieces.values()
    end_id = max([*ids, *(token["id"] for token in added)]) + 1
    end = {"id": end_id, "content": END_OF_GRAMMAR, "single_word": False, "lstrip": False}
    added.append({**end, "rstrip": False, "normalized": False, "special": True})
    return LLTokenizer(json.dumps(content), eos_token=[end_id])


def open_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Returns a matcher at the beginning of an answer; `is_error()` if the grammar is no good.

    Fuel bounds how long others wait for it: nested repetitions took half a second a step with the
    200,000 units that the library gives it, and two seconds for the first one with its 1,000,000.
    """
    limits = LLParserLimits(
        initial_lexer_fuel=300_000,
        step_lexer_fuel=20_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
