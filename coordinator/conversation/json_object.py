"""`JsonObject`: checks one JSON object while its text grows. Pure.

It knows where the members of the object begin and end, and keeps no values.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MAX_DEPTH = 100
"""Objects and lists inside each other; deeper ones are taken for no JSON."""
MAX_SCALAR = 1000
"""Characters of a number."""
SPACE = re.compile(r"[ \t\n\r]*")
CHARACTERS = re.compile(r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
"""What a string may have between its quotes."""
ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
SCALAR_CHARACTERS = re.compile(r"[-+.0-9A-Za-z]*")


@dataclass
class Member:
    """A member of the object; its value is at [begin, end) of the text."""

    key: str
    begin: int = -1
    """-1: the value has not begun."""
    end: int = -1
    """-1: the value has not ended."""


class JsonObject:
    """Reads an object from a text that grows at its end. Places are places in that text."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        """Those of the object itself, not those of objects in it."""
        self.is_whole = False
        self.is_wrong = False
        """What follows the last place is nothing that an object can have there."""
        self._open: list[str] = []
        """The brackets that would end what is open."""
        self._expected = "object"
        self._is_key = False
        self._string_begin = 0

    def scan(self, text: str, place: int) -> int:
        """Reads on from `place`, where the last call ended. Returns the place behind all that
        certainly belongs to the object."""
        while not self.is_whole and not self.is_wrong:
            if self._expected != "string":
                match = SPACE.match(text, place)
                place = match.end() if match else place
            if place == len(text):
                break
            before, expected = place, self._expected
            place = self._string(text, place) if expected == "string" else self._part(text, place)
            if place == before and expected == self._expected:
                break  # what is there may go on, or it is wrong
        return place

    def _part(self, text: str, place: int) -> int:
        character, expected = text[place], self._expected
        if expected.startswith("value"):
            if expected == "value or ]" and character == "]":
                return self._close(place)
            return self._value(text, place)
        if expected == "object" and character == "{":
            return self._value(text, place)
        if expected in ("key", "key or }") and character == '"':
            self._is_key = True
            return self._begin_string(place)
        if expected == "key or }" and character == "}":
            return self._close(place)
        if expected == ":" and character == ":":
            self._expected = "value"
            return place + 1
        if expected == "comma" and character == ",":
            self._expected = "key" if self._open[-1] == "}" else "value"
            return place + 1
        if expected == "comma" and character == self._open[-1]:
            return self._close(place)
        self.is_wrong = True
        return place

    def _value(self, text: str, place: int) -> int:
        character = text[place]
        if len(self._open) == 1 and self.members[-1].begin < 0:
            self.members[-1].begin = place
        if character == '"':
            self._is_key = False
            return self._begin_string(place)
        if character not in "{[":
            return self._scalar(text, place)
        if len(self._open) == MAX_DEPTH:
            self.is_wrong = True
            return place
        self._open.append("}" if character == "{" else "]")
        self._expected = "key or }" if character == "{" else "value or ]"
        return place + 1

    def _begin_string(self, place: int) -> int:
        self._string_begin = place
        self._expected = "string"
        return place + 1

    def _string(self, text: str, place: int) -> int:
        match = CHARACTERS.match(text, place)
        end = match.end() if match else place
        if end == len(text):
            return end
        if text[end] != '"':
            self.is_wrong = ESCAPE_BEGUN.fullmatch(text, end) is None
            return end
        if not self._is_key:
            return self._end_value(end + 1)
        self._expected = ":"
        if len(self._open) == 1:
            self.members.append(Member(json.loads(text[self._string_begin : end + 1])))
        return end + 1

    def _scalar(self, text: str, place: int) -> int:
        """A number may go on with the text to come, so it is taken when its end is seen."""
        match = SCALAR_CHARACTERS.match(text, place)
        end = match.end() if match else place
        if end == len(text) and end - place <= MAX_SCALAR:
            return place
        if end - place > MAX_SCALAR or not SCALAR.fullmatch(text, place, end):
            self.is_wrong = True
            return place
        return self._end_value(end)

    def _close(self, place: int) -> int:
        self._open.pop()
        if not self._open:
            self.is_whole = True
            return place + 1
        return self._end_value(place + 1)

    def _end_value(self, end: int) -> int:
        self._expected = "comma"
        if len(self._open) == 1:
            self.members[-1].end = end
        return end
