"""Which model is served: the one named, or the embedded one."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.config import ConfigError

EMBEDDED = Path(
    os.environ.get("KVRELAY_EMBEDDED_MODEL")
    or Path(__file__).resolve().parent.parent / "models" / "tiny"
)
"""In the repository; where kvrelay is installed alone, as in a container, the variable names it."""


def path(model_path: str) -> str:
    """The model directory; raises ConfigError when it is not there."""
    directory = Path(model_path) if model_path else EMBEDDED
    if not directory.is_dir():
        raise ConfigError(
            f"there is no model directory {directory}; --model-path must name a directory with "
            "config.json, *.safetensors and tokenizer.json"
        )
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"{directory} has no config.json; --model-path must name a directory in Hugging Face "
            "format (config.json, *.safetensors, tokenizer.json)"
        )
    return str(directory)
