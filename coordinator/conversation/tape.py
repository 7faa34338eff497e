"""`Tape`: the text of an answer while it grows, for readers that are written as if it were whole.

A reader is a generator. It yields where it needs more text, and goes on when there is some. So a
format reads as its grammar does, wherever the text is cut. Pure.

What a reader has looked at and not settled is an attempt: it becomes a call, or it is given up and
was text.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from typing import TypeVar

from coordinator.conversation.json_object import SPACE
from coordinator.conversation.message import (
    MessageDelta,
    ReasoningDelta,
    TextDelta,
    Tool,
    ToolArgumentsDelta,
    ToolCallBegun,
    ToolCallBroken,
)

Result = TypeVar("Result")
Reading = Generator[None, None, Result]
WORD = re.compile(r"[\w.:/\-]*")


class Tape:
    """The text that is not settled, the place up to which it was read, and what was found."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.text = ""
        """It begins with the attempt."""
        self.place = 0
        self.tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        self._has_ended = False
        self._deltas: list[MessageDelta] = []
        self._num_calls = 0
        self._has_begun = False

    def add(self, text: str) -> None:
        self.text += text

    def end(self) -> None:
        """From now on no reader waits."""
        self._has_ended = True

    def take_deltas(self) -> Sequence[MessageDelta]:
        """Returns what was found since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def more(self) -> Reading[bool]:
        """Waits for more text. Returns False if there is none to come."""
        if self._has_ended:
            return False
        yield
        return True

    def mark(
        self, marks: Sequence[str], kind: type[TextDelta] | type[ReasoningDelta] = TextDelta
    ) -> Reading[str]:
        """Tells the text before the first of `marks` and takes that mark, which begins the next
        attempt. Returns it; "" if none comes."""
        pattern = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
        while True:
            found = pattern.search(self.text)
            end = found.start() if found else len(self.text) - _num_of_mark(self.text, marks)
            self._tell_text(end, kind)
            if found:
                self.place = len(found[0])
                return found[0]
            if not (yield from self.more()):
                self._tell_text(len(self.text), kind)
                return ""

    def take(self, text: str) -> Reading[bool]:
        """Takes `text` if it comes next; returns whether it did."""
        while not self.text.startswith(text, self.place):
            if not text.startswith(self.text[self.place :]) or not (yield from self.more()):
                return False
        self.place += len(text)
        return True

    def text_to(self, mark: str) -> Reading[str | None]:
        """Takes the text up to `mark`, and that. Returns the text; None if no mark comes."""
        begin = searched = self.place
        while (found := self.text.find(mark, searched)) < 0:
            searched = self.place = max(begin, len(self.text) - len(mark) + 1)
            if not (yield from self.more()):
                self.place = len(self.text)
                return None
        self.place = found + len(mark)
        return self.text[begin:found]

    def take_end(self, marks: Sequence[str]) -> Reading[None]:
        """Takes those of `marks` that come next, in their order, with white space before each."""
        for mark in marks:
            yield from self.space()
            if (yield from self.take(mark)):
                self.skip()
            else:
                self.give_up(0)

    def space(self) -> Reading[str]:
        """Takes white space. Returns the character behind it, which is not taken; "" at the end."""
        return (yield from self._run(SPACE))

    def word(self) -> Reading[str]:
        """Takes what names of tools consist of, as much as there is, and returns it."""
        begin = self.place
        yield from self._run(WORD)
        return self.text[begin : self.place]

    def _run(self, characters: re.Pattern[str]) -> Reading[str]:
        while True:
            match = characters.match(self.text, self.place)
            self.place = match.end() if match else self.place
            if self.place < len(self.text):
                return self.text[self.place]
            if not (yield from self.more()):
                return ""

    def begin_thought(self) -> None:
        """Tells that a thought has begun, be it empty, and takes its mark."""
        self._deltas.append(ReasoningDelta(""))
        self.skip()

    def begin_call(self, name: str) -> bool:
        """Tells that a call has begun. Returns False if there is no tool of the name."""
        if name not in self.tools:
            return False
        self._has_begun = True
        self._deltas.append(ToolCallBegun(self._num_calls, name))
        return True

    def tell_arguments(self, text: str) -> None:
        if text:
            self._deltas.append(ToolArgumentsDelta(self._num_calls, text))

    def settle_call(self) -> None:
        """The attempt was a call, up to the place. The next one begins."""
        self._has_begun = False
        self._num_calls += 1
        self.skip()

    def skip(self) -> None:
        """What was read has been told, or says nothing. The next attempt begins."""
        self.text = self.text[self.place :]
        self.place = 0

    def give_up(self, num_characters: int) -> None:
        """The attempt was no call. Of its beginning, so many characters are text; the rest is to be
        read again. Of a call that has begun all that was read is text."""
        if not self._has_begun:
            self._tell_text(num_characters, TextDelta)
            self.place = 0
            return
        self._deltas.append(ToolCallBroken(self._num_calls, self.text[: self.place]))
        self.settle_call()

    def _tell_text(self, end: int, kind: type[TextDelta] | type[ReasoningDelta]) -> None:
        if end:
            self._deltas.append(kind(self.text[:end]))
            self.text = self.text[end:]


def _num_of_mark(text: str, marks: Sequence[str]) -> int:
    """Returns how many characters at the end of `text` may be the beginning of a mark."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for num_characters in range(min(longest, len(text)), 0, -1):
        end = text[-num_characters:]
        if any(mark.startswith(end) for mark in marks):
            return num_characters
    return 0
