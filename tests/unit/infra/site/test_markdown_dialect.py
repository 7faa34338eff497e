"""Lists and tables behind a paragraph are told to Python's Markdown, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.site.dialect import with_empty_lines

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("text\n* one\n  more\n* two\ntext", "text\n\n* one\n  more\n* two\ntext"),
        ("text\n1. one\n2. two", "text\n\n1. one\n2. two"),
        ("text\n| a |\n| --- |", "text\n\n| a |\n| --- |"),
        ("text\n\n* one", "text\n\n* one"),
        ("```\ntext\n* no list\n```\n", "```\ntext\n* no list\n```\n"),
        ("text\n*emphasis* goes on", "text\n*emphasis* goes on"),
    ],
)
def test_an_empty_line_comes_before_lists_and_tables(given: str, expected: str) -> None:
    assert with_empty_lines(given) == expected


def test_every_page_keeps_its_lines_and_is_done_once() -> None:
    for file in (ROOT / "docs").rglob("*.md"):
        text = file.read_text(encoding="utf-8")
        done = with_empty_lines(text)
        assert [line for line in done.split("\n") if line] == [
            line for line in text.split("\n") if line
        ]
        assert with_empty_lines(done) == done
