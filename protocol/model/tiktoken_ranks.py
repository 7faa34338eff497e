"""Makes a tokenizer.json of a file in tiktoken's format: a token in base64 and its rank per line.

tiktoken cuts a text by a pattern. Within each piece it joins the two neighbours that make the token
of the lowest rank, the leftmost if there are several, until no two make a token.

The library `tokenizers` goes by a list of pairs instead. Here that list has every pair that makes a
token, in the order of the tokens' ranks, which comes to the same. For nothing is joined across the
ends of a token before it is made, so its bytes are joined in the order in which they would be if
they stood alone. Hence one pair is the only one that ever makes it, and the others are never met.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol.model.directory import ModelDirectoryError

PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
"""Bytes that a tokenizer.json writes as the character of the same number; the others follow 255, in
their order."""


def read_ranks(file: Path) -> dict[bytes, int]:
    """Returns the rank of each token. Raises ModelDirectoryError unless the ranks are those from 0
    on, and every byte is a token."""
    try:
        lines = (line.split() for line in file.read_bytes().splitlines() if line.strip())
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (OSError, ValueError, binascii.Error) as error:
        raise _unreadable(file, str(error)) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise _unreadable(file, "its ranks are not those from 0 on")
    if missing := [value for value in range(256) if bytes([value]) not in ranks]:
        raise _unreadable(file, f"the byte {missing[0]} is no token")
    return ranks


def tokenizer_of_ranks(
    ranks: Mapping[bytes, int], pattern: str, special_tokens: Sequence[str]
) -> dict[str, Any]:
    """Returns the content of a tokenizer.json: its ids are the ranks, and those of the special
    tokens follow. `pattern` cuts a text, which is brought into Unicode's form C before."""
    alphabet = _alphabet()
    texts = {token: token.decode("latin-1").translate(alphabet) for token in ranks}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    byte_level["use_regex"] = False
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    steps = [{**split, "invert": False}, byte_level]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _special(number, text) for number, text in enumerate(special_tokens, start=len(ranks))
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is not joined from smaller ones
            "vocab": {texts[token]: rank for token, rank in ranks.items()},
            "merges": [[texts[first], texts[second]] for *_, first, second in _pairs(ranks)],
        },
    }


def _pairs(ranks: Mapping[bytes, int]) -> list[tuple[int, int, bytes, bytes]]:
    """Returns (rank of the token, rank of its first part, both parts) for every way to make a
    token, in ascending order."""

    def ways(token: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
        for cut in range(1, len(token)):
            first, second = token[:cut], token[cut:]
            if first in ranks and second in ranks:
                yield ranks[token], ranks[first], first, second

    return sorted(pair for token in ranks for pair in ways(token))


def _alphabet() -> dict[int, int]:
    """Returns the character that stands for each byte in the texts of byte-level tokens."""
    others = [value for value in range(256) if value not in PRINTABLE]
    return {value: value for value in PRINTABLE} | {
        value: number for number, value in enumerate(others, start=256)
    }


def _special(number: int, text: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, **flags, "special": True}


def _unreadable(file: Path, reason: str) -> ModelDirectoryError:
    return ModelDirectoryError(
        f"{file} is no file of tokens and ranks ({reason}); fetch it again, and if git did it, "
        "with git lfs pull"
    )
