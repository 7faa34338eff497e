"""How far the weights are is told on a terminal and in the log, not too often."""

from __future__ import annotations

import logging
import sys

import pytest

from node.progress import log_lines, weights_progress


def test_lines_come_each_second_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    show = log_lines(lambda: now)
    with caplog.at_level(logging.INFO):
        for i in range(1, 101):
            now += 0.03
            show(i * 1_000_000, 100_000_000)
    assert [record.getMessage() for record in caplog.records] == [
        "loading weights: 34 % of 100.0 MB",
        "loading weights: 68 % of 100.0 MB",
        "loading weights: 100 % of 100.0 MB",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_for_terminals_alone(
    is_terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with caplog.at_level(logging.INFO), weights_progress() as show:
        show(1_000_000, 2_000_000)
        show(2_000_000, 2_000_000)
    shown = capsys.readouterr().err
    assert ("2.0/2.0 MB" in shown) is is_terminal
    assert bool(caplog.records) is not is_terminal
