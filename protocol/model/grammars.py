"""What coordinators and nodes must make of a grammar alike: llguidance's view of a tokenizer, and
bounds for what a grammar may cost.

An answer ends with one of the end tokens of its request, of which llguidance is not told. It gets a
token of its own for the end, which no model has.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

END_OF_GRAMMAR = "<|kvrelay_end_of_grammar|>"
NO_TEXT = "\U0010ffff"
"""A character that no text has, before the names of tokens that stand for no text."""
MAX_GRAMMAR_BYTES = 1 << 20
"""Of a grammar as nodes get it."""


def grammar_tokenizer(tokenizer_json: str) -> LLTokenizer:
    """Makes llguidance's tokenizer of a tokenizer.json. It has one id more than that has, the last
    one, which stands for the end. Takes a while: read it once.

    Its special tokens have other names, so that texts are never made of them: see `_renamed`.
    """
    content = _renamed(json.loads(tokenizer_json))
    added = content["added_tokens"]
    pieces = content["model"]["vocab"]  # a list for tokenizers of the kind Unigram
    ids = range(len(pieces)) if isinstance(pieces, list) else pieces.values()
    end_id = max([*ids, *(token["id"] for token in added)]) + 1
    end = {"id": end_id, "content": NO_TEXT + END_OF_GRAMMAR, "single_word": False, "lstrip": False}
    added.append({**end, "rstrip": False, "normalized": False, "special": True})
    return LLTokenizer(json.dumps(content), eos_token=[end_id])


def stands_for_no_text(token: Mapping[str, Any]) -> bool:
    """Returns True for an added token that no text of a grammar is made of: a grammar has to ask
    for it by its id. Those are the special ones, and others that look like it, as `<tool_call>`,
    which llguidance takes for special."""
    text = str(token["content"])
    return bool(token.get("special")) or (text.startswith("<") and text.endswith(">"))


def _renamed(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer with other names for the tokens that stand for no text.

    Where a grammar leaves no choice, llguidance has the tokenizer write the text that must come.
    That would write `<tool_call>` as the one token, which the matcher then refuses, since to it the
    token is not that text. By its other name no text has it, and the text is spelled.
    """
    added = content.get("added_tokens") or []
    names = {one["content"]: NO_TEXT + one["content"] for one in added if stands_for_no_text(one)}
    model = dict(content["model"])
    pieces = model["vocab"]
    if isinstance(pieces, list):
        model["vocab"] = [[names.get(text, text), score] for text, score in pieces]
    else:
        model["vocab"] = {names.get(text, text): number for text, number in pieces.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _makes_any(pair, names)]
    renamed = [
        {**one, "content": names[one["content"]], "special": True, "normalized": False}
        if one["content"] in names
        else one
        for one in added
    ]
    # What stands around a text is named there, and is no part of a grammar.
    return {**content, "model": model, "added_tokens": renamed, "post_processor": None}


def _makes_any(pair: str | list[str], texts: Collection[str]) -> bool:
    """Returns True if a merge of two pieces makes one of `texts`, or is made of one."""
    first, second = pair.split(" ", 1) if isinstance(pair, str) else pair
    return first + second in texts or first in texts or second in texts


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


def reason_of(matcher: LLMatcher) -> str:
    """Returns why a matcher cannot go on: the first line of what the library says."""
    return str(matcher.get_error()).partition("\n")[0][:200]
