"""Reads from a model's files how it writes calls and thoughts."""

from __future__ import annotations

from pathlib import Path

from coordinator.answers.template_sources import template_sources
from coordinator.config import CoordinatorConfig
from coordinator.conversation.choice import form_of
from coordinator.conversation.family import FamilyForm
from protocol.model.files import open_model
from protocol.model.tokenizer import ModelTokenizer


def model_form(model_path: Path, model: ModelTokenizer, config: CoordinatorConfig) -> FamilyForm:
    """Returns the form of the model in `model_path`, whose tokenizer is `model`, as the operator's
    settings have it. Raises ConfigError and ModelDirectoryError."""
    added = model.tokenizer.get_added_tokens_decoder().values()
    return form_of(
        list(template_sources(model_path, config.chat_template).values()),
        {token.content: token.special for token in added},
        open_model(model_path).config(),
        config.tool_call_parser,
        config.reasoning_parser,
    )
