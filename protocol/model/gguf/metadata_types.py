"""Checks that the metadata that every GGUF model has is of the types that it must have."""

from __future__ import annotations

from typing import Any, Literal

from protocol.model.gguf.header import NUMBERS, STRING, ArrayPlace, Header, damaged

Kind = Literal["a text", "a whole number", "a boolean", "a list of texts", "a list of numbers"]

KINDS: dict[str, Kind] = {
    "general.architecture": "a text",
    "general.type": "a text",
    "split.no": "a whole number",
    "split.count": "a whole number",
    "split.tensors.count": "a whole number",
    "tokenizer.chat_template": "a text",
    "tokenizer.chat_templates": "a list of texts",
    "tokenizer.ggml.model": "a text",
    "tokenizer.ggml.pre": "a text",
    "tokenizer.ggml.tokens": "a list of texts",
    "tokenizer.ggml.merges": "a list of texts",
    "tokenizer.ggml.scores": "a list of numbers",
    "tokenizer.ggml.token_type": "a list of numbers",
    "tokenizer.ggml.add_bos_token": "a boolean",
    "tokenizer.ggml.add_eos_token": "a boolean",
    "tokenizer.ggml.add_space_prefix": "a boolean",
}
"""By key. Those of token ids all end alike; those of an architecture are checked where they are
read."""
ID_SUFFIX = "_token_id"


def require_types(header: Header) -> None:
    """Raises ModelDirectoryError if a value is of another type."""
    for key, value in header.metadata.items():
        kind = "a whole number" if key.endswith(ID_SUFFIX) else KINDS.get(key)
        if kind is not None and not _is(value, kind):
            raise damaged(header.file, f"its {key} is not {kind}")


def _is(value: Any, kind: Kind) -> bool:
    if kind == "a text":
        return isinstance(value, str)
    if kind == "a boolean":
        return isinstance(value, bool)
    if kind == "a whole number":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not isinstance(value, ArrayPlace):
        return False
    return (
        value.element_type == STRING
        if kind == "a list of texts"
        else (value.element_type in NUMBERS)
    )
