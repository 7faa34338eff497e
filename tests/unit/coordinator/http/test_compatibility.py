"""docs/compatibility.md says what the parser really does, and is not stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.http.documents.compatibility import EXAMPLES, FILE, document, observed
from coordinator.http.native.keys import SAMPLING, TOP_LEVEL, Key

ROOT = Path(__file__).resolve().parents[4]
KEYS = [(key, False) for key in TOP_LEVEL] + [(key, True) for key in SAMPLING]


@pytest.mark.parametrize(("key", "is_sampling"), KEYS, ids=lambda x: getattr(x, "name", str(x)))
def test_what_is_seen_is_what_the_table_says(key: Key, is_sampling: bool) -> None:
    seen = observed(key, is_sampling)
    if key.treatment in ("supported", "ignored"):
        assert seen == "accepted"
        assert key.treatment == "ignored" or key.name in EXAMPLES, "a value that asks for something"
    else:
        assert seen.startswith("400: ") and key.name in seen


def test_the_file_is_what_would_be_written_now() -> None:
    written = (ROOT / FILE).read_text(encoding="utf-8")
    assert written == document(), "run `python -m coordinator.http.documents.compatibility`"
