"""What `kvrelay stats`, `explain` and `audit` print, from the examples of the API's description."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from coordinator.http.admin import examples
from infra.tables import stats as tables
from infra.tables import waterfall
from infra.tables.stats import show_audit, show_explanation, show_stats, watch_stats
from kvrelay.client import Client
from kvrelay.errors import ClientError


def shown(show: Any, answer: dict[str, Any], width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    show(answer, console)
    return console.export_text()


def test_stats_fit_a_terminal() -> None:
    answer = copy.deepcopy(examples.STATS)
    answer["nodes"]["p0"]["draining"] = True
    answer["nodes"]["p0"]["counters"]["computed_tokens"] = 12_345_678
    text = shown(show_stats, answer)
    row = next(line for line in text.splitlines() if "p0" in line).split()
    assert " ".join(row) == "p0 P drains 412 15488 484 67% 12M 568k 41984 19822 0 8112"
    assert (
        "1204 requests ended: 0 failed, 0 lost their client, 4 were aborted; 31 more were refused"
        in text
    )
    assert "12 run, 3 of these wait for a node" in text
    assert (
        "66.8% of prompt tokens, 84.0% of requests; in the last 5 minutes 66.8% and 84.0%" in text
    )
    assert "15688 unique, 402 duplicates; index 1.7 MB, 2 ms behind; Redis connected" in text
    assert "refused: p7: it speaks protocol 2" in text
    narrow = shown(show_stats, answer, width=80)
    assert all(number in narrow for number in ("15488", "568k", "41984", "8112"))


def test_an_explanation_marks_its_choice() -> None:
    answer = copy.deepcopy(examples.EXPLANATION)
    other = examples.CANDIDATE | {"node": "p1", "chosen": False, "fetch_from": None}
    answer["candidates"]["prefill"] = [examples.CANDIDATE, other]
    text = shown(show_explanation, answer)
    rows = {line.split()[1]: line for line in text.splitlines() if "22.3" in line and "→" in line}
    assert list(rows) == ["p0"] and "12 from d0" in rows["p0"]
    assert text.count("p1") == 2, "its row, and the runner-up"
    assert answer["reason"] in " ".join(text.split()) and answer["runner_up"] in text
    assert "do both" not in text, "an empty table is left out"


def test_an_audit_says_what_differs_and_was_done() -> None:
    node = examples.AUDIT["nodes"]["p0"]
    broken = node | {"clean": False, "missing_in_redis": 7, "repairs": ["mended"]}
    silent = node | {"clean": False, "problem": "no answer"}
    text = shown(show_audit, {"clean": False, "nodes": {"p0": node, "p1": broken, "d0": silent}})
    assert "clean" in text and "differs; mended" in text and "no answer" in text
    assert text.count("7") == 1


def test_watching_outlives_a_coordinator_and_ends_with_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Flaky(Client):
        calls = 0

        def cache_stats(self) -> dict[str, Any]:
            self.calls += 1
            if self.calls == 2:
                raise ClientError("no answer just now")
            if self.calls == 4:
                raise KeyboardInterrupt
            return examples.STATS

    monkeypatch.setattr(tables, "REFRESH_S", 0.0)
    console = Console(width=120, record=True, file=io.StringIO(), force_terminal=True)
    with Flaky("http://127.0.0.1:1") as client:
        with pytest.raises(KeyboardInterrupt):
            watch_stats(client, console)
        assert client.calls == 4
        client.calls = 1
        with pytest.raises(ClientError, match="just now"):
            watch_stats(client, console)
    assert "no answer just now" in console.export_text()


def test_a_timeline_is_a_waterfall_with_a_verdict() -> None:
    text = shown(waterfall.show_timeline, examples.TIMELINE)
    assert "request chat-17: stop, 512 prompt tokens (0 cached), 96 answered, attempts 1" in text
    assert "computing is 12.8 of 18.5 ms to the first token; 912.4 ms in all" in text
    assert "0 to 18.5 ms, then anew to 912.4 ms" in text, "what the bars stand for"
    rows = [line for line in text.splitlines() if "█" in line]
    assert len(rows) == len(examples.TIMELINE["spans"])
    before = [row.index("█") for row in rows[:11]]
    assert before == sorted(before), "each bar begins where the one before it ends, or behind it"
    compute = next(row for row in rows if row.lstrip().startswith("compute"))
    longest = max(row.count("█") for row in rows[:11])
    assert "tokens 512" in compute and compute.count("█") == longest


def test_a_failed_request_says_why_and_a_retry_has_its_number() -> None:
    answer = copy.deepcopy(examples.TIMELINE)
    answer |= {"first_token_ms": None, "outcome": "unavailable", "error": "gave up", "attempts": 2}
    answer["spans"][-2]["attempt"] = 2
    text = shown(waterfall.show_timeline, answer)
    assert "and no token has come" in text and "it failed: gave up" in text
    assert "attempt 2" in text
