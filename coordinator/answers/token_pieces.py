"""`TokenPieces`: what each token of a tokenizer adds to a text, found once per token. Pure.

Three kinds of decoders are known. With a byte-level one, every token is some bytes of UTF-8. With
byte fallback, tokens are texts, but for those that are one byte each. With any other, every token
is a text. The first token of a text may differ from the same token further on, since a space
before it may be dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

Kind = Literal["byte-level", "byte-fallback", "text"]
Piece = str | bytes
"""A text of whole characters; or bytes, where they are part of a character or no UTF-8."""

BROKEN = "\N{REPLACEMENT CHARACTER}"
STREAMED_STEPS = {"ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace", "WordPiece"}
"""Steps of a decoder in which no token changes what was decoded before it."""
ONE_BYTE = re.compile(r"<0x([89A-Fa-f][0-9A-Fa-f])>")
"""Matches a token of byte fallback that is part of a character. Those of ASCII are a whole one."""


class TokenPieces:
    """The pieces of one tokenizer, with or without its special tokens. Each is found at its first
    use and kept."""

    def __init__(
        self,
        kind: Kind,
        size: int,
        token_of: Callable[[int], str | None],
        decode: Callable[[Sequence[int]], str],
        skipped: Collection[int] = (),
    ) -> None:
        """`size` is the number of ids; `token_of` returns what the vocabulary has for an id, and
        `decode` the text of some ids. Tokens in `skipped` add nothing to a text."""
        self.kind: Kind = kind
        self.known: list[Piece | None] = [None] * size
        """The pieces that were found so far, by id."""
        self._token_of = token_of
        self._decode = decode
        self._skipped = frozenset(skipped)
        self._anchor: tuple[int, str] | None = None
        """A token to decode others behind, and its text; None until it is needed."""

    def piece(self, token: int) -> Piece:
        """Returns what `token` adds within a text. An id that the tokenizer lacks adds nothing."""
        if not 0 <= token < len(self.known):
            return ""
        piece = self.known[token]
        if piece is None:
            piece = self.known[token] = self._find(token)
        return piece

    def first_text(self, token: int) -> str:
        """Returns what `token`, whose piece is a text, is at the beginning of a text."""
        return self._decode([token])

    def broken(self, pending: bytes, num_foreign: int) -> str:
        """Returns what stands for bytes that became no character, the first `num_foreign` of which
        belong to the text before. Byte-level decoders make one U+FFFD of them together, byte
        fallback one of each."""
        if self.kind == "byte-fallback":
            return BROKEN * (len(pending) - num_foreign)
        return "" if num_foreign else BROKEN

    def _find(self, token: int) -> Piece:
        name = self._token_of(token)
        if name is None or token in self._skipped:
            return ""
        if self.kind == "byte-level":
            return _whole_text(_bytes_of(name))
        if self.kind == "byte-fallback" and (match := ONE_BYTE.fullmatch(name)):
            return bytes.fromhex(match[1])
        anchor, text = self._anchor = self._anchor or self._find_anchor()
        return self._decode([anchor, token])[len(text) :]

    def _find_anchor(self) -> tuple[int, str]:
        """Returns a token that is a plain word, behind which any token is within a text."""
        for token in range(len(self.known)):
            name = self._token_of(token) or ""
            if name.isascii() and name.isalnum() and self._decode([token]) == name:
                return token, name
        return 0, self._decode([0])


def kind_of(decoder: Mapping[str, Any] | None) -> Kind | None:
    """Returns the kind of a tokenizer.json's `decoder`; None for one that cannot be streamed, since
    a token changes the text of those before it."""
    if decoder is None:
        return "text"  # tokens with spaces between them
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    names = {step.get("type") for step in steps}
    if not names <= STREAMED_STEPS or any(step.get("stop") for step in steps):
        return None
    if "ByteLevel" in names:
        return "byte-level" if names <= {"ByteLevel", "Fuse"} else None
    return "byte-fallback" if "ByteFallback" in names else "text"


NO_PIECES = TokenPieces("byte-level", 0, lambda _: None, lambda _: "")
"""For requests of which only the token ids matter."""


def _whole_text(raw: bytes) -> Piece:
    """Returns the text of bytes that are whole characters, else the bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte that each character of a byte-level vocabulary stands for: printable ones of
    Latin 1 for themselves, and the characters from U+0100 on for the others (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


BYTE_ALPHABET = _byte_alphabet()


def _bytes_of(name: str) -> bytes:
    """Returns the bytes of a byte-level token. An added token may have other characters than those
    of the alphabet; then it is its own text."""
    try:
        return bytes(BYTE_ALPHABET[character] for character in name)
    except KeyError:
        return name.encode()
