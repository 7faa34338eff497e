"""`Program`: a function that writes to a state, and the ways to run it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kvrelay.client import Client
from kvrelay.language.backend import Backend
from kvrelay.language.batches import common_arguments, run_all
from kvrelay.language.execution import Execution, ProgramRun
from kvrelay.language.http_backend import HttpBackend
from kvrelay.language.role_markers import named_markers
from kvrelay.language.state import ProgramState
from kvrelay.language.tracing import Trace, trace
from kvrelay.language.transcript import Transcript

Where = Backend | Client
"""Where a program runs: a backend, or a client, which stands for an `HttpBackend` of its own."""


class Program:
    """A function whose first parameter is a `ProgramState`. It runs in Python, as it stands there;
    what it appends to the state is carried out beside it.

    Arguments are given by name or position, as to the function. Called with a state, a program is
    part of another one.
    """

    def __init__(self, body: Callable[..., Any], bound: Mapping[str, Any] | None = None) -> None:
        """`bound` are arguments that are given already."""
        self._body = body
        self._bound = dict(bound or {})
        functools.update_wrapper(self, body)

    def __call__(self, state: ProgramState, *args: Any, **arguments: Any) -> Any:
        return self._body(state, *args, **{**self._bound, **arguments})

    def bind(self, **arguments: Any) -> Program:
        """Returns the program with some of its arguments given."""
        return Program(self._body, {**self._bound, **arguments})

    def run(self, where: Where, /, *args: Any, **arguments: Any) -> ProgramState:
        """Runs the program to its end, all branches included, and returns its state. Raises what
        the function raises, and ClientError."""
        run = ProgramRun(_backend(where))
        state = ProgramState(run, Execution(run, Transcript()))
        try:
            state.result = self(state, *args, **arguments)
            run.end()
        except BaseException:
            run.abandon()
            raise
        return state

    def start(self, where: Where, /, *args: Any, **arguments: Any) -> ProgramState:
        """Starts the program beside the caller, and returns its state at once: `text_iter` of it
        yields the text as it comes, `wait` waits for the end. Errors are raised there."""
        run = ProgramRun(_backend(where), is_streaming=True)
        execution = Execution(run, Transcript())
        state = ProgramState(run, execution)

        def work() -> None:
            try:
                state.result = self(state, *args, **arguments)
                run.end()
            except BaseException as error:  # whoever reads the state raises it
                execution.fail(error)
                run.abandon()

        threading.Thread(target=work, name="kvrelay-program", daemon=True).start()
        return state

    async def run_async(self, where: Where, /, *args: Any, **arguments: Any) -> ProgramState:
        """Runs the program in a thread of its own, and returns its state when it has ended."""
        pool = ThreadPoolExecutor(1, "kvrelay-program")
        call = functools.partial(self.run, where, *args, **arguments)
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, call)
        finally:
            pool.shutdown(wait=False)

    def run_batch(
        self,
        where: Where,
        batch: Sequence[Mapping[str, Any]],
        max_threads: int = 16,
        shows_progress: bool = False,
        warms: bool = True,
    ) -> list[ProgramState]:
        """Runs the program once for each of `batch`, the arguments of a call, at most `max_threads`
        at a time. Returns the states in this order; after an error no call is begun.

        With `warms` the text that all calls begin with is computed before them, once.
        """
        backend = _backend(where)
        if warms and len(batch) > 1:
            self.warm(backend, **common_arguments(batch))
        return run_all(
            lambda arguments: self.run(backend, **arguments), batch, max_threads, shows_progress
        )

    def trace(self, where: Where | None = None, /, **known: Any) -> Trace:
        """Returns what the program asks before it runs, with the arguments that are `known`. The
        function is called with placeholders for the others; nobody is asked. Roles are written as
        by `where`, else plainly."""
        backend = None if where is None else _backend(where)
        markers = backend.markers if backend else functools.partial(named_markers, "plain")
        return trace(self._body, {**self._bound, **known}, markers)

    def warm(self, where: Where, /, **known: Any) -> str:
        """Lets the text be computed that every call begins with that has the arguments `known`.
        Returns it; "" if there is none."""
        backend = _backend(where)
        prefix = self.trace(backend, **known).prefix
        if prefix:
            backend.warm(prefix)
        return prefix


def function(body: Callable[..., Any]) -> Program:
    """Makes a program of a function: `@kvrelay.function`."""
    return Program(body)


def _backend(where: Where) -> Backend:
    return HttpBackend(where) if isinstance(where, Client) else where
