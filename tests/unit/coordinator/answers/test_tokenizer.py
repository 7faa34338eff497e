"""Texts become ids without stopping anybody; what cannot fit is refused first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders

from coordinator.answers import tokenizer as tokenizer_module
from coordinator.answers.tokenizer import LONG_TEXT, TextTooLong, Tokenizer
from protocol.model.directory import ModelDirectoryError
from tests.support.models import tokenizers
from tests.support.models.model_directories import write_tokenizer

LONGEST = 7
"""Characters of the longest token of the byte-level tokenizer, which is <think>."""


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return asyncio.run(tokenizer.encode(text))


def long_model(path: Path, **config: Any) -> Tokenizer:
    return Tokenizer(write_tokenizer(path, config={"max_position_embeddings": 20_000} | config))


def test_short_and_long_texts_have_the_same_ids(tmp_path: Path) -> None:
    tokenizer = long_model(tmp_path)
    text = "hello wörld 👍 " * (LONG_TEXT // 10)
    expected = tokenizer.model.tokenizer.encode(text).ids
    assert len(text) > LONG_TEXT and encoded(tokenizer, text) == expected
    assert encoded(tokenizer, "hello") == tokenizer.model.tokenizer.encode("hello").ids


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    assert tokenizer.max_model_len == 64
    tokenizer._tokenizer = None  # type: ignore[assignment]  # whoever asks it fails
    most = 64 * LONGEST
    with pytest.raises(TextTooLong, match=rf"{most + 1} characters; at most {most} .*64 tokens"):
        encoded(tokenizer, "a" * (most + 1))
    with pytest.raises(AttributeError):
        encoded(tokenizer, "a" * most)


def test_too_many_tokens_are_told_with_both_numbers(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    with pytest.raises(TextTooLong, match="has 65 tokens; at most 64 fit"):
        encoded(tokenizer, "a" * 65)
    assert len(encoded(tokenizer, "a" * 64)) == 64


def test_a_very_long_text_is_counted_in_chunks_and_no_further_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = long_model(tmp_path)
    monkeypatch.setattr(tokenizer_module, "CHUNK", 8192)
    whole = tokenizer._tokenizer
    seen: list[int] = []

    class Counting:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
            seen.append(len(texts[0]))
            return whole.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    tokenizer._tokenizer = Counting()  # type: ignore[assignment]
    with pytest.raises(TextTooLong, match="more than 20480 tokens; at most 20000 fit"):
        encoded(tokenizer, "a" * 100_000)
    assert seen == [8192] * 5, "twice what fits"
    assert len(encoded(tokenizer, "a" * 20_000)) == 20_000


def test_others_run_while_long_texts_are_tokenized(tmp_path: Path) -> None:
    """The event loop goes on: it counts while a text is in a thread."""
    tokenizer = long_model(tmp_path, max_position_embeddings=10**6)

    async def run() -> tuple[int, int]:
        task = asyncio.create_task(tokenizer.encode("hello wörld " * 20_000))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns, len(await task)

    turns, num_tokens = asyncio.run(run())
    assert turns > 10 and num_tokens > 100_000


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_tokens_that_swallow_spaces_leave_the_length_open(tmp_path: Path, flag: str) -> None:
    made = tokenizers.byte_level()
    made.add_special_tokens([AddedToken("<user>", **{flag: True})])
    tokenizer = Tokenizer(write_tokenizer(tmp_path, made))
    assert tokenizer._longest_token is None
    spaces = " " * 1000
    text = f"{spaces}<user>" if flag == "lstrip" else f"<user>{spaces}"
    assert len(encoded(tokenizer, text)) == 1


def test_unknown_tokens_that_stand_for_a_run_leave_the_length_open(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, tokenizers.metaspace()))
    assert len(encoded(tokenizer, "x" * 5000)) < 64


def test_the_context_is_what_rope_scaling_makes_of_it(tmp_path: Path) -> None:
    rope = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert Tokenizer(write_tokenizer(tmp_path, config=rope)).max_model_len == 256


def test_pieces_skip_special_tokens_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    special, plain = (
        tokenizer.model.tokenizer.token_to_id(text)
        for text in (tokenizers.SPECIAL, tokenizers.PLAIN)
    )
    assert tokenizer.pieces(True).piece(special) == ""
    assert tokenizer.pieces(True).piece(plain) == tokenizers.PLAIN
    assert tokenizer.pieces(False).piece(special) == tokenizers.SPECIAL


def test_a_decoder_that_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    made = tokenizers.byte_level()
    made.decoder = decoders.BPEDecoder()
    with pytest.raises(ModelDirectoryError, match=r"BPEDecoder.*streamed"):
        Tokenizer(write_tokenizer(tmp_path, made))
