"""`ModelTokenizer`: the tokenizer of a model, the same in coordinators and nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from protocol.model.directory import ModelDirectoryError
from protocol.model.files import ModelFiles, open_model
from protocol.model.first_qwen import chat_end_tokens
from protocol.model.numbers import MOST_TOKENS, whole
from protocol.model.tokenizer_content import TokenizerContent
from protocol.model.tokenizer_files import unreadable


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer with everything merged that the files of its model say of it."""

    tokenizer: Tokenizer
    json_text: str
    """The tokenizer as the text of a tokenizer.json."""
    content: Mapping[str, Any]
    """The same as an object."""
    vocab_size: int
    """Ids of the model: those of the tokenizer are below it, and may be fewer."""
    special_tokens: Mapping[str, str]
    """The text of each token that has a name: "bos_token", "eos_token" and so on."""
    end_token_ids: tuple[int, ...]
    """Every id that ends an answer, in ascending order."""


def load_tokenizer(path: Path) -> ModelTokenizer:
    """Reads the tokenizer of the model at `path`. Raises ModelDirectoryError."""
    files = open_model(path)
    config = files.config()
    vocab_size = vocabulary_size(config, path)
    read = files.tokenizer(vocab_size)
    text = json.dumps(read.content, ensure_ascii=False)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises no class of its own
        raise unreadable(read.file, error) from error
    tokenizer.encode_special_tokens = read.splits_special_tokens
    for token in read.content["added_tokens"]:
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            raise ModelDirectoryError(
                f"the tokenizer in {path} gives {token['content']!r} the id {token['id']}, which "
                f"its kind of vocabulary cannot: it would be {found}; fill the gap between them"
            )
    return ModelTokenizer(
        tokenizer=tokenizer,
        json_text=text,
        content=read.content,
        vocab_size=vocab_size,
        special_tokens=read.special_tokens,
        end_token_ids=_end_token_ids(path, files, read, tokenizer, vocab_size),
    )


def check_tokenizer(path: Path) -> None:
    """Checks, without building it, that the tokenizer of a model belongs to the model. A model
    without one, as benchmarks have, passes. Raises ModelDirectoryError."""
    files = open_model(path)
    if files.has_tokenizer:
        files.tokenizer(vocabulary_size(files.config(), path))


def vocabulary_size(config: Mapping[str, Any], path: Path) -> int:
    """Returns the number of ids that the model has. Raises ModelDirectoryError."""
    try:
        return whole(config, "vocab_size", most=MOST_TOKENS)
    except KeyError as error:
        raise ModelDirectoryError(
            f"{path}/config.json has no vocab_size; fetch the model again"
        ) from error


def _end_token_ids(
    path: Path,
    files: ModelFiles,
    read: TokenizerContent,
    tokenizer: Tokenizer,
    vocab_size: int,
) -> tuple[int, ...]:
    """Returns the union of what config.json, generation_config.json and the tokenizer name: a null
    in one of them means that it does not know."""
    found: set[int] = set()
    sources = {"config.json": files.config(), "generation_config.json": files.generation_config()}
    for name, source in sources.items():
        value = source.get("eos_token_id")
        for one in value if isinstance(value, list) else [value]:
            if one is None:
                continue
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < vocab_size:
                raise ModelDirectoryError(
                    f"{path}/{name} has the eos_token_id {one!r}, and the model ids from 0 to "
                    f"{vocab_size - 1}; correct it or fetch it again"
                )
            found.add(one)
    named = (read.special_tokens.get("eos_token", ""), *chat_end_tokens(*sources.values()))
    ids = {tokenizer.token_to_id(text) for text in named}
    return tuple(sorted(found | {one for one in ids if one is not None}))
