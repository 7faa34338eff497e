"""A node ends what it computes before its container stops, and never holds up the stop."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from infra.containers import leave
from infra.containers.leave import CannotLeave, is_idle
from infra.ports import free_port
from node.metrics import table

GAUGES = '{name}{{node="p0",role="prefill"}} {value}'


def metrics(running: float = 0.0, waiting: float = 0.0, queued: float = 0.0) -> str:
    told = zip(leave.BUSY, (running, waiting, queued), strict=True)
    lines = [GAUGES.format(name=name, value=value) for name, value in told]
    return "\n".join(["# TYPE kvrelay_running_requests gauge", *lines, "other_total 7.0"])


def test_what_is_looked_at_is_told_by_nodes() -> None:
    assert set(leave.BUSY) <= {metric.name for metric in table.METRICS}


@pytest.mark.parametrize("busy", [{"running": 1.0}, {"waiting": 2.0}, {"queued": 300.0}])
def test_a_node_is_idle_when_nothing_is_left(busy: dict[str, float]) -> None:
    assert is_idle(metrics())
    assert not is_idle(metrics(**busy))


def test_a_node_that_does_not_serve_yet_is_not_waited_for() -> None:
    with pytest.raises(CannotLeave, match="does not serve yet"):
        is_idle("kvrelay_node_ready 0.0\n")


def left(looks: Iterable[bool], timeout_s: float) -> tuple[bool, float]:
    """Leaves a node that is idle as `looks` say; whether it ended, and after how many seconds."""
    now, remaining, marks = 0.0, iter(looks), []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def idle() -> bool:
        assert marks, "it is drained before it is waited for"
        return next(remaining, False)

    is_done = leave.leave(lambda: marks.append(now), idle, timeout_s, lambda: now, sleep)
    return is_done, now


def test_it_is_done_when_it_was_idle_for_a_while() -> None:
    quiet = [True] * leave.QUIET_LOOKS
    assert left(quiet, 60) == (True, leave.QUIET_LOOKS * leave.LOOK_EVERY_S)
    assert left([True, True, False, *quiet], 60)[0]
    assert not left([True, True, False, *quiet[1:]], 60)[0], "a new request begins the wait anew"


@pytest.mark.parametrize("timeout_s", [0.0, 1.0, 30.0])
def test_it_waits_no_longer_than_it_may(timeout_s: float) -> None:
    is_done, took_s = left([], timeout_s)
    assert not is_done and took_s <= timeout_s + leave.LOOK_EVERY_S


def test_a_node_that_is_gone_does_not_hold_up_the_stop(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave.main([], {"KVRELAY_HEALTH_PORT": str(free_port())}) == 0
    assert "does not answer" in capsys.readouterr().err
