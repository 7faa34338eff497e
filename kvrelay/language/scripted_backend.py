"""`ScriptedBackend`: answers from a table, for tests of programs without a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvrelay.answers import Generated, GeneratedMeta, GenerationEnd
from kvrelay.language.backend import ChoiceScore, Decision, likeliest
from kvrelay.language.expressions import LanguageError
from kvrelay.language.role_markers import RoleMarkers, named_markers


class ScriptedBackend:
    """Answers a prompt with the text of the longest key that it ends with."""

    def __init__(
        self,
        answers: Mapping[str, str],
        logprobs: Mapping[str, float] | None = None,
        chat_template: str = "plain",
    ) -> None:
        """`logprobs` are the mean logprobs of choices; those of others are minus infinity."""
        self._answers = dict(answers)
        self._logprobs = dict(logprobs or {})
        self._markers = named_markers(chat_template)
        self._lock = threading.Lock()
        self.warmed: list[str] = []
        """The texts that were to be computed without an answer."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """The prompts that were answered, with their parameters."""

    def markers(self) -> RoleMarkers:
        """Returns the texts around what roles say."""
        return self._markers

    def warm(self, text: str) -> None:
        """Notes the text."""
        with self._lock:
            self.warmed.append(text)

    def generate(self, prompt: str, params: Mapping[str, Any]) -> Generated:
        """Returns the answer at once. Raises LanguageError if the script has none."""
        with self._lock:
            self.asked.append((prompt, dict(params)))
        return self._generated(self._answer(prompt), is_ended=True)

    def stream(self, prompt: str, params: Mapping[str, Any]) -> Iterator[Generated]:
        """Yields the answer character by character."""
        text = self.generate(prompt, params).text
        for length in range(1, len(text) + 1):
            yield self._generated(text[:length], is_ended=length == len(text))

    def select(self, prefix: str, choices: Sequence[str]) -> Decision:
        """Returns the choice with the greatest of the given logprobs."""
        with self._lock:
            self.asked.append((prefix, {"choices": list(choices)}))
        return likeliest(
            [ChoiceScore(one, self._logprobs.get(one, float("-inf")), 1) for one in choices]
        )

    def _answer(self, prompt: str) -> str:
        keys = [key for key in self._answers if prompt.endswith(key)]
        if not keys:
            raise LanguageError(f"the script has no answer to {prompt[-60:]!r}")
        return self._answers[max(keys, key=len)]

    def _generated(self, text: str, is_ended: bool) -> Generated:
        end = GenerationEnd("stop") if is_ended else None
        return Generated(text=text, meta_info=GeneratedMeta(finish_reason=end))
