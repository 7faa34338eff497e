"""`Execution`: carries out a program's expressions in order, beside the program itself.

What asks nobody extends the transcript at once. The rest is done by a thread that lives as long as
there is something to do, so that the program goes on, and other branches with it, until it reads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from kvrelay.answers import Generated
from kvrelay.language.backend import Backend
from kvrelay.language.expressions import (
    Expression,
    GeneratedText,
    Immediate,
    LanguageError,
    RoleBegin,
    Selection,
    ToolUse,
)
from kvrelay.language.transcript import Transcript, variable_of

MAX_WAITING = 1000
"""So many expressions may wait for their turn; a program that appends more waits."""


class ProgramRun:
    """What the branches of one run share: the backend, and the news of each other."""

    def __init__(
        self, backend: Backend, is_streaming: bool = False, max_expressions: int | None = None
    ) -> None:
        """`is_streaming` asks for answers as they grow. After `max_expressions` the run ends with
        RunTooLong; None: never."""
        self.backend = backend
        self.is_streaming = is_streaming
        self.news = threading.Condition()
        """Notified whenever anything of the run has changed."""
        self.is_over = False
        """True when the program has come to its end."""
        self.executions: list[Execution] = []
        self._left = max_expressions

    def count(self, num_expressions: int) -> None:
        """Counts expressions that are appended. Raises RunTooLong."""
        if self._left is not None:
            self._left -= num_expressions
            if self._left < 0:
                raise RunTooLong

    def end(self) -> None:
        """Waits until all branches have done what they were to do. Raises the first error."""
        for execution in self.executions:
            execution.settled()
        self.close()

    def abandon(self) -> None:
        """Lets nothing begin that has not begun."""
        for execution in self.executions:
            execution.drop()
        self.close()

    def wait(self) -> None:
        """Waits until the program has come to its end."""
        with self.news:
            while not self.is_over:
                self.news.wait()

    def close(self) -> None:
        """Tells everybody that nothing more will come."""
        with self.news:
            self.is_over = True
            self.news.notify_all()


class RunTooLong(BaseException):
    """A run has appended as many expressions as it may. No program catches this by mistake."""


class Execution:
    """One branch of a run: its transcript, and what waits to extend it."""

    def __init__(
        self, run: ProgramRun, transcript: Transcript, parent: Execution | None = None
    ) -> None:
        self.parent = parent
        """The branch that this one was forked from."""
        self.num_inherited = len(transcript.text)
        """How much of the text it has from there."""
        self._run = run
        self._transcript = transcript
        self._current: Expression | None = None
        """What is being carried out."""
        self._partial = ""
        """What the generation that is being carried out has written."""
        self._texts: dict[str, str] = {}
        """What was written for each variable that was generated."""
        self._waiting: deque[Expression] = deque()
        self._is_busy = False
        self._worker: threading.Thread | None = None
        self._error: BaseException | None = None
        run.executions.append(self)

    def submit(self, expression: Expression) -> None:
        """Appends an expression. Raises the error of one before it."""
        parts = expression.parts()
        self._run.count(len(parts))
        for part in parts:
            self._submit(part)

    def settled(self) -> Transcript:
        """Waits until nothing is left to do, and returns the transcript. Raises the error of an
        expression."""
        return self._wait(lambda: not self._is_busy)

    def value(self, name: str) -> Any:
        """Waits for a variable. Raises KeyError if nothing that was appended makes it."""
        transcript = self._wait(lambda: not self._is_coming(name))
        if name not in transcript.variables:
            known = ", ".join(transcript.variables) or "none"
            raise KeyError(f"no variable {name!r} was made; there are: {known}")
        return transcript.variables[name]

    def so_far(self) -> Transcript:
        """Waits until nothing is left to do, and returns the transcript, whatever went wrong."""
        with self._run.news:
            while self._is_busy:
                self._run.news.wait()
            return self._transcript

    def fail(self, error: BaseException) -> None:
        """Lets everybody who reads see an error, unless there was one before."""
        with self._run.news:
            self._error = self._error or error
            self._run.news.notify_all()

    def drop(self) -> None:
        """Forgets what has not begun."""
        with self._run.news:
            self._waiting.clear()

    def warm(self, min_characters: int) -> None:
        """Lets the backend see the text, if it has not seen at least so much of its end."""
        transcript = self.settled()
        if len(transcript.text) - transcript.num_known >= min_characters:
            self._run.backend.warm(transcript.text)

    def pieces(self, name: str | None) -> Iterator[str]:
        """Yields the text that comes: of one variable, or (None) of all, until the program ends.
        Raises the error of an expression."""
        shown = 0
        while True:
            with self._run.news:
                text, is_done = self._seen(name)
                while len(text) <= shown and not is_done:
                    self._run.news.wait()
                    text, is_done = self._seen(name)
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
            elif self._error is not None:
                raise self._error
            else:
                return

    def _submit(self, part: Expression) -> None:
        news = self._run.news
        with news:
            while len(self._waiting) >= MAX_WAITING and self._error is None:
                news.wait()
            if self._error is not None:
                raise self._error
            if not self._is_busy and isinstance(part, Immediate):
                self._transcript = self._transcript.extended(part)
                news.notify_all()
                return
            self._waiting.append(part)
            if self._is_busy:
                return
            self._is_busy = True
            self._worker = threading.Thread(target=self._work, name="kvrelay-branch", daemon=True)
        self._worker.start()

    def _work(self) -> None:
        """Carries out what waits, until nothing does. Only this thread changes the transcript while
        the execution is busy."""
        news = self._run.news
        while True:
            with news:
                if not self._waiting or self._error is not None:
                    self._is_busy = False
                    self._waiting.clear()
                    news.notify_all()
                    return
                self._current = part = self._waiting.popleft()
            try:
                transcript = self._carried_out(part, self._transcript)
            except BaseException as error:  # whoever reads next raises it
                self.fail(error)
                continue
            with news:  # at once: nobody may see the new text both here and there
                self._transcript = transcript
                self._partial, self._current = "", None
                news.notify_all()

    def _carried_out(self, part: Expression, transcript: Transcript) -> Transcript:
        backend = self._run.backend
        if isinstance(part, GeneratedText | ToolUse | Selection):
            transcript = transcript.ready()
        match part:
            case GeneratedText():
                answer = self._answer(part, transcript.text)
                if part.name is not None:
                    self._texts[part.name] = answer.text
                return transcript.written(part, answer)
            case ToolUse():
                return transcript.used(part, self._answer(part.arguments, transcript.text))
            case Selection():
                return transcript.selected(part, backend.select(transcript.text, part.choices))
            case RoleBegin(role):
                return transcript.opened(role, backend.markers())
        if isinstance(part, Immediate):
            return transcript.extended(part)
        raise LanguageError(f"{part!r:.60} is no expression of this language")

    def _answer(self, part: GeneratedText, prompt: str) -> Generated:
        """Returns the answer to a prompt, and shows it as it grows if the run streams."""
        if not self._run.is_streaming:
            return self._run.backend.generate(prompt, part.params)
        answer = Generated(text="")
        for answer in self._run.backend.stream(prompt, part.params):
            with self._run.news:
                self._partial = answer.text
                self._run.news.notify_all()
        return answer

    def _seen(self, name: str | None) -> tuple[str, bool]:
        """Returns the text so far, of a variable or of all, and whether no more will come."""
        is_over = self._error is not None or (self._run.is_over and not self._is_busy)
        if name is None:
            return self._transcript.text + self._partial, is_over
        if self._current is not None and variable_of(self._current) == name:
            return self._partial, is_over
        if name in self._transcript.variables and not self._is_coming(name):
            return self._texts.get(name, str(self._transcript.variables[name])), True
        return "", is_over

    def _is_coming(self, name: str) -> bool:
        """Returns True if something that is not carried out yet makes the variable `name`."""
        if self._current is not None and variable_of(self._current) == name:
            return True
        return any(variable_of(part) == name for part in self._waiting)

    def _wait(self, condition: Callable[[], bool]) -> Transcript:
        if threading.current_thread() is self._worker:
            raise LanguageError("a tool cannot read from the branch that waits for the tool")
        news = self._run.news
        with news:
            while self._error is None and not condition():
                news.wait()
            if self._error is not None:
                raise self._error
            return self._transcript
