"""What `kvrelay requests` and `kvrelay top` show, from the examples of the API's description."""

from __future__ import annotations

import copy
import io
import os
import pty
from typing import Any

import pytest
from rich.console import Console, RenderableType

from coordinator.http.admin import examples
from infra.command import live_view
from infra.command.live_view import watch_top
from infra.tables.requests import show_requests
from infra.tables.top import BAR_WIDTH, ClusterSample, top_view
from kvrelay.client import Client
from kvrelay.errors import ClientError


def text_of(view: RenderableType) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def sample(at: float = 0.0, computed: int = 0, requests: int = 0) -> ClusterSample:
    stats, nodes = copy.deepcopy(examples.STATS), copy.deepcopy(examples.NODES)
    stats["cluster"]["requests"] += requests
    nodes[0]["load"]["counters"]["computed_tokens"] += computed
    nodes[0]["load"] |= {"held_pages": 1, "cached_pages": 8192, "step_s": 0.0123}
    return ClusterSample(at, stats, nodes, [])


def test_requests_have_a_row_each() -> None:
    failed = examples.REQUEST | {"rid": "x" * 99, "outcome": "", "error": "no", "state": "ended"}
    waits = examples.REQUEST | {
        "rid": "[red]",
        "outcome": "",
        "state": "waiting",
        "first_token_ms": None,
        "prefill_node": None,
        "decode_node": None,
    }
    console = Console(width=120, record=True, file=io.StringIO())
    show_requests([examples.REQUEST, failed, waits], console)
    rows = console.export_text().splitlines()
    (row,) = (row.split() for row in rows if "912" in row and "stop" in row)
    assert row[1:] == ["stop", "4.2", "512", "0", "96", "18.5", "912", "1", "p0", "→", "d0"]
    assert any("[red]" in row and "waiting" in row for row in rows), "names are no markup"
    assert max(map(len, rows)) <= 120 and any("…" in row for row in rows), "long names are cut"
    show_requests([], console)
    assert "no such request" in console.export_text()


def test_rates_are_those_between_two_samples() -> None:
    text = text_of(top_view(sample(), sample(at=2.0, computed=5_000, requests=3)))
    assert "12 requests run, 3 of these wait; 1.5 end per second" in text
    (row,) = (line.split() for line in text.splitlines() if line.split()[:1] == ["p0"])
    assert row[:8] == ["p0", "P", "2", "0", "0.03", "2500", "0", "0"]
    assert "█" + "▒" * (BAR_WIDTH // 2) + "·" * (BAR_WIDTH // 2 - 1) in text
    assert "no request runs" in text and "p7" in text, "who is refused is seen"


def test_a_node_that_has_begun_anew_has_no_negative_rates() -> None:
    before, now = sample(computed=9_000), sample(at=1.0)
    now.nodes[0]["incarnation"] += 1
    assert "-" not in text_of(top_view(before, now)).split("no request")[0].replace("─", "")
    assert "-9000" not in text_of(top_view(sample(computed=9_000), sample(at=1.0)))


class Answering(Client):
    """A coordinator that answers twice, is then away, and never comes back."""

    calls = 0

    def cache_stats(self) -> dict[str, Any]:
        self.calls += 1
        if self.calls == 3:
            raise ClientError("no answer just now")
        return examples.STATS

    def nodes(self) -> list[dict[str, Any]]:
        return examples.NODES

    def requests(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return []


def test_it_ends_by_a_key_and_leaves_the_terminal_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controller, terminal = pty.openpty()
    console = Console(width=140, file=io.StringIO(), force_terminal=True)
    client = Answering("http://127.0.0.1:1")

    def type_q_after_three_screens(*_: Any) -> Any:
        if client.calls < 4:
            return [], [], []
        os.write(controller, b"q")
        return [terminal], [], []

    with os.fdopen(terminal) as stdin, client:
        monkeypatch.setattr(live_view.sys, "stdin", stdin)
        monkeypatch.setattr(live_view.select, "select", type_q_after_three_screens)
        before = live_view.termios.tcgetattr(stdin)
        watch_top(client, console)
        assert live_view.termios.tcgetattr(stdin) == before
    os.close(controller)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "no answer just now" in shown and "12 requests run" in shown
