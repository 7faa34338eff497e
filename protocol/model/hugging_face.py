"""`HuggingFaceDirectory`: a model directory in Hugging Face format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.model.directory import ModelDirectoryError, read_config, read_json
from protocol.model.tokenizer_content import TokenizerContent
from protocol.model.tokenizer_files import TokenizerFiles, tokenizer_file

TEMPLATE_SUFFIX = ".jinja"


class HuggingFaceDirectory:
    """Implements `ModelFiles`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.resolve().name

    @property
    def modified_s(self) -> float:
        """When config.json was written."""
        return (self.path / "config.json").stat().st_mtime

    def config(self) -> dict[str, Any]:
        """Returns config.json, as `read_config` does."""
        return read_config(self.path)

    def generation_config(self) -> dict[str, Any]:
        """Returns generation_config.json; none of it if it is not there."""
        return read_json(self.path / "generation_config.json") or {}

    def chat_templates(self) -> dict[str, str]:
        """Returns the templates by name. As in transformers, files of templates go before those in
        tokenizer_config.json."""
        found: dict[str, str] = {}
        if (self.path / "chat_template.jinja").is_file():
            found["default"] = read_text(self.path / "chat_template.jinja")
        folder = self.path / "additional_chat_templates"
        for file in sorted(folder.glob(f"*{TEMPLATE_SUFFIX}")):
            found[file.stem] = read_text(file)
        if found:
            return found
        config = read_json(self.path / "tokenizer_config.json") or {}
        older = read_json(self.path / "chat_template.json") or {}  # of models that see
        given = config.get("chat_template") or older.get("chat_template")
        return {} if given is None else _named(given, self.path)

    @property
    def has_tokenizer(self) -> bool:
        """False if there is neither a tokenizer.json nor a file of ranks."""
        return tokenizer_file(self.path).is_file()

    def tokenizer(self, vocab_size: int) -> TokenizerContent:
        """Returns tokenizer.json, or what stands for it, with what the other files say of it."""
        files = TokenizerFiles(self.path)
        return TokenizerContent(
            file=tokenizer_file(self.path),
            content=files.merged(vocab_size),
            special_tokens=files.special_tokens,
            splits_special_tokens=bool(files.config.get("split_special_tokens")),
        )


def read_text(file: Path) -> str:
    """Returns the content of a file of text. Raises ModelDirectoryError."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(f"{file} cannot be read as text ({error})") from error


def _named(given: Any, path: Path) -> dict[str, str]:
    """Returns the templates of a tokenizer_config.json: one text, or several with names."""
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, Mapping):
        given = [{"name": name, "template": text} for name, text in given.items()]
    try:
        return {str(one["name"]): str(one["template"]) for one in given}
    except (TypeError, KeyError) as error:
        raise ModelDirectoryError(
            f"{path}/tokenizer_config.json has a chat_template that is neither a text nor a list "
            "of objects with name and template; fetch it again"
        ) from error
