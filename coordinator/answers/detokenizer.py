"""Streaming detokenisation that never emits half a character, and stop strings.

A byte-level token may be part of a character, and some tokenizers change a token's text by its
neighbours. So the new text is the difference of two decodings of a short window (the method of
Hugging Face's text-generation-inference), held back while it ends in a broken character. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.answers.request import DecodeFunction

BROKEN = "\N{REPLACEMENT CHARACTER}"
MAX_HELD_TOKENS = 16
"""A character has at most 4 bytes; what is broken for longer is really no UTF-8."""

MAX_CONTEXT_TOKENS = 5


class Detokenizer:
    """Makes the text of one answer out of its tokens, one by one.

    `prompt` are token ids, of which the last MAX_CONTEXT_TOKENS serve as context of the first
    token: a tokenizer that drops the space at the beginning of a text would else drop it between
    prompt and answer too.
    """

    def __init__(self, decode: DecodeFunction, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(prompt[-MAX_CONTEXT_TOKENS:])
        self._window_start = 0
        """First token of the decoded window: context for the new ones."""
        self._emitted_end = len(self._ids)
        """Tokens before this one have their text in `text`."""
        self.text = ""

    def push(self, token_id: int) -> None:
        """Adds a token, and to `text` whatever characters are complete now."""
        self._ids.append(token_id)
        self._emit(final=False)

    def finish(self) -> None:
        """Adds to `text` what was held back, with U+FFFD for bytes that became no character."""
        if self._emitted_end < len(self._ids):
            self._emit(final=True)

    def _emit(self, final: bool) -> None:
        # What the new tokens add is the difference of two texts that begin with the same context:
        # some tokenizers change a token's text by its neighbours.
        known = self._decode(self._ids[self._window_start : self._emitted_end])
        window = self._decode(self._ids[self._window_start :])
        new = window[len(known) :]
        may_hold = not final and len(self._ids) - self._emitted_end < MAX_HELD_TOKENS
        if may_hold and (not new or new.endswith(BROKEN)):
            return
        self.text += new
        self._window_start, self._emitted_end = self._emitted_end, len(self._ids)


class StopStrings:
    """Finds the first stop string in a growing text, and says how much is safe to show."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._searched = 0

    def find(self, text: str) -> tuple[int, str] | None:
        """Returns the position and the stop string of the earliest match in `text`, or None. `text`
        must only grow from call to call."""
        longest = max(map(len, self._stops), default=0)
        # A stop string may have begun in the text that was searched before.
        start = max(0, self._searched - longest + 1)
        self._searched = len(text)
        matches = [(text.find(stop, start), stop) for stop in self._stops]
        return min((m for m in matches if m[0] >= 0), default=None)

    def safe_length(self, text: str) -> int:
        """Returns how many characters of `text` can be shown: its end may be the beginning of a
        stop string."""
        for length in range(min(len(text), max(map(len, self._stops), default=0)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return len(text) - length
        return len(text)
