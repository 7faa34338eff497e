"""What every backend of the generation language has to keep, whoever answers behind it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from kvrelay.language.backend import Backend, Decision

CHOICES = ("Bramo", "Oslen", "a window")


def check_backend(backend: Backend, prompt: str) -> None:
    """`prompt` is a text that the backend can answer."""
    params = {"max_new_tokens": 12, "temperature": 0}
    backend.warm(prompt)
    whole = backend.generate(prompt, params)
    assert whole.text and whole.meta_info.finish_reason is not None
    _check_stream(backend, prompt, whole.text)
    _check_selection(backend.select(prompt, CHOICES), CHOICES)
    _check_selection(backend.select(prompt, CHOICES[1:2]), CHOICES[1:2])
    assert all(isinstance(end, str) for end in backend.markers().ends.values())
    assert backend.markers().opening("user", "assistant")
    with ThreadPoolExecutor(8) as pool:  # threads ask at the same time
        answers = list(pool.map(lambda _: backend.generate(prompt, params).text, range(16)))
    assert answers == [whole.text] * 16


def _check_stream(backend: Backend, prompt: str, text: str) -> None:
    updates = list(backend.stream(prompt, {"max_new_tokens": 12, "temperature": 0}))
    assert updates[-1].text == text
    assert updates[-1].meta_info.finish_reason is not None
    for before, after in pairwise(updates):
        assert after.text.startswith(before.text)
        assert before.meta_info.finish_reason is None


def _check_selection(decision: Decision, choices: tuple[str, ...]) -> None:
    assert tuple(score.choice for score in decision.scores) == choices
    best = max(decision.scores, key=lambda score: score.mean_logprob)
    assert decision.choice == best.choice
    assert all(score.mean_logprob <= 0 and score.num_tokens > 0 for score in decision.scores)
