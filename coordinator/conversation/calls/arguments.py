"""What formats share that write calls, or their arguments, as JSON. Pure."""

from __future__ import annotations

import json

from coordinator.conversation.json_object import JsonObject, Member
from coordinator.conversation.tape import Reading, Tape

ARGUMENTS = ("arguments", "parameters")
KEYS = (*ARGUMENTS, "name", "id", "type")
"""The keys of calls. An object that begins with another one is an answer, no call."""


def read_arguments(tape: Tape, name: str) -> Reading[bool]:
    """Reads the arguments of a call of `name`, an object, and tells the call as they come. Returns
    False where they break off."""
    if (yield from tape.space()) != "{" or not tape.begin_call(name):
        return False
    json_object = JsonObject()
    while True:
        begin = tape.place
        tape.place = json_object.scan(tape.text, begin)
        tape.tell_arguments(tape.text[begin : tape.place])
        if json_object.is_whole:
            return True
        if json_object.is_wrong or not (yield from tape.more()):
            return False


def read_call(tape: Tape) -> Reading[bool]:
    """Reads an object with a name and arguments, and tells the call as soon as both are there.
    Returns False if it is none or breaks off."""
    call = _CallObject(tape)
    while not call.is_over:
        call.read()
        if not call.is_over and not (yield from tape.more()):
            return False
    return call.is_whole


class _CallObject:
    """One object on the tape, and how much of its arguments was told."""

    def __init__(self, tape: Tape) -> None:
        self.is_over = False
        self.is_whole = False
        self._tape = tape
        self._json_object = JsonObject()
        self._arguments: Member | None = None
        """Those of a call that has begun."""
        self._told = 0

    def read(self) -> None:
        """Reads as far as the text goes."""
        tape, json_object = self._tape, self._json_object
        tape.place = json_object.scan(tape.text, tape.place)
        if not self._arguments:
            self._begin()
        if self._arguments:
            end = self._arguments.end if self._arguments.end >= 0 else tape.place
            tape.tell_arguments(tape.text[self._told : end])
            self._told = end
        if json_object.is_whole and not self.is_over:
            self.is_over = True
            self.is_whole = self._arguments is not None or self._begin_without_arguments()
        self.is_over |= json_object.is_wrong

    def _begin(self) -> None:
        """Begins the call once its name and the begin of its arguments are there."""
        members = self._json_object.members
        arguments = next((member for member in members if member.key in ARGUMENTS), None)
        name = self._name()
        self.is_over = any(member.key not in KEYS for member in members) or name == ""
        if self.is_over or not name or not arguments or arguments.begin < 0:
            return
        if self._tape.text[arguments.begin] == "{":
            self.is_over = not self._tape.begin_call(name)
            self._told = arguments.begin
            self._arguments = None if self.is_over else arguments
        elif arguments.end >= 0:
            self.is_over = self._tape.text[arguments.begin : arguments.end] != "null"

    def _begin_without_arguments(self) -> bool:
        name = self._name()
        if not name or not self._tape.begin_call(name):
            return False
        self._tape.tell_arguments("{}")
        return True

    def _name(self) -> str | None:
        """Returns the name; None as long as it is not there, "" if what is there is none."""
        for member in self._json_object.members:
            if member.key == "name" and member.end >= 0:
                name = json.loads(self._tape.text[member.begin : member.end])
                return name if isinstance(name, str) else ""
        return None
