"""What was seen with SGLang's own clients, as `python -m tests.e2e.clients` wrote it down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("seen.json")


def version() -> str:
    """Returns the version of SGLang whose front end was seen."""
    return str(_read()["sglang"])


def rows(section: str) -> list[list[str]]:
    """Returns a row for each primitive or demand: what it is, how many cases, what was seen."""
    lines = _read()[section].items()
    return [[title, str(line["cases"]), line["outcome"]] for title, line in lines]


def summary(section: str) -> str:
    """Returns in a few words how many cases of a section work."""
    all_rows = rows(section)
    total = sum(int(cases) for _, cases, _ in all_rows)
    working = sum(int(cases) for _, cases, outcome in all_rows if outcome == "works")
    return f"{working} of {total} cases work"


def _read() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return document
