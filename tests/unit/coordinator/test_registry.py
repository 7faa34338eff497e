"""Joining, leaving, restarting and falling silent."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.routing.registry import OTHER_WEIGHTS, REPLACED_FOR_S, Registry
from protocol.ids import Node
from protocol.layout import FP8
from protocol.trust.versions import OURS, Versions
from tests.support.coordinator.nodes import LAYOUT, LEASE_S, heartbeat

OLD, NEW = Node("d0", 1), Node("d0", 2)


def test_a_silent_node_is_lost_after_its_lease() -> None:
    registry = Registry()
    registry.heartbeat(heartbeat("decode", OLD), now=10.0)
    assert registry.expire(10.0 + LEASE_S - 0.1) == []
    registry.heartbeat(heartbeat("decode", OLD), now=12.0)
    assert registry.expire(12.0 + LEASE_S - 0.1) == []
    assert [info.node for info in registry.expire(12.0 + LEASE_S)] == [OLD]
    assert registry.live() == []


def test_a_restart_replaces_the_older_life_and_never_the_other_way_round() -> None:
    registry = Registry()
    assert registry.heartbeat(heartbeat("decode", OLD), 0.0) is None
    replaced = registry.heartbeat(heartbeat("decode", NEW), 0.0)
    assert replaced is not None and replaced.node == OLD
    assert registry.heartbeat(heartbeat("decode", OLD), 0.0) is None
    assert [live.node for live in registry.live()] == [NEW]
    assert registry.remove(OLD) is None
    assert registry.remove(NEW) is not None


def test_an_older_life_that_was_stopped_is_not_taken_when_the_newer_one_is_lost() -> None:
    """It is after a while: the clock that its number comes from may be behind."""
    registry = Registry()
    registry.heartbeat(heartbeat("decode", NEW), 0.0)
    assert registry.expire(LEASE_S)
    registry.heartbeat(heartbeat("decode", OLD), LEASE_S + 1.0)
    assert registry.live() == []
    registry.expire(REPLACED_FOR_S)
    registry.heartbeat(heartbeat("decode", OLD), REPLACED_FOR_S)
    assert [live.node for live in registry.live()] == [OLD]


def test_sequences_are_as_long_as_every_node_serves() -> None:
    registry = Registry()
    assert registry.context_length(100) == 100
    registry.heartbeat(heartbeat("decode", NEW), 0.0)
    assert registry.context_length(100) == 100, "0: the model's own limit"
    registry.heartbeat(heartbeat("prefill", Node("p0", 1), context_length=30), 0.0)
    registry.heartbeat(heartbeat("prefill", Node("p1", 1), context_length=200), 0.0)
    assert registry.context_length(100) == 30
    registry.remove(Node("p0", 1))
    assert registry.context_length(100) == 100


def test_a_node_of_another_model_or_layout_is_ignored() -> None:
    registry = Registry()
    registry.heartbeat(heartbeat("decode", OLD), 0.0)
    other_layout = LAYOUT.__class__(
        num_layers=3, page_size=16, num_kv_heads=2, head_dim=16, dtype="float32"
    )
    registry.heartbeat(heartbeat("prefill", Node("p0", 1), model_fingerprint="other"), 0.0)
    registry.heartbeat(heartbeat("prefill", Node("p1", 1), layout=other_layout), 0.0)
    assert [live.node for live in registry.live()] == [OLD]
    assert OTHER_WEIGHTS in registry.refused["p0"].why and "layers" in registry.refused["p1"].why
    registry.remove(Node("p0", 1))
    registry.expire(now=LEASE_S)
    assert not registry.refused, "one said goodbye, and the other is not heard any more"


def test_a_node_of_a_version_that_is_not_spoken_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry, later = Registry(), Versions(OURS.newest + 2, OURS.newest + 1)
    for now in range(3):
        registry.heartbeat(heartbeat("decode", NEW, versions=later), float(now))
    assert not registry.live() and registry.model is None
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert registry.refused[NEW.name].why in line and "upgrade this process" in line
    newer = Node(NEW.name, NEW.incarnation + 1)
    registry.heartbeat(heartbeat("decode", newer, versions=OURS), 3.0)
    assert [live.node for live in registry.live()] == [newer] and not registry.refused


def test_nodes_of_another_kv_cache_dtype_are_ignored_and_told_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = Registry()
    registry.heartbeat(heartbeat("decode", OLD), 0.0)
    rounded = msgspec.structs.replace(LAYOUT, dtype=FP8, scales="token")
    registry.heartbeat(heartbeat("prefill", Node("p0", 1), layout=rounded), 0.0)
    assert [live.node for live in registry.live()] == [OLD]
    assert f"dtype {LAYOUT.dtype} here, {FP8} there, scales none here, token" in caplog.text


def test_a_cluster_may_change_its_model_when_all_nodes_are_gone() -> None:
    registry = Registry()
    registry.heartbeat(heartbeat("decode", OLD), 0.0)
    registry.heartbeat(heartbeat("decode", NEW, model_fingerprint="other"), 0.0)
    assert registry.model is not None
    assert registry.model.fingerprint == "other"


def test_live_by_role_in_order_of_names() -> None:
    registry = Registry()
    for name in ("d1", "d0"):
        registry.heartbeat(heartbeat("decode", Node(name, 1)), 0.0)
    registry.heartbeat(heartbeat("prefill", Node("p0", 1)), 0.0)
    assert [live.node.name for live in registry.live("decode")] == ["d0", "d1"]
    assert [live.node.name for live in registry.live()] == ["d0", "d1", "p0"]
