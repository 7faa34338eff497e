"""`ValueType`: the form of a generated text, and the value that is made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

REGEXES: Mapping[Any, str] = {
    int: r"-?(0|[1-9][0-9]{0,17})",
    float: r"-?(0|[1-9][0-9]{0,14})\.[0-9]{1,6}",
    bool: r"(True|False)",
    str: r'"[^"\\\n]*"',
}
"""What a text of each simple type looks like; every text of the type is one that Python reads."""


class ValueCutOff(ValueError):
    """A generated text is no value of its type, mostly because it ended too early."""


@dataclass(frozen=True)
class ValueType:
    """A type of values; None is the text itself, whatever it looks like."""

    dtype: Any = None

    def grammar(self) -> dict[str, Any]:
        """Returns the sampling parameter that gives texts the form of the type."""
        if self.dtype is None:
            return {}
        if self.dtype in REGEXES:
            return {"regex": REGEXES[self.dtype]}
        return {"json_schema": msgspec.json.schema(self.dtype)}

    def value(self, text: str) -> Any:
        """Returns the value that a text stands for. Raises ValueCutOff."""
        try:
            if self.dtype is None:
                return text
            if self.dtype is bool:
                return {"True": True, "False": False}[text]
            if self.dtype is str:
                return _unquoted(text)
            if self.dtype in REGEXES:
                return self.dtype(text)
            return msgspec.json.decode(text, type=self.dtype)
        except (ValueError, KeyError) as error:  # msgspec's errors are ValueErrors
            raise ValueCutOff(
                f"{text!r:.100} is no value of type {self.dtype}; give it more max_new_tokens"
            ) from error


def _unquoted(text: str) -> str:
    if len(text) < 2 or not text.startswith('"') or not text.endswith('"'):
        raise ValueError("a quote is missing")
    return text[1:-1]
