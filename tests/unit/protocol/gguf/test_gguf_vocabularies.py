"""Tokenizers of GGUF files have the ids that llama.cpp expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from coordinator.answers.token_pieces import BYTE_ALPHABET, kind_of
from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.parts import read_parts
from protocol.model.gguf.pre_tokenizers import PRE_TOKENIZERS
from protocol.model.gguf.vocabulary import Vocabulary
from tests.support.gguf.fetched_files import fetched
from tests.support.gguf.vocabularies import (
    CUT_NAMES,
    CUTS,
    cut_cases,
    published_cases,
    tokenizer_of,
)

PUBLISHED_NAMES = (
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)


@pytest.mark.parametrize("name", CUT_NAMES)
def test_cut_vocabularies_have_the_ids_of_llama_cpp(name: str) -> None:
    tokenizer, cases = tokenizer_of(CUTS / f"{name}.gguf"), cut_cases(name)
    assert len(cases) >= 47
    for text, ids in cases:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)


@pytest.mark.verify
@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_vocabularies_have_the_ids_of_llama_cpp(name: str) -> None:
    file = fetched(f"models/ggml-vocab-{name}.gguf")
    tokenizer, cases = tokenizer_of(file), published_cases(file)
    assert len(cases) >= 47
    for text, ids in cases:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)


def write_bytes_vocabulary(file: Path, **changes: Any) -> Path:
    """A byte-level vocabulary with one merge, `xq`, and two control tokens."""
    characters = sorted(BYTE_ALPHABET, key=BYTE_ALPHABET.__getitem__)
    tokens = [*characters, "<s>", "</s>", *changes.pop("more", ["xq"])]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(changes.pop("model", "gpt2"))
    if (pre := changes.pop("pre", "llama-bpe")) is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3] + [1] * (len(tokens) - 258))
    writer.add_token_merges(changes.pop("merges", ["x q"]))
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    for key, value in changes.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    assert tokenizer.pre_tokenizer is not None
    return [text[a:b] for _, (a, b) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_keeps_the_whole_text(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(write_bytes_vocabulary(tmp_path / "v.gguf", pre=name))
    text = "Don't  cut 12345 Wörter,\r\n\tor 日本語! 👍🏽 ABCdef ǅ\n\n  end "
    assert "".join(words_of(tokenizer, text)) == text
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("llama-bpe", "It's 12345", ["It", "'s", " ", "123", "45"]),
        ("qwen2", "It's 123", ["It", "'s", " ", "1", "2", "3"]),
        ("gpt-2", "It's 123", ["It", "'s", " 123"]),
        ("smollm", "a 123", ["a", " ", "1", "2", "3"]),
        ("tekken", "helloWorld", ["hello", "World"]),
        ("gpt-4o", "helloWorld's", ["hello", "World's"]),
        ("deepseek-v3", "12345 一二a", ["123", "45", " ", "一二", "a"]),
    ],
)
def test_words_are_cut_as_the_model_was_trained(
    name: str, text: str, words: list[str], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(write_bytes_vocabulary(tmp_path / "v.gguf", pre=name))
    assert words_of(tokenizer, text) == words


def test_a_whole_word_goes_before_merges_where_the_name_says_so(tmp_path: Path) -> None:
    more = {"more": ["ab", "abc"], "merges": ["a b"]}
    for name, expected in (("llama-bpe", [259]), ("qwen2", [258, ord("c")])):
        file = write_bytes_vocabulary(tmp_path / f"{name}.gguf", pre=name, **dict(more))
        assert tokenizer_of(file).encode("abc", add_special_tokens=False).ids == expected


@pytest.mark.parametrize(
    ("settings", "before", "behind"),
    [
        ({}, [256], []),
        ({"pre": "qwen2"}, [], []),
        ({"add_bos_token": False}, [], []),
        ({"pre": "qwen2", "add_bos_token": True, "add_eos_token": True}, [256], [257]),
    ],
)
def test_tokens_around_a_text(
    settings: dict[str, Any], before: list[int], behind: list[int], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(write_bytes_vocabulary(tmp_path / "v.gguf", **settings))
    assert tokenizer.encode("hi").ids == [*before, *b"hi", *behind]
    assert tokenizer.encode("<s>").ids[-1 - len(behind)] == 256


def test_texts_of_answers_can_be_streamed() -> None:
    kinds = {"phi-3": "byte-fallback", "qwen2": "byte-level"}
    for name, kind in kinds.items():
        content = Vocabulary(read_parts(CUTS / f"{name}.gguf"), 10_000).content().content
        assert kind_of(content["decoder"]) == kind


def test_special_tokens_of_phi_3_swallow_the_space_behind_them() -> None:
    tokenizer = tokenizer_of(CUTS / "phi-3.gguf")
    user = tokenizer.token_to_id("<|user|>")
    assert user is not None
    spaced = tokenizer.encode("<|user|> Hello", add_special_tokens=False).ids
    assert spaced == tokenizer.encode("<|user|>Hello", add_special_tokens=False).ids
    assert spaced[0] == user


@pytest.mark.parametrize("pre", ["nobody-knows", "default", None])
def test_an_unknown_way_to_cut_words_is_refused(pre: str | None, tmp_path: Path) -> None:
    file = write_bytes_vocabulary(tmp_path / "v.gguf", pre=pre)
    with pytest.raises(ModelDirectoryError, match=rf"tokenizer\.ggml\.pre '?{pre}'?, which"):
        tokenizer_of(file)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"model": "bert"}, 1000, "a tokenizer of the kind bert; of GGUF .* gpt2 and llama"),
        ({"model": "b" * 5000}, 1000, "a tokenizer of the kind b{40}; of GGUF"),
        ({"more": ["xq", "<s>"]}, 1000, "two tokens '<s>'"),
        ({"more": ["x" * 5000]}, 1000, "has a token of more than 4096 characters"),
        ({}, 200, "259 tokens, and its token_embd.weight rows for 200"),
        ({"model": "llama"}, 1000, r"no tokenizer\.ggml\.scores"),
    ],
)
def test_a_wrong_vocabulary_is_refused(
    changes: dict[str, Any], size: int, message: str, tmp_path: Path
) -> None:
    file = write_bytes_vocabulary(tmp_path / "v.gguf", **changes)
    with pytest.raises(ModelDirectoryError, match=message):
        Vocabulary(read_parts(file), size).content()


def test_merges_that_make_no_token_are_refused(tmp_path: Path) -> None:
    file = write_bytes_vocabulary(tmp_path / "v.gguf", merges=["a nothing"])
    with pytest.raises(Exception, match="nothing"):
        tokenizer_of(file)
