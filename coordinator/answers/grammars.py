"""`GrammarCompiler`: checks the grammars of requests before anything is computed, and writes them
as nodes take them."""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from coordinator.grammars.chains import require_short_chains
from coordinator.grammars.error import GrammarError, TooManyGrammars
from coordinator.grammars.json_schemas import followable_schema, place_of
from coordinator.grammars.kinds import ANY_JSON, GrammarKind
from coordinator.grammars.lark import lark_of
from coordinator.grammars.regex import rust_regex
from coordinator.grammars.structural_tags import structural_tag_grammar
from protocol.model.grammars import (
    MAX_GRAMMAR_BYTES,
    grammar_tokenizer,
    open_matcher,
    stands_for_no_text,
)

MAX_SOURCE_CHARACTERS = 256 * 1024
MAX_REMEMBERED = 256
"""Grammars that are compiled once while they are asked for again and again."""
MAX_REMEMBERED_CHARACTERS = 1 << 26
"""The most characters of all that is remembered, sources included."""
MAX_PENDING = 64
"""Grammars that may wait to be compiled; more are refused, since each may take a second."""
MAX_REASON = 300
"""Characters of the library's reason that the client is shown."""
IN_LARK = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")
"""Matches the place of a schema in a grammar that was written for the client."""
UNKNOWN_KEYWORDS = re.compile(r"Unimplemented keys: (\[.*\])")
SENTENCES = {
    "NoExtension": "there is no text that it describes",
    "oneOf constraints are not supported": (
        "oneOf has alternatives that overlap, as far as can be told, which no grammar follows; "
        "use anyOf, or give each a property with a const of its own"
    ),
    "lookarounds not supported": "word boundaries, \\b and \\B, are not supported",
}
"""What to say where the library's reason begins so."""


class GrammarCompiler:
    """Compiles for one model, on a thread of its own, and remembers what was used last."""

    def __init__(self, tokenizer_json: str) -> None:
        """`tokenizer_json` is the content of the model's tokenizer.json, which the first grammar
        makes use of."""
        self._tokenizer_json = tokenizer_json
        self._compiled: OrderedDict[tuple[GrammarKind, str], str] = OrderedDict()
        """The one that was used last is at the end."""
        self._num_characters = 0
        self._pending: dict[tuple[GrammarKind, str], asyncio.Future[str]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    async def compile(self, kind: GrammarKind, source: str) -> str:
        """Returns the grammar as `Sampling.grammar` takes it. Who asks for one that is being
        compiled waits for the same. Raises GrammarError, which names the kind, and
        TooManyGrammars."""
        key = kind, source
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key]
        pending = self._pending.get(key)
        if pending is None:
            if len(self._pending) >= MAX_PENDING:
                raise TooManyGrammars(
                    f"{len(self._pending)} grammars wait to be compiled; try again in a moment"
                )
            loop = asyncio.get_running_loop()
            pending = loop.run_in_executor(self._thread, self.compile_now, kind, source)
            self._pending[key] = pending
            pending.add_done_callback(partial(self._compiled_one, key))
        return await asyncio.shield(pending)  # others may wait for it when this client leaves

    def compile_now(self, kind: GrammarKind, source: str) -> str:
        """Returns the same, compiled on this thread: that takes some milliseconds, and up to a
        second for a large grammar. Raises GrammarError."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise GrammarError(
                f"{kind} has {len(source)} characters; at most {MAX_SOURCE_CHARACTERS} go"
            )
        try:
            return self._compile(kind, source)
        except GrammarError as error:
            raise GrammarError(f"{kind}: {error}") from None

    def _compiled_one(self, key: tuple[GrammarKind, str], done: asyncio.Future[str]) -> None:
        del self._pending[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[key] = done.result()
        self._num_characters += _num_characters(key, done.result())
        while (
            len(self._compiled) > MAX_REMEMBERED or self._num_characters > MAX_REMEMBERED_CHARACTERS
        ):
            self._num_characters -= _num_characters(*self._compiled.popitem(last=False))

    def _compile(self, kind: GrammarKind, source: str) -> str:
        grammar = self._written(kind, source)
        if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
            raise GrammarError(f"it takes more than the {MAX_GRAMMAR_BYTES} bytes that go")
        require_short_chains(grammar)
        matcher = open_matcher(self._tokenizer, grammar)
        mask = matcher.compute_bitmask()  # what is too much for a node shows here
        if matcher.is_stopped() and not matcher.is_accepting():
            reason = matcher.get_error() or "there is no text that it describes"
            raise GrammarError(_reason(reason, source))
        if not any(mask):
            raise GrammarError("no token of the model begins a text that it describes")
        return grammar

    def _written(self, kind: GrammarKind, source: str) -> str:
        if kind == "regex":
            return LLMatcher.grammar_from_regex(rust_regex(source))
        if kind == "ebnf":
            return LLMatcher.grammar_from_lark(lark_of(source, self._special_tokens))
        if kind == "structural_tag":
            return structural_tag_grammar(source, self._special_tokens, self._spelled_too)
        return _json_schema_grammar(source)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return grammar_tokenizer(self._tokenizer_json)

    @cached_property
    def _special_tokens(self) -> Mapping[str, int]:
        """The ids of tokens that a grammar must ask for by them, by their texts."""
        return {token["content"]: token["id"] for token in self._added if stands_for_no_text(token)}

    @cached_property
    def _spelled_too(self) -> frozenset[str]:
        """The texts of added tokens that the tokenizer does not call special. A model may
        write such a text in other tokens too, and whoever reads it sees the same."""
        return frozenset(token["content"] for token in self._added if not token["special"])

    @cached_property
    def _added(self) -> list[dict[str, Any]]:
        added: list[dict[str, Any]] = json.loads(self._tokenizer_json).get("added_tokens", [])
        return added


def _num_characters(key: tuple[GrammarKind, str], grammar: str) -> int:
    return len(key[1]) + len(grammar)


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
        return LLMatcher.grammar_from_json_schema(json.dumps(followable_schema(schema)))
    except ValueError as error:
        raise GrammarError(_reason(str(error), source)) from None


def _reason(error: str, source: str) -> str:
    """Returns the sentence that says what is wrong with `source`, without the grammar around it."""
    told = re.search(r"^error: (.*)", error, re.MULTILINE)
    first = IN_LARK.sub("", told[1] if told else error.strip().partition("\n")[0])
    if keywords := UNKNOWN_KEYWORDS.fullmatch(first):
        return _not_followed(json.loads(keywords[1]), source)
    for begin, sentence in SENTENCES.items():
        if first.startswith(begin):
            return sentence
    return first[:MAX_REASON] or "it cannot be compiled"


def _not_followed(keywords: list[str], source: str) -> str:
    """Says where in the schema, or the schemas, of `source` there is what no grammar follows."""
    place = place_of(keywords, json.loads(source)) if source.startswith("{") else ""
    return f"{place or 'it'} has {', '.join(keywords)}, which no grammar follows; leave it out"
