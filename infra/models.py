"""Which model is served: the one named, or the embedded one."""

from __future__ import annotations

import os
from pathlib import Path

from infra import hub
from protocol.model_directory import read_config

EMBEDDED = Path(
    os.environ.get("KVRELAY_EMBEDDED_MODEL")
    or Path(__file__).resolve().parent.parent / "models" / "tiny"
)
"""In the repository; where kvrelay is installed alone, as in a container, the variable names it."""


def path(model_path: str, with_weights: bool) -> str:
    """The model directory, fetched from the hub if `model_path` is a model's id there; without
    weights where only the tokenizer is needed. Raises ModelDirectoryError."""
    if hub.is_hub_id(model_path):
        directory = hub.fetch(model_path, with_weights)
    else:
        directory = Path(model_path) if model_path else EMBEDDED
    read_config(directory)
    return str(directory)


def served_name(model_path: str) -> str:
    """The name that a hub id gives; "": the directory has it."""
    return model_path if hub.is_hub_id(model_path) else ""
