"""`Transcript`: what a program has written so far, as a value, and how expressions extend it. Pure.

An expression either extends the transcript at once, or asks the backend first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvrelay.answers import Generated, GeneratedMeta
from kvrelay.language.backend import Decision
from kvrelay.language.expressions import (
    CaptureBegin,
    CaptureEnd,
    Constant,
    Expression,
    Gathered,
    GeneratedText,
    Immediate,
    LanguageError,
    RoleEnd,
    Selection,
    ToolUse,
)
from kvrelay.language.role_markers import RoleMarkers

Meta = GeneratedMeta | Decision
"""What the backend told of a variable: of a generation, or of a selection."""


@dataclass(frozen=True)
class Said:
    """What a role has said."""

    role: str
    content: str


@dataclass(frozen=True)
class Transcript:
    """All that a program has written, with the variables that it made."""

    text: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    metas: Mapping[str, Meta] = field(default_factory=dict)
    messages: tuple[Said, ...] = ()
    role: str | None = None
    """The role that is speaking."""
    role_begin: int = 0
    """Where in the text its words begin."""
    last_role: str | None = None
    """The role that spoke last."""
    end: str = ""
    """What ends the words of a role, as long as it is not written: it depends on who is next."""
    captures: Mapping[str, int] = field(default_factory=dict)
    """Where texts begin that become variables."""
    num_known: int = 0
    """How many characters of the text the backend has seen, and so has pages of."""

    def extended(self, part: Immediate) -> Transcript:
        """Returns the transcript with an expression that asks nobody."""
        match part:
            case Constant(text):
                ready = self.ready()
                return replace(ready, text=ready.text + text)
            case RoleEnd():
                return self._closed()
            case CaptureBegin(name):
                ready = self.ready()
                return replace(ready, captures={**ready.captures, name: len(ready.text)})
            case CaptureEnd(name):
                return self._bound(name, self.text[self.captures[name] :], None)
            case Gathered(name, value):
                return self._bound(name, value, None)

    def opened(self, role: str, markers: RoleMarkers) -> Transcript:
        """Returns the transcript with the begin of what `role` says. Raises LanguageError."""
        if self.role is not None:
            raise LanguageError(f"{role} cannot begin to speak before {self.role} has ended")
        opening = markers.opening(self.last_role, role)
        if self.last_role is not None and not self.end:  # it is written already
            opening = opening.removeprefix(markers.ends.get(self.last_role, ""))
        text, end = self.text + opening, markers.ends.get(role, "")
        return replace(self, text=text, role=role, role_begin=len(text), end=end)

    def ready(self) -> Transcript:
        """Returns the transcript as it is before text that no role says: the end of the last role's
        words is written."""
        if self.role is not None or not self.end:
            return self
        return replace(self, text=self.text + self.end, end="")

    def written(self, part: GeneratedText, answer: Generated) -> Transcript:
        """Returns the transcript with a generated text. Raises ValueCutOff."""
        text = self.text + answer.text
        extended = replace(self, text=text, num_known=len(text))
        if part.name is None:
            return extended
        return extended._bound(part.name, _value(part, answer.text), answer.meta_info)

    def used(self, part: ToolUse, answer: Generated) -> Transcript:
        """Returns the transcript with the arguments of a tool, which is called with them. Raises
        ValueCutOff, and what the tool raises."""
        extended = self.written(part.arguments, answer)
        arguments = _value(part.arguments, answer.text)
        if isinstance(arguments, str):  # while a program is traced nothing is called
            return extended._bound(part.name, arguments, answer.meta_info)
        named = {name: getattr(arguments, name) for name in arguments.__struct_fields__}
        return extended._bound(part.name, part.function(**named), answer.meta_info)

    def selected(self, part: Selection, decision: Decision) -> Transcript:
        """Returns the transcript with the chosen text."""
        text = self.text + decision.choice
        extended = replace(self, text=text, num_known=len(text))
        if part.name is None:
            return extended
        return extended._bound(part.name, decision.choice, decision)

    def _closed(self) -> Transcript:
        if self.role is None:
            raise LanguageError("no role is speaking that could end")
        said = Said(self.role, self.text[self.role_begin :])
        return replace(self, role=None, last_role=self.role, messages=(*self.messages, said))

    def _bound(self, name: str, value: Any, meta: Meta | None) -> Transcript:
        metas = self.metas if meta is None else {**self.metas, name: meta}
        return replace(self, variables={**self.variables, name: value}, metas=metas)


def _value(part: GeneratedText, text: str) -> Any:
    """Returns the value of a generated text. A text that only stands for one stays what it is."""
    return text if type(text) is not str else part.value_type.value(text)


def variable_of(part: Expression) -> str | None:
    """Returns the variable that an expression makes, if it makes one."""
    match part:
        case GeneratedText() | Selection() | ToolUse() | CaptureEnd() | Gathered():
            return part.name
    return None
