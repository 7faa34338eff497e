"""`trace`: finds out what a program will ask before it asks anybody.

The program runs once with placeholders: texts that stand for its arguments and for what the model
will write. They can be put into other texts. Where the program looks at one, to compare it or to go
through it, its way depends on what is not known yet, and tracing stops there. What was written
until then has a constant beginning, which can be computed once for all calls, and branches.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kvrelay.answers import Generated
from kvrelay.language.backend import Backend, Decision
from kvrelay.language.execution import Execution, ProgramRun, RunTooLong
from kvrelay.language.role_markers import RoleMarkers
from kvrelay.language.state import ProgramState
from kvrelay.language.transcript import Transcript

MAX_EXPRESSIONS = 1000
"""A program that appends more is traced no further."""
MARK = re.compile("31415926535897932384_([0-9]{6})_")
"""How a placeholder looks in a text: a number behind digits that no text has. Neither upper case
nor quotes, JSON or HTML change it, and it is no number itself."""


class StopTracing(BaseException):
    """The program looks at what is not known yet. No program catches this by mistake."""


class Placeholder(str):
    """Stands for a text that is not known yet."""

    def __new__(cls, number: int) -> Placeholder:
        return super().__new__(cls, f"31415926535897932384_{number:06d}_")

    def _stop(self, *_: Any) -> NoReturn:
        raise StopTracing("the way of the program depends on an argument or on generated text")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _stop
    __len__ = __bool__ = __iter__ = __contains__ = __getitem__ = _stop
    __int__ = __float__ = __index__ = __hash__ = __call__ = _stop


@dataclass(frozen=True)
class TracedBranch:
    """One branch of a program."""

    parent: int | None
    """The number of the branch that it was forked from; None for the program itself."""
    makes: tuple[str, ...]
    """The variables that it makes."""
    needs: frozenset[str]
    """The variables of other branches that its own text has."""


@dataclass(frozen=True)
class Trace:
    """What is known of a program before it runs."""

    prefix: str
    """The beginning of its text that is the same in every run."""
    branches: tuple[TracedBranch, ...]
    """The program itself, and its forks in the order in which they were made."""
    stopped_because: str = ""
    """Why there may be more to know; "" if the program was traced to its end."""

    def independent(self) -> list[tuple[int, ...]]:
        """Returns groups of branches that can run side by side: forks of the same branch that need
        nothing of each other."""
        groups: list[tuple[int, ...]] = []
        for parent in range(len(self.branches)):
            forks = [n for n, branch in enumerate(self.branches) if branch.parent == parent]
            made = {name for n in forks for name in self.branches[n].makes}
            alone = tuple(n for n in forks if not self.branches[n].needs & made)
            if len(alone) > 1:
                groups.append(alone)
        return groups


class _TracingBackend:
    """Answers every question with a placeholder."""

    def __init__(self, markers: Callable[[], RoleMarkers]) -> None:
        self._numbers = itertools.count()
        self._markers = markers

    def placeholder(self) -> Placeholder:
        return Placeholder(next(self._numbers))

    def markers(self) -> RoleMarkers:
        return self._markers()

    def warm(self, text: str) -> None:
        """There is nothing to compute."""

    def generate(self, prompt: str, params: Mapping[str, Any]) -> Generated:
        return Generated(text=self.placeholder())

    def stream(self, prompt: str, params: Mapping[str, Any]) -> Iterator[Generated]:
        yield self.generate(prompt, params)

    def select(self, prefix: str, choices: Sequence[str]) -> Decision:
        return Decision(self.placeholder())


def trace(
    body: Callable[..., Any], known: Mapping[str, Any], markers: Callable[[], RoleMarkers]
) -> Trace:
    """Traces the function of a program. `known` are the arguments that are known already; `markers`
    are asked for if the program has roles."""
    backend: Backend = (tracer := _TracingBackend(markers))
    run = ProgramRun(backend, max_expressions=MAX_EXPRESSIONS)
    state = ProgramState(run, Execution(run, Transcript()))
    reason = ""
    try:
        body(state, **_arguments(body, known, tracer.placeholder))
    except StopTracing as stop:
        reason = str(stop)
    except RunTooLong:
        reason = f"it appends more than {MAX_EXPRESSIONS} expressions"
    except Exception as error:  # a placeholder is not what the program takes it for
        reason = f"with a placeholder it raises {type(error).__name__}: {error}"
    finally:
        run.abandon()
    transcripts = [execution.so_far() for execution in run.executions]
    prefix, *_ = MARK.split(transcripts[0].text, maxsplit=1)
    return Trace(prefix, _branches(run.executions, transcripts), reason)


def _arguments(
    body: Callable[..., Any], known: Mapping[str, Any], placeholder: Callable[[], Placeholder]
) -> dict[str, Any]:
    """Returns an argument for each parameter behind the state."""
    arguments = dict(known)
    for parameter in list(inspect.signature(body).parameters.values())[1:]:
        has_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if has_name and parameter.name not in known and parameter.default is parameter.empty:
            arguments[parameter.name] = placeholder()
    return arguments


def _branches(
    executions: Sequence[Execution], transcripts: Sequence[Transcript]
) -> tuple[TracedBranch, ...]:
    """Returns the branches, with what each has of the others."""
    numbers = {id(execution): number for number, execution in enumerate(executions)}
    inherited = [
        transcripts[numbers[id(one.parent)]].variables if one.parent else {} for one in executions
    ]
    made = [
        {name: value for name, value in transcript.variables.items() if name not in before}
        for transcript, before in zip(transcripts, inherited, strict=True)
    ]
    names = {
        mark: name
        for variables in made
        for name, value in variables.items()
        for mark in MARK.findall(str.__str__(value) if isinstance(value, str) else "")
    }
    branches = []
    for number, (execution, transcript) in enumerate(zip(executions, transcripts, strict=True)):
        marks = MARK.findall(transcript.text[execution.num_inherited :])
        needs = {names[mark] for mark in marks if mark in names} - made[number].keys()
        parent = numbers[id(execution.parent)] if execution.parent else None
        branches.append(TracedBranch(parent, tuple(made[number]), frozenset(needs)))
    return tuple(branches)
