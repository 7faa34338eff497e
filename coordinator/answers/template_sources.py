"""Finds the chat templates of a model: those of its directory, a file, or one of a few by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from protocol.config import ConfigError
from protocol.model.directory import ModelDirectoryError, read_json
from protocol.model.first_qwen import is_chat_model

SUFFIX = ".jinja"
FIRST_QWEN = "first-qwen"


def template_sources(model_path: Path, wanted: str) -> dict[str, str]:
    """Returns the templates by name; none if the model has none.

    `wanted` is the operator's wish: the name of one of the model's templates, of a file, or of one
    that comes with kvrelay; "" is the model's own. Raises ConfigError and ModelDirectoryError.
    """
    of_model = _of_directory(model_path)
    if not wanted:
        return of_model
    if wanted in of_model:
        return {"default": of_model[wanted]}
    if Path(wanted).is_file():
        return {"default": _read(Path(wanted))}
    built_in = built_in_templates()
    if wanted in built_in:
        return {"default": built_in[wanted]}
    names = ", ".join(sorted({*of_model, *built_in}))
    raise ConfigError(
        f"--chat-template is {wanted!r}; it must be a file with a Jinja template, or one of {names}"
    )


def built_in_templates() -> dict[str, str]:
    """Returns the templates that come with kvrelay, by name, for models without one."""
    folder = files("coordinator.answers") / "templates"
    return {
        file.name.removesuffix(SUFFIX): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(SUFFIX)
    }


def _of_directory(path: Path) -> dict[str, str]:
    """As in transformers, files of templates go before those in tokenizer_config.json."""
    found: dict[str, str] = {}
    if (path / "chat_template.jinja").is_file():
        found["default"] = _read(path / "chat_template.jinja")
    for file in sorted((path / "additional_chat_templates").glob(f"*{SUFFIX}")):
        found[file.stem] = _read(file)
    if found:
        return found
    config = read_json(path / "tokenizer_config.json") or {}
    older = read_json(path / "chat_template.json") or {}  # of models that see
    given = config.get("chat_template") or older.get("chat_template")
    return _of_family(path) if given is None else _named(given, path)


def _of_family(path: Path) -> dict[str, str]:
    """Returns the template that code beside a model stands for, as with the first Qwen."""
    config = read_json(path / "config.json") or {}
    generation = read_json(path / "generation_config.json") or {}
    return (
        {"default": built_in_templates()[FIRST_QWEN]} if is_chat_model(config, generation) else {}
    )


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


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(f"{file} cannot be read as text ({error})") from error
