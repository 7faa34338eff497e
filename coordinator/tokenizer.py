"""The model's tokenizer and limits, read from its directory; no torch, no transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from protocol.errors import UserError


class ModelFilesError(UserError):
    """The model directory lacks something; the message says what and the remedy."""


class Tokenizer:
    """Text to ids and back, with the ids that end an answer."""

    def __init__(self, model_path: Path) -> None:
        """Raises ModelFilesError."""
        if not model_path.is_dir():
            raise ModelFilesError(
                f"there is no model directory {model_path}; "
                "--model-path must name one in Hugging Face format"
            )
        tokenizer_file = model_path / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise ModelFilesError(
                f"{model_path} has no tokenizer.json; save the model's fast tokenizer there "
                "(AutoTokenizer.from_pretrained(…).save_pretrained(…) writes it)"
            )
        config = _read_json(model_path / "config.json")
        generation = _read_json(model_path / "generation_config.json")
        self._tokenizer = HFTokenizer.from_file(str(tokenizer_file))
        self.eos_token_ids = _ids(generation.get("eos_token_id", config.get("eos_token_id")))
        self.max_model_len = int(config.get("max_position_embeddings", 2048))
        self.vocab_size = int(config.get("vocab_size", self._tokenizer.get_vocab_size()))

    def encode(self, text: str) -> list[int]:
        """Ids with the special tokens that the model expects around a plain text."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFilesError(f"{path} is no JSON ({error}); fetch it again") from error
    return dict(content)


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
