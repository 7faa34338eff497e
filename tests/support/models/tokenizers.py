"""A tokenizer for tests of text."""

from __future__ import annotations

from collections.abc import Sequence


def decode_bytes(ids: Sequence[int]) -> str:
    """A tokenizer whose every token is one byte."""
    return bytes(ids).decode(errors="replace")
