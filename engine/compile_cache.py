"""Where libraries keep what they compile, so that the next start of a node takes seconds."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

DIRECTORIES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash-attn",
    "CUTE_DSL_CACHE_DIR": "cute",
    "CUDA_CACHE_PATH": "cuda",
}
"""The variable by which each library is told its directory."""
SWITCHES = {"FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"}
"""Without it flash-attn-4 keeps nothing."""


def cache_directory(chosen: str, environment: MutableMapping[str, str] | None = None) -> Path:
    """Returns the directory for everything that is compiled: `chosen`, or if that is "" one of this
    user's cache directory."""
    if chosen:
        return Path(chosen).expanduser()
    variables = os.environ if environment is None else environment
    root = variables.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "kvrelay"


def name_cache(directory: Path, environment: MutableMapping[str, str]) -> None:
    """Tells libraries, through `environment`, to keep what they compile in `directory`. Must come
    before they are imported. What is set there already stays."""
    for variable, name in DIRECTORIES.items():
        environment.setdefault(variable, str(directory / name))
    for variable, value in SWITCHES.items():
        environment.setdefault(variable, value)
