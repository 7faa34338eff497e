"""`ForeignFlag`: a flag that SGLang has and kvrelay has not, and what becomes of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from protocol.config import ConfigError

Treatment = Literal["always", "ignored", "translated", "refused"]
Takes = Literal["nothing", "value", "values"]

SAME_AS = "@"
"""Begins the name of a setting in the place of a neutral value: the value of that setting."""


@dataclass(frozen=True)
class ForeignFlag:
    """One flag of SGLang.

    "always": what it asks for happens anyway, and nobody is told. "ignored": it changes no answer
    and has no effect here, which one line says. "translated": it becomes a setting of ours.
    "refused": kvrelay cannot do what it asks for, and does not start.
    """

    names: tuple[str, ...]
    treatment: Treatment
    takes: Takes
    note: str
    """Half a sentence: why, and what to use instead. For "translated": our setting and its value,
    in which {} stands for the value that was given."""
    neutral: tuple[str, ...] = ()
    """Values that ask for what happens anyway. They are accepted without a word."""


@dataclass(frozen=True)
class GivenFlag:
    """A flag of SGLang on a command line."""

    flag: ForeignFlag
    name: str
    """With its dashes, as it was written."""
    values: tuple[str, ...]


@dataclass(frozen=True)
class Heeded:
    """What the flags of SGLang on a command line come to."""

    settings: Mapping[str, str]
    """Settings of ours, by their field names."""
    notes: tuple[str, ...]
    """A sentence for each flag that has no effect."""


def flags_of(treatment: Treatment, note: str, specification: str) -> Iterator[ForeignFlag]:
    """Yields the flags of a row of the table. Words of `specification` are flags: `name` takes
    nothing, `name=` a value, `name=1|2` a value of which these are neutral, `name=*` several
    values; `a,b=` is one flag of two names."""
    for word in specification.split():
        names, is_valued, neutral = word.partition("=")
        takes: Takes = "nothing"
        if is_valued:
            takes = "values" if neutral == "*" else "value"
        values = tuple(neutral.split("|")) if neutral not in ("", "*") else ()
        yield ForeignFlag(tuple(names.split(",")), treatment, takes, note, values)


def heed(given: Sequence[GivenFlag], settings: Mapping[str, str]) -> Heeded:
    """Returns what `given` comes to, beside our own `settings` of the same command line. Raises
    ConfigError for a flag that is refused, or contradicts one of ours."""
    translated: dict[str, str] = {}
    notes: list[str] = []
    for one in given:
        if one.flag.treatment == "always" or _is_neutral(one, settings):
            continue
        shown = " ".join((one.name, *one.values))
        if one.flag.treatment == "refused":
            raise ConfigError(f"{shown} is refused: {one.flag.note}")
        if one.flag.treatment == "ignored":
            notes.append(f"{shown} has no effect: {one.flag.note}")
            continue
        setting, _, value = one.flag.note.partition(" ")
        value = value.format(*one.values)
        if settings.get(setting, value) != value:
            ours = f"--{setting.replace('_', '-')} {settings[setting]}"
            raise ConfigError(f"{shown} contradicts {ours}; leave one of them out")
        translated[setting] = value
    return Heeded(translated, tuple(notes))


def _is_neutral(given: GivenFlag, settings: Mapping[str, str]) -> bool:
    """Returns True if the values of a flag ask for what happens anyway."""
    same = [settings.get(v.removeprefix(SAME_AS)) for v in given.flag.neutral if v[0] == SAME_AS]
    accepted = {*given.flag.neutral, *same}
    return bool(given.values) and all(value in accepted for value in given.values)
