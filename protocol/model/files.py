"""`ModelFiles`: what a model says of itself, whichever form its files have.

    HuggingFaceDirectory   a directory with config.json, *.safetensors and tokenizer.json
    GgufModel              one *.gguf, or a split set of them

Coordinators and nodes read a model through this alone, so that they agree about it. The weights are
read elsewhere, by `engine/weights`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from protocol.model.gguf.model import GgufModel
from protocol.model.gguf.parts import is_gguf
from protocol.model.hugging_face import HuggingFaceDirectory
from protocol.model.tokenizer_content import TokenizerContent


class ModelFiles(Protocol):
    """The files of one model. Every method reads them anew, and raises ModelDirectoryError for what
    is missing or damaged."""

    @property
    def name(self) -> str:
        """What the model is called unless somebody gives it another name."""

    @property
    def modified_s(self) -> float:
        """When the model was written, in seconds since 1970."""

    def config(self) -> dict[str, Any]:
        """Returns the settings of the model, under the keys of a config.json."""

    def generation_config(self) -> dict[str, Any]:
        """Returns the recommended sampling, under the keys of a generation_config.json; none if
        the model recommends nothing."""

    def chat_templates(self) -> dict[str, str]:
        """Returns the chat templates by name, the usual one as "default"; none if there are
        none."""

    @property
    def has_tokenizer(self) -> bool:
        """False if there is no tokenizer at all, as with models of benchmarks."""

    def tokenizer(self, vocab_size: int) -> TokenizerContent:
        """Returns the tokenizer of a model that has `vocab_size` ids."""


def open_model(path: Path) -> ModelFiles:
    """Returns the model at `path`, without reading it."""
    return GgufModel(path) if is_gguf(path) else HuggingFaceDirectory(path)
