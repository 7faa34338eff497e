"""Streaming detokenisation that never emits half a character, and stop strings. Pure.

Text is cut at characters. Bytes are held only while they can still become one, which the first of
them tells: it knows how many belong to it. So nothing depends on how many tokens a character has.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from coordinator.answers.token_pieces import TokenPieces

MAX_LOOKED_AT = 16
"""Tokens at the end of a prompt that are looked at for the beginning of a character. Three can have
it; a few special ones between them would not count."""


class Detokenizer:
    """Makes the text of one answer, token by token, as a part of the text of prompt and answer.

    Where an answer completes a character that its prompt began, the whole character belongs to the
    answer.
    """

    def __init__(self, pieces: TokenPieces, prompt: Sequence[int] = ()) -> None:
        self._pieces = pieces
        self._known = pieces.known
        self._parts: list[str] = []
        self._pending = _unfinished_end(pieces, prompt)
        """Bytes of a character that lacks some."""
        self._num_foreign = len(self._pending)
        """How many of these the prompt has."""
        self._has_begun = any(pieces.piece(token) for token in prompt)
        """There is text before the next token."""

    @property
    def text(self) -> str:
        """All text so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def push(self, token: int) -> str:
        """Takes the next token. Returns the new text, which may be empty."""
        piece = self._known[token] if token < len(self._known) else ""
        if piece is None:
            piece = self._pieces.piece(token)
        if self._pending or not self._has_begun or piece.__class__ is not str:
            piece = self._push(token, piece)
        self._parts.append(piece)
        return piece

    def finish(self) -> str:
        """Takes the end of the answer. Returns U+FFFD for bytes that became no character."""
        text = self._give_up_pending()
        self._parts.append(text)
        return text

    def _push(self, token: int, piece: str | bytes) -> str:
        if not piece:
            return ""
        is_first, self._has_begun = not self._has_begun, True
        if isinstance(piece, bytes):
            return self._push_bytes(piece)
        text = self._pieces.first_text(token) if is_first else piece
        return self._give_up_pending() + text

    def _push_bytes(self, piece: bytes) -> str:
        pending = self._pending
        data = pending + piece
        text, rest = _decode(data)
        if rest == data:
            self._pending = data
            return ""
        if pending and not _begins_with_character(data):
            text = self._pieces.broken(pending, self._num_foreign) + text[1:]
        self._pending, self._num_foreign = rest, 0
        return text

    def _give_up_pending(self) -> str:
        if not self._pending:
            return ""
        text = self._pieces.broken(self._pending, self._num_foreign)
        self._pending, self._num_foreign = b"", 0
        return text


def _decode(data: bytes) -> tuple[str, bytes]:
    """Returns the characters of `data`, and the bytes behind them that may become one."""
    text, num_used = utf_8_decode(data, "replace", False)
    rest = data[num_used:]
    if rest[:1] == b"\xed" and rest[1:2] >= b"\xa0":
        # The beginning of a surrogate, for which Python would wait: UTF-8 has no such characters.
        return utf_8_decode(data, "replace", True)[0], b""
    return text, rest


def _begins_with_character(data: bytes) -> bool:
    """Returns whether the character that the first byte of `data` begins is whole."""
    length = 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
    try:
        data[:length].decode()
    except UnicodeDecodeError:
        return False
    return True


def _unfinished_end(pieces: TokenPieces, prompt: Sequence[int]) -> bytes:
    """Returns the bytes of a character that a prompt begins and does not complete."""
    tail = b""
    for token in reversed(prompt[-MAX_LOOKED_AT:]):
        piece = pieces.piece(token)
        if isinstance(piece, bytes):
            tail = piece + tail
        if len(tail) > 3 or (piece and isinstance(piece, str)):
            break
    return _decode(tail)[1]


class StopStrings:
    """Finds the first stop string in a growing text, and says how much is safe to show."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._searched = 0

    def __bool__(self) -> bool:
        """There is something to look for."""
        return bool(self._stops)

    def find(self, text: str) -> tuple[int, str] | None:
        """Returns the position and the stop string of the earliest match in `text`, or None. `text`
        must only grow from call to call."""
        # A stop string may have begun in the text that was searched before.
        start = max(0, self._searched - self._longest + 1)
        self._searched = len(text)
        matches = [(text.find(stop, start), stop) for stop in self._stops]
        return min((m for m in matches if m[0] >= 0), default=None)

    def safe_length(self, text: str) -> int:
        """Returns how many characters of `text` can be shown: its end may be the beginning of a
        stop string."""
        for begin in range(max(0, len(text) - self._longest), len(text)):
            if text[begin] in self._first_characters:
                tail = text[begin:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return begin
        return len(text)
