"""Finds the chat templates of a model: its own, a file, or one of a few by name."""

from __future__ import annotations

from importlib.resources import files
from os.path import isfile
from pathlib import Path

from protocol.config import ConfigError
from protocol.model.files import ModelFiles, open_model
from protocol.model.first_qwen import is_chat_model
from protocol.model.hugging_face import TEMPLATE_SUFFIX, read_text

FIRST_QWEN = "first-qwen"


def template_sources(model_path: Path, wanted: str) -> dict[str, str]:
    """Returns the templates by name; none if the model has none.

    `wanted` is the operator's wish: the name of one of the model's templates, of a file, or of one
    that comes with kvrelay; "" is the model's own. Raises ConfigError and ModelDirectoryError.
    """
    model = open_model(model_path)
    of_model = model.chat_templates() or _of_family(model)
    if not wanted:
        return of_model
    if wanted in of_model:
        return {"default": of_model[wanted]}
    if isfile(wanted):  # which is false, too, for what cannot be a name of a file
        return {"default": read_text(Path(wanted))}
    built_in = built_in_templates()
    if wanted in built_in:
        return {"default": built_in[wanted]}
    names = ", ".join(sorted({*of_model, *built_in}))
    raise ConfigError(
        f"--chat-template is {wanted!r:.200}; it must be a file with a Jinja template, or "
        f"one of {names}"
    )


def built_in_templates() -> dict[str, str]:
    """Returns the templates that come with kvrelay, by name, for models without one."""
    folder = files("coordinator.answers") / "templates"
    return {
        file.name.removesuffix(TEMPLATE_SUFFIX): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(TEMPLATE_SUFFIX)
    }


def _of_family(model: ModelFiles) -> dict[str, str]:
    """Returns the template that code beside a model stands for, as with the first Qwen."""
    generation = model.generation_config()
    if "chat_format" not in generation or not is_chat_model(model.config(), generation):
        return {}
    return {"default": built_in_templates()[FIRST_QWEN]}
