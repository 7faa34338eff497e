"""Finds the tokens that end an answer of a GGUF model."""

from __future__ import annotations

from functools import lru_cache

from protocol.model.gguf.header import Header
from protocol.model.gguf.parts import GgufParts

END_KEYS = ("eos", "eot", "eom")
"""Ends of a text, of a turn and of a message; the metadata has a key for each."""
END_TEXTS = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|end|>",
        "<|return|>",
        "<end_of_turn>",
        "<eos>",
        "</s>",
        "<EOT>",
        "[EOT]",
        "[EOS]",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
    }
)
"""Texts of control tokens that end an answer whatever the metadata says, as in llama.cpp: a file
has one end of a text, where a generation_config.json lists several."""
CONTROL = 3
"""The type of a token that stands for something else than its text."""


def end_token_ids(parts: GgufParts) -> list[int]:
    """Returns the ids in ascending order; none if the file has no vocabulary."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in END_KEYS)
    found = {parts.metadata[key] for key in keys if key in parts.metadata}
    return sorted(found | _ids_of_end_texts(parts.headers[0]))


@lru_cache(maxsize=4)
def _ids_of_end_texts(header: Header) -> frozenset[int]:
    types = header.array("tokenizer.ggml.token_type") or []
    if CONTROL not in types:
        return frozenset()
    texts = header.array("tokenizer.ggml.tokens") or []
    pairs = enumerate(zip(texts, types, strict=False))
    return frozenset(i for i, (text, kind) in pairs if kind == CONTROL and text in END_TEXTS)
