"""The model's tokenizer and limits, read from its files; no torch, no transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from coordinator.answers.chat_template import ChatTemplate, ChatTemplateError
from coordinator.answers.template_sources import template_sources
from coordinator.answers.token_pieces import TokenPieces, kind_of
from protocol.model.directory import ModelDirectoryError
from protocol.model.files import open_model
from protocol.model.numbers import longest_sequence
from protocol.model.tokenizer import ModelTokenizer, load_tokenizer

LONG_TEXT = 4096
"""Characters from which a text is tokenized in a thread; shorter ones take a millisecond."""
NUM_THREADS = 2
"""So many long texts are tokenized at the same time; others wait."""
CHUNK = 1 << 18
"""Characters of a very long text whose tokens are counted at once. The library takes some 250 bytes
for a token: those of 8 MB of text would take 1.8 GB, most of which a process keeps."""
TOO_LONG_WORDS = "the prompt is too long"
"""LangChain and agents know by these words that they have to shorten a chat."""


class TextTooLong(ValueError):
    """A text has more tokens than fit; the message says how many do."""


class Tokenizer:
    """Turns text into token ids and back, and knows the ids that end an answer."""

    def __init__(self, model_path: Path, chat_template: str = "") -> None:
        """`chat_template` is the operator's wish, as for `template_sources`. Raises
        ModelDirectoryError and ConfigError."""
        config = open_model(model_path).config()
        self.model: ModelTokenizer = load_tokenizer(model_path)
        self._tokenizer = self.model.tokenizer
        try:
            self.max_model_len = longest_sequence(config)
        except KeyError as error:
            raise ModelDirectoryError(
                f"{model_path}/config.json has no {error.args[0]}; fetch the model again"
            ) from error
        self.eos_token_ids = self.model.end_token_ids
        self.vocab_size = self.model.vocab_size
        self._kind = kind_of(self.model.content.get("decoder"))
        if self._kind is None:
            raise ModelDirectoryError(
                f"the tokenizer in {model_path} decodes with {self.model.content['decoder']}, "
                "which changes the text of tokens by those behind them, so no answer could be "
                "streamed; convert it to a byte-level or byte-fallback tokenizer"
            )
        sources = template_sources(model_path, chat_template)
        special_tokens = self.model.special_tokens
        self.bos_token_id = self._tokenizer.token_to_id(special_tokens.get("bos_token", ""))
        """The token that stands before a text; None if the model has none."""
        try:
            self.chat_template = ChatTemplate(sources, special_tokens) if sources else None
        except ChatTemplateError as error:
            raise ModelDirectoryError(f"{model_path}: {error}") from error
        self._longest_token = _longest_token(self.model)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="tokenizer")

    async def encode(self, text: str, with_special_tokens: bool = True) -> list[int]:
        """Returns the ids of `text`, with the special tokens that the model expects around a plain
        text unless they are there already. A long text stops nobody. Raises TextTooLong."""
        self._require_may_fit(text)
        if len(text) <= LONG_TEXT:
            return self._encode(text, with_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._encode, text, with_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of `ids`. As with transformers' fast tokenizers, nothing is put between
        special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def pieces(self, skip_special_tokens: bool) -> TokenPieces:
        """Returns what the texts of answers are made of."""
        return self._pieces_without_special_tokens if skip_special_tokens else self._pieces

    @cached_property
    def _pieces(self) -> TokenPieces:
        return self._pieces_skipping(())

    @cached_property
    def _pieces_without_special_tokens(self) -> TokenPieces:
        added = self._tokenizer.get_added_tokens_decoder()
        return self._pieces_skipping([number for number, token in added.items() if token.special])

    def _pieces_skipping(self, skipped: Sequence[int]) -> TokenPieces:
        assert self._kind is not None
        decode = self._tokenizer.decode
        return TokenPieces(
            self._kind,
            self.vocab_size,
            self._tokenizer.id_to_token,
            lambda ids: str(decode(list(ids), skip_special_tokens=False)),
            skipped,
        )

    def _encode(self, text: str, with_special_tokens: bool) -> list[int]:
        self._require_few_tokens(text)
        # encode would hold Python's lock all the while; a batch of one lets other threads run.
        (encoding,) = self._tokenizer.encode_batch_fast(
            [text], add_special_tokens=with_special_tokens
        )
        if len(encoding) > self.max_model_len:  # a list of millions of ids takes the lock as well
            raise self._too_many(str(len(encoding)))
        return list(encoding.ids)

    def _require_few_tokens(self, text: str) -> None:
        """Raises TextTooLong as soon as the tokens of the first chunks of a very long text tell
        that it cannot fit. A cut between two chunks changes a few tokens, so they may be twice as
        many as fit before that is certain."""
        if len(text) <= CHUNK:
            return
        num_tokens = 0
        for begin in range(0, len(text), CHUNK):
            chunk = text[begin : begin + CHUNK]
            num_tokens += len(
                self._tokenizer.encode_batch_fast([chunk], add_special_tokens=False)[0]
            )
            if num_tokens > 2 * self.max_model_len:
                raise self._too_many(f"more than {num_tokens // 2}")

    def _too_many(self, num_tokens: str) -> TextTooLong:
        return TextTooLong(
            f"{TOO_LONG_WORDS}: it has {num_tokens} tokens; at most {self.max_model_len} fit "
            "(prompt and answer together)"
        )

    def _require_may_fit(self, text: str) -> None:
        """Raises TextTooLong if the text cannot fit however it is cut into tokens."""
        if self._longest_token is None:
            return
        most = self._longest_token * self.max_model_len
        if len(text) > most:
            raise TextTooLong(
                f"{TOO_LONG_WORDS}: it has {len(text)} characters; at most {most} can fit, "
                f"as no token has more than {self._longest_token} and at most "
                f"{self.max_model_len} tokens fit"
            )


def _longest_token(model: ModelTokenizer) -> int | None:
    """Returns how many characters a token has at most; None if one may stand for any number, as an
    unknown token may that takes the place of a whole run."""
    content: Any = model.content
    has_all_bytes = content["model"].get("byte_fallback") or _has_byte_level(content)
    added = content["added_tokens"]
    if not has_all_bytes or any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    return max(map(len, model.tokenizer.get_vocab(with_added_tokens=True)))


def _has_byte_level(content: Any) -> bool:
    """Says whether a text becomes bytes before it is cut, so that there are no unknown tokens."""
    first = content.get("pre_tokenizer") or {}
    steps = first["pretokenizers"] if first.get("type") == "Sequence" else [first]
    return any(step.get("type") == "ByteLevel" for step in steps)
