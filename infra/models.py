"""Which model is served: the one named, or the embedded one."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.model_directory import read_config

EMBEDDED = Path(
    os.environ.get("KVRELAY_EMBEDDED_MODEL")
    or Path(__file__).resolve().parent.parent / "models" / "tiny"
)
"""In the repository; where kvrelay is installed alone, as in a container, the variable names it."""


def path(model_path: str) -> str:
    """The model directory; raises ModelDirectoryError when it is none."""
    directory = Path(model_path) if model_path else EMBEDDED
    read_config(directory)
    return str(directory)
