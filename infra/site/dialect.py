"""Makes Markdown as forges read it into what Python's Markdown reads alike. Pure."""

from __future__ import annotations

import re

FENCE = re.compile(r"\s*(```|~~~)")
BLOCK = re.compile(r"([*+-]|\d+\.) |\|")
"""The beginning of a list's item or of a table's row, which forges take for one behind a paragraph
too, and Python's Markdown only behind an empty line."""


def with_empty_lines(text: str) -> str:
    """Returns the text with an empty line before each list and table that follows a paragraph."""
    lines: list[str] = []
    is_code = False
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        follows_text = before.strip() and not before.startswith(" ") and not BLOCK.match(before)
        if not is_code and follows_text and BLOCK.match(line):
            lines.append("")
        if FENCE.match(line):
            is_code = not is_code
        lines.append(line)
    return "\n".join(lines)
