"""`ProgramState`: what a program writes to, reads from and forks; `Branches`: its forks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kvrelay.language.execution import Execution, ProgramRun
from kvrelay.language.expressions import (
    CaptureBegin,
    CaptureEnd,
    Expression,
    Gathered,
    LanguageError,
    RoleBegin,
    RoleEnd,
    expression,
)
from kvrelay.language.transcript import Meta, Said

MAX_BRANCHES = 256
MIN_WARM_CHARACTERS = 64
"""A shorter text is about a page, and not worth a request before its branches."""


class ProgramState:
    """The state of a running program. `+=` appends a text or an expression and does not wait;
    reading waits for what is read. An error of the backend is raised by the next reading."""

    def __init__(self, run: ProgramRun, execution: Execution) -> None:
        self._run = run
        self._execution = execution
        self.result: Any = None
        """What the function returned, when the program has ended."""

    def __iadd__(self, value: Expression | str) -> ProgramState:
        self._execution.submit(expression(value))
        return self

    def __getitem__(self, name: str) -> Any:
        """Waits for the variable `name` and returns its value. Raises KeyError if there is none."""
        return self._execution.value(name)

    def __contains__(self, name: str) -> bool:
        return name in self._execution.settled().variables

    def variables(self) -> dict[str, Any]:
        """Waits for everything, and returns all variables."""
        return dict(self._execution.settled().variables)

    def text(self) -> str:
        """Waits for everything, and returns all that was written."""
        return self._execution.settled().ready().text

    def own_text(self) -> str:
        """Waits for everything, and returns what this branch has written since it was forked."""
        return self._execution.settled().text[self._execution.num_inherited :]

    def messages(self) -> tuple[Said, ...]:
        """Waits for everything, and returns what the roles have said."""
        return self._execution.settled().messages

    def meta(self, name: str) -> Meta:
        """Waits for a variable, and returns what the backend told of it: its GeneratedMeta, or the
        Decision of a selection."""
        self._execution.value(name)
        return self._execution.settled().metas[name]

    def text_iter(self, name: str | None = None) -> Iterator[str]:
        """Yields the text piece by piece as it comes: that of a variable, or all of it until the
        program ends. For programs that were started with `start`."""
        return self._execution.pieces(name)

    async def text_async_iter(self, name: str | None = None) -> AsyncIterator[str]:
        """Yields the same pieces without stopping the event loop."""
        pieces = self._execution.pieces(name)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    def wait(self) -> ProgramState:
        """Waits until the program has ended, and returns its state. Raises its error."""
        self._run.wait()
        self._execution.settled()
        return self

    def sync(self) -> None:
        """Waits for everything that was appended."""
        self._execution.settled()

    def fork(self, num_branches: int = 2) -> Branches:
        """Returns branches that go on from here, each by itself and at the same time.

        Their common text is computed once, before they begin, and they share its pages.
        """
        if not 1 <= num_branches <= MAX_BRANCHES:
            raise LanguageError(f"a fork has 1 to {MAX_BRANCHES} branches, not {num_branches}")
        if num_branches > 1:
            self._execution.warm(MIN_WARM_CHARACTERS)
        transcript = self._execution.settled()
        executions = [
            Execution(self._run, transcript, self._execution) for _ in range(num_branches)
        ]
        return Branches(self, [ProgramState(self._run, one) for one in executions])

    def copy(self) -> ProgramState:
        """Returns one branch that goes on from here."""
        return self.fork(1)[0]

    @contextmanager
    def role(self, name: str) -> Iterator[None]:
        """Lets a role say what is appended meanwhile."""
        self._execution.submit(RoleBegin(name))
        yield
        self._execution.submit(RoleEnd())

    def system(self) -> AbstractContextManager[None]:
        """Lets the system say what is appended meanwhile: `with s.system(): …`."""
        return self.role("system")

    def user(self) -> AbstractContextManager[None]:
        """Lets the user say what is appended meanwhile."""
        return self.role("user")

    def assistant(self) -> AbstractContextManager[None]:
        """Lets the assistant say what is appended meanwhile."""
        return self.role("assistant")

    @contextmanager
    def captured(self, name: str) -> Iterator[None]:
        """Makes a variable of all that is appended meanwhile."""
        self._execution.submit(CaptureBegin(name))
        yield
        self._execution.submit(CaptureEnd(name))


class Branches(Sequence[ProgramState]):
    """The branches of a fork."""

    def __init__(self, parent: ProgramState, branches: Sequence[ProgramState]) -> None:
        self._parent = parent
        self._branches = tuple(branches)
        self._inherited = frozenset(parent.variables())

    def __len__(self) -> int:
        return len(self._branches)

    def __getitem__(self, index: Any) -> Any:
        """Returns one branch by its number; or, for a name, the values of a variable, in the order
        of the branches."""
        if isinstance(index, str):
            return [branch[index] for branch in self._branches]
        return self._branches[index]

    def __iadd__(self, value: Expression | str | Callable[[int], Expression | str]) -> Branches:
        """Appends to every branch: the same, or what a function makes of the branch's number."""
        for number, branch in enumerate(self._branches):
            branch += value(number) if callable(value) else value
        return self

    def join(self) -> ProgramState:
        """Waits for all branches, and makes their new variables lists of the state that was forked.
        Returns that state."""
        made = [branch.variables() for branch in self._branches]
        names = dict.fromkeys(name for one in made for name in one if name not in self._inherited)
        for name in names:
            values = [one.get(name) for one in made]
            self._parent += Gathered(name, values)
        return self._parent
