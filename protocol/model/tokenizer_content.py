"""`TokenizerContent`: a tokenizer before it is built, with everything merged that its model says
of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TokenizerContent:
    """What a tokenizer is made of."""

    file: Path
    """What an error message names."""
    content: Mapping[str, Any]
    """The object of a tokenizer.json."""
    special_tokens: Mapping[str, str]
    """The text of each token that has a name: "bos_token", "eos_token" and so on."""
    splits_special_tokens: bool = False
    """True if special tokens in a text are taken for plain text."""
