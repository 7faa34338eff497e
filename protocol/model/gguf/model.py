"""`GgufModel`: a model in GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocol.model.gguf.config import architecture_of, config_of
from protocol.model.gguf.parts import GgufParts, model_name, read_parts
from protocol.model.gguf.vocabulary import Vocabulary, chat_templates
from protocol.model.tokenizer_content import TokenizerContent

SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""The keys of recommended sampling, by those of generation_config.json."""


class GgufModel:
    """Implements `ModelFiles`. Of a split set the first file is enough; the others add what the
    names of their tensors tell, which matters where weights are loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The name of the file, without its ending."""
        return model_name(self._parts().file)

    @property
    def modified_s(self) -> float:
        """When the file was written."""
        return self._parts().file.stat().st_mtime

    def config(self) -> dict[str, Any]:
        """Returns what the metadata and the table of tensors say, in the terms of config.json."""
        return config_of(self._parts())

    def generation_config(self) -> dict[str, Any]:
        """Returns the recommended sampling."""
        metadata = self._parts().metadata
        found = {key: metadata.get(f"general.sampling.{name}") for key, name in SAMPLING.items()}
        return {key: value for key, value in found.items() if value is not None}

    def chat_templates(self) -> dict[str, str]:
        """Returns the templates by name."""
        return chat_templates(self._parts())

    @property
    def has_tokenizer(self) -> bool:
        """False if the file has no vocabulary."""
        return "tokenizer.ggml.tokens" in self._parts().metadata

    def tokenizer(self, vocab_size: int) -> TokenizerContent:
        """Returns the tokenizer of the vocabulary."""
        return Vocabulary(self._parts(), vocab_size).content()

    def _parts(self) -> GgufParts:
        parts = read_parts(self.path, needs_all=False)
        architecture_of(parts)  # what is no model has none of the rest
        return parts
