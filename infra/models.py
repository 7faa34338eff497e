"""Finds the path and the name of the model to serve: the one given, or the embedded one."""

from __future__ import annotations

import os
from pathlib import Path

from infra import hub
from protocol.model.directory import ModelDirectoryError
from protocol.model.files import open_model

EMBEDDED = Path(
    os.environ.get("KVRELAY_EMBEDDED_MODEL")
    or Path(__file__).resolve().parent.parent / "models" / "tiny"
)
"""The directory of the embedded model, which is installed with kvrelay; the environment variable
names it where it lies elsewhere."""


def path(model_path: str, with_weights: bool) -> str:
    """Returns the path of a model, a directory or a file: `model_path`, the embedded one if that is
    "", or one that is fetched from the hub if it is a model's id there. Raises ModelDirectoryError.

    Without weights, which only nodes need, a model of the hub is fetched in a moment.
    """
    try:
        if hub.is_hub_id(model_path):
            found = hub.fetch(model_path, with_weights)
        else:
            found = Path(model_path) if model_path else EMBEDDED
        open_model(found).config()
    except OSError as error:  # a name that is too long, a directory that may not be entered
        raise ModelDirectoryError(
            f"--model-path {model_path!r:.200} cannot be read ({error.strerror}); check its "
            "spelling and its permissions"
        ) from error
    return str(found)


def served_name(model_path: str) -> str:
    """Returns the name under which a model of the hub is served, its id; "" for a path, whose
    own name is taken elsewhere."""
    return model_path if hub.is_hub_id(model_path) else ""
