"""Every message that docs/troubles.md quotes is one that the product says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PAGE = ROOT / "docs" / "troubles.md"
PACKAGES = ("protocol", "engine", "kvtransfer", "node", "prefill", "decode", "coordinator", "infra")
VALUE = "\0"
"""Stands for a value within a message."""
VALUES = re.compile(
    r"\b(ATTEMPTS|CODE|ERROR|FILE|HOST|LENGTH|PAGES|PORT|PROCESS|RANGE|SECONDS|TOKENS|URL)\b"
)
"""How the page writes values."""


def said_in(source: str) -> list[str]:
    """Returns the texts in a Python file, with VALUE for what is filled in."""
    return [
        "".join(
            str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values
        )
        if isinstance(node, ast.JoinedStr)
        else node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]


def quoted_in(page: str) -> list[str]:
    """Returns the messages of the page: the first code in a row's column `message`."""
    quoted: list[str] = []
    column = 0
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and "message" in cells:
            column = cells.index("message")
        elif line.startswith("| ") and (code := re.match(r"`(.+)`$", cells[column])):
            quoted.append(code[1])
    return quoted


@pytest.fixture(scope="module")
def said() -> str:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return "\n".join(text for file in files for text in said_in(file.read_text(encoding="utf-8")))


def test_every_quoted_message_is_said(said: str) -> None:
    # Formats of the log have %s where other texts have a value.
    said = re.sub(r"%[sdrg]", VALUE, said)
    quoted = quoted_in(PAGE.read_text(encoding="utf-8"))
    assert len(quoted) > 50
    assert [one for one in quoted if VALUES.sub(VALUE, one) not in said] == []


def test_a_message_that_nobody_says_is_found() -> None:
    page = "| message | cause |\n| --- | --- |\n| `port PORT is tired` | age |\n"
    (quoted,) = quoted_in(page)
    (said,) = [text for text in said_in('f"port {port} is taken"') if VALUE in text]
    assert VALUES.sub(VALUE, "port PORT is taken") == said
    assert VALUES.sub(VALUE, quoted) != said
