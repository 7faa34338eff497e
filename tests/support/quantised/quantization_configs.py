"""What producers of quantised models write into config.json, and beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Case:
    name: str
    expected: Literal["supported", "refused", "either"]
    """ "either" where both are right, as long as it is not a crash."""
    config: dict[str, Any]
    """Keys of config.json."""
    files: dict[str, Any] = field(default_factory=dict)
    """Other JSON files of the directory."""

    @property
    def is_plain(self) -> bool:
        """True if these settings say that nothing is quantised."""
        return self.name.endswith("is plain")


def _cases() -> Iterator[Case]:
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    for row in json.loads(text):
        yield Case(row["name"], row["expected"], row["config"], row.get("files", {}))


CASES = tuple(_cases())
