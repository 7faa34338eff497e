"""docs/compatibility.md says what the parser really does, and is not stale."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.http.anthropic.keys import MESSAGE_KEYS
from coordinator.http.documents import seen
from coordinator.http.documents.agents_keys import (
    IN_MESSAGES,
    IN_RESPONSES,
    observed_in_messages,
    observed_in_responses,
)
from coordinator.http.documents.compatibility import EXAMPLES, FILE, document, observed
from coordinator.http.documents.openai_keys import EXAMPLES as OPENAI_EXAMPLES
from coordinator.http.documents.openai_keys import observed_in_chats, observed_in_completions
from coordinator.http.native.keys import SAMPLING, TOP_LEVEL, Key
from coordinator.http.openai.keys import CHAT_KEYS, COMPLETION_KEYS
from coordinator.http.responses.keys import RESPONSE_KEYS
from tests.e2e.clients.titles import SECTIONS, title

ROOT = Path(__file__).resolve().parents[4]
KEYS = [(key, False) for key in TOP_LEVEL] + [(key, True) for key in SAMPLING]


@pytest.mark.parametrize(("key", "is_sampling"), KEYS, ids=lambda x: getattr(x, "name", str(x)))
def test_what_is_seen_is_what_the_table_says(key: Key, is_sampling: bool) -> None:
    seen = observed(key, is_sampling)
    if key.treatment in ("supported", "ignored"):
        assert seen == "accepted"
        assert key.treatment == "ignored" or key.name in EXAMPLES, "a value that asks for something"
    else:
        assert seen.startswith("400: ") and key.name in seen


@pytest.mark.parametrize(
    ("key", "observed"),
    [(key, observed_in_chats) for key in CHAT_KEYS]
    + [(key, observed_in_completions) for key in COMPLETION_KEYS],
    ids=lambda x: getattr(x, "name", getattr(x, "__name__", "")),
)
def test_what_is_seen_of_openais_keys_is_what_the_table_says(
    key: Key, observed: Callable[[Key], str]
) -> None:
    seen = observed(key)
    if key.treatment in ("supported", "ignored"):
        assert seen == "accepted"
        assert key.treatment == "ignored" or key.name in OPENAI_EXAMPLES
    else:
        assert seen.startswith("400: ") and key.name in seen


@pytest.mark.parametrize(
    ("key", "observed", "examples"),
    [(key, observed_in_messages, IN_MESSAGES) for key in MESSAGE_KEYS]
    + [(key, observed_in_responses, IN_RESPONSES) for key in RESPONSE_KEYS],
    ids=lambda x: getattr(x, "name", getattr(x, "__name__", "")),
)
def test_what_is_seen_of_agents_keys_is_what_the_table_says(
    key: Key, observed: Callable[[Key], str], examples: dict[str, object]
) -> None:
    seen = observed(key)
    if key.treatment in ("supported", "ignored"):
        assert seen == "accepted"
        assert key.treatment == "ignored" or key.name in examples
    else:
        assert seen.startswith("400: ") and key.name in seen


@pytest.mark.parametrize("module", SECTIONS)
def test_what_was_seen_with_clients_is_not_older_than_the_tests(module: str) -> None:
    """Also of demands that are not met: a mark that was taken away has to be seen again."""
    tests = vars(importlib.import_module(f"tests.e2e.clients.{module}"))
    is_met = {
        title(test): not any(mark.name == "xfail" for mark in getattr(test, "pytestmark", []))
        for name, test in tests.items()
        if name.startswith("test_")
    }
    was_met = {name: outcome == "works" for name, _, outcome in seen.rows(SECTIONS[module])}
    assert was_met == is_met, "run `python -m tests.e2e.clients`"


def test_the_file_is_what_would_be_written_now() -> None:
    written = (ROOT / FILE).read_text(encoding="utf-8")
    assert written == document(), "run `python -m coordinator.http.documents.compatibility`"
