"""The model's tokenizer and limits, read from its directory; no torch, no transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from protocol.model_directory import ModelDirectoryError, read_config, read_json


class Tokenizer:
    """Turns text into token ids and back, and knows the ids that end an answer."""

    def __init__(self, model_path: Path) -> None:
        """Reads the tokenizer of the model directory `model_path`. Raises ModelDirectoryError."""
        config = read_config(model_path)
        generation = read_json(model_path / "generation_config.json") or {}
        self._tokenizer = _load(model_path / "tokenizer.json")
        self.eos_token_ids = _ids(generation.get("eos_token_id", config.get("eos_token_id")))
        self.bos_token_id = self._tokenizer.token_to_id(_bos_token(model_path))
        """The token that stands before a text; None if the model has none."""
        self.max_model_len = int(config.get("max_position_embeddings", 2048))
        self.vocab_size = int(config.get("vocab_size", self._tokenizer.get_vocab_size()))

    def encode(self, text: str, with_special_tokens: bool = True) -> list[int]:
        """Returns the ids of `text`, with the special tokens that the model expects around a plain
        text unless they are there already."""
        return list(self._tokenizer.encode(text, add_special_tokens=with_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


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


def _bos_token(model_path: Path) -> str:
    token = (read_json(model_path / "tokenizer_config.json") or {}).get("bos_token")
    return str(token["content"] if isinstance(token, dict) else token or "")


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
