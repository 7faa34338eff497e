"""The model's tokenizer and limits, read from its directory; no torch, no transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from protocol.model_directory import ModelDirectoryError, read_config, read_json


class Tokenizer:
    """Text to ids and back, with the ids that end an answer."""

    def __init__(self, model_path: Path) -> None:
        """Raises ModelDirectoryError."""
        config = read_config(model_path)
        generation = read_json(model_path / "generation_config.json") or {}
        self._tokenizer = _load(model_path / "tokenizer.json")
        self.eos_token_ids = _ids(generation.get("eos_token_id", config.get("eos_token_id")))
        self.max_model_len = int(config.get("max_position_embeddings", 2048))
        self.vocab_size = int(config.get("vocab_size", self._tokenizer.get_vocab_size()))

    def encode(self, text: str) -> list[int]:
        """Ids with the special tokens that the model expects around a plain text."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def to_json(self) -> str:
        """Returns the tokenizer.json that this tokenizer is."""
        return str(self._tokenizer.to_str())


def _load(file: Path) -> HFTokenizer:
    if not file.is_file():
        raise ModelDirectoryError(
            f"{file.parent} has no tokenizer.json; save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(…).save_pretrained(…) writes it)"
        )
    try:
        return HFTokenizer.from_file(str(file))
    except Exception as error:  # the library raises no class of its own
        raise ModelDirectoryError(
            f"{file} cannot be read ({error}); fetch it again, and if git did it, with git lfs pull"
        ) from error


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
