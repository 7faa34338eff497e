"""`GrammarCompiler`: checks the grammars of requests before anything is computed, and writes them
as nodes take them."""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from threading import Lock

from llguidance import LLMatcher, LLTokenizer

from coordinator.grammars.error import GrammarError
from coordinator.grammars.kinds import GrammarKind
from coordinator.grammars.lark import lark_of
from coordinator.grammars.regex import rust_regex
from coordinator.grammars.structural_tags import structural_tag_grammar
from protocol.model.grammars import MAX_GRAMMAR_BYTES, grammar_tokenizer, open_matcher

MAX_SOURCE_CHARACTERS = 256 * 1024
MAX_REMEMBERED = 256
"""Grammars that are compiled once while they are asked for again and again."""
MAX_REASON = 300
"""Characters of the library's reason that the client is shown."""
ANY_JSON = "$$ANY$$"
"""SGLang's schema for any JSON object."""
WHITESPACE = r"[ \n\r\t]{0,40}"
"""Between the parts of a document; without a bound a small model may go on with it for ever."""


class GrammarCompiler:
    """Compiles for one model. May be used from several threads."""

    def __init__(self, tokenizer_json: str) -> None:
        """`tokenizer_json` is the content of the model's tokenizer.json, which the first grammar
        makes use of."""
        self._tokenizer_json = tokenizer_json
        self._compiled: OrderedDict[tuple[GrammarKind, str], str] = OrderedDict()
        self._lock = Lock()

    async def compile(self, kind: GrammarKind, source: str) -> str:
        """Returns the grammar as `Sampling.grammar` takes it; what is not remembered is compiled on
        a thread. Raises GrammarError, which names the kind."""
        known = self._compiled.get((kind, source))
        if known is not None:
            return known
        return await asyncio.to_thread(self.compile_now, kind, source)

    def compile_now(self, kind: GrammarKind, source: str) -> str:
        """Does the same on this thread: some milliseconds, up to a second for a large grammar."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise GrammarError(
                f"{kind} has {len(source)} characters; at most {MAX_SOURCE_CHARACTERS} go"
            )
        with self._lock:
            try:
                grammar = self._compiled.get((kind, source)) or self._compile(kind, source)
            except GrammarError as error:
                raise GrammarError(f"{kind}: {error}") from None
            self._compiled[kind, source] = grammar
            self._compiled.move_to_end((kind, source))
            if len(self._compiled) > MAX_REMEMBERED:
                self._compiled.popitem(last=False)
        return grammar

    def _compile(self, kind: GrammarKind, source: str) -> str:
        grammar = self._written(kind, source)
        if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
            raise GrammarError(f"it takes more than the {MAX_GRAMMAR_BYTES} bytes that go")
        matcher = open_matcher(self._tokenizer, grammar)
        mask = matcher.compute_bitmask()  # what is too much for a node shows here
        if matcher.is_stopped() and not matcher.is_accepting():
            reason = matcher.get_error() or "there is no text that it describes"
            raise GrammarError(_reason(reason))
        if not any(mask):
            raise GrammarError("no token of the model begins a text that it describes")
        return grammar

    def _written(self, kind: GrammarKind, source: str) -> str:
        if kind == "regex":
            return LLMatcher.grammar_from_regex(rust_regex(source))
        if kind == "ebnf":
            return LLMatcher.grammar_from_lark(lark_of(source))
        if kind == "structural_tag":
            return structural_tag_grammar(source, self._special_tokens)
        return _json_schema_grammar(source)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return grammar_tokenizer(self._tokenizer_json)

    @cached_property
    def _special_tokens(self) -> Mapping[str, int]:
        added = json.loads(self._tokenizer_json).get("added_tokens", [])
        return {token["content"]: token["id"] for token in added if token["special"]}


def _json_schema_grammar(source: str) -> str:
    try:
        schema = {"type": "object"} if source == ANY_JSON else json.loads(source)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"it is no JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("it must be a JSON object")
    try:
        return LLMatcher.grammar_from_json_schema(
            json.dumps(schema), defaults={"whitespace_pattern": WHITESPACE}
        )
    except ValueError as error:
        raise GrammarError(_reason(str(error))) from None


def _reason(error: str) -> str:
    """Returns the sentence that says what is wrong, without the grammar around it."""
    told = re.search(r"^error: (.*)", error, re.MULTILINE)
    first = told[1] if told else error.strip().partition("\n")[0]
    if first.startswith("NoExtension"):
        return "there is no text that it describes"
    return first[:MAX_REASON] or "it cannot be compiled"
