"""The parser of the command line: sentences for what it cannot read, and SGLang's flags."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from infra.command.foreign_flags import ForeignFlag, GivenFlag

FOREIGN = "foreign"
"""The attribute of the parsed arguments that has the flags of SGLang, as `GivenFlag`s."""


class CommandParser(argparse.ArgumentParser):
    """A parser that ends with one sentence, and exit code 2, where it cannot read something."""

    def error(self, message: str) -> NoReturn:
        """Prints the sentence and exits."""
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` lists what there is\n")


class _Collect(argparse.Action):
    """Keeps a flag of SGLang with its values, for `foreign_flags.heed`."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        self.flag: ForeignFlag = kwargs.pop("flag")
        super().__init__(option_strings, dest, **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        texts = (values,) if isinstance(values, str) else tuple(values or ())
        given = GivenFlag(self.flag, option_string or self.option_strings[0], texts)
        setattr(namespace, FOREIGN, [*getattr(namespace, FOREIGN, ()), given])


def add_foreign_flags(parser: argparse.ArgumentParser, flags: Sequence[ForeignFlag]) -> None:
    """Has `parser` read flags of SGLang, except for names that are flags of ours. Its help does not
    list them."""
    ours = flags_known_to(parser)
    nargs: dict[str, int | str | None] = {"nothing": 0, "value": None, "values": "*"}
    for flag in flags:
        names = ["--" + name for name in flag.names if "--" + name not in ours]
        if names:
            parser.add_argument(
                *names,
                action=_Collect,
                flag=flag,
                dest=FOREIGN,
                nargs=nargs[flag.takes],
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )


def flags_known_to(parser: argparse.ArgumentParser) -> set[str]:
    """Returns every flag that `parser` reads, with its dashes."""
    return {name for name in parser._option_string_actions if name.startswith("--")}


def explain_unknown(
    unknown: Sequence[str], known: set[str], elsewhere: Sequence[tuple[str, set[str]]]
) -> str:
    """Returns a sentence on the first argument that a command does not know, with the flag that may
    have been meant. `elsewhere` has the flags of the other commands, by their names."""
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if not flags:
        return f"unexpected argument {unknown[0]!r}"
    flag = flags[0]
    if owners := [command for command, theirs in elsewhere if flag in theirs]:
        return f"{flag} is a flag of {', '.join(owners)}, not of this command"
    close = difflib.get_close_matches(flag, sorted(known), n=1, cutoff=0.7)
    return f"there is no flag {flag}" + (f" (did you mean {close[0]}?)" if close else "")
