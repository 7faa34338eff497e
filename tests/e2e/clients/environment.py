"""Where SGLang's own package is installed, and the mark of tests that need it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("KVRELAY_CLIENTS", ROOT / ".venv-clients")) / "bin" / "python"
needs_front_end = pytest.mark.skipif(
    not PYTHON.exists(), reason="SGLang's front end is not installed; `make verify` installs it"
)
