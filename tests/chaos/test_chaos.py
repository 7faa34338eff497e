"""Faults are the same for the same seed and leave somebody to answer; what is broken is told; and a
short run keeps every promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS_OF_NODES, KINDS, RETURNS_WITHIN_S, Fault, plan_of
from tests.chaos.questions import questions_of
from tests.chaos.report import Course, Happened, broken_promises, figures
from tests.chaos.run import Plan, run
from tests.chaos.streams import Seen
from tests.support.processes.clusters import save_servable_model

NODES, COORDINATORS = ("p0", "p1", "d0", "d1", "d2"), ("coordinator", "coordinator-2")
RIGHT = (5, 6, 7)


def faults_of(seed: int) -> tuple[Fault, ...]:
    return plan_of(seed, 600.0, 5.0, NODES, COORDINATORS)


def test_a_seed_has_the_same_faults_again() -> None:
    assert faults_of(1) == faults_of(1) != faults_of(2)
    assert questions_of(1, 16) == questions_of(1, 16) != questions_of(2, 16)


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_of_fault_comes_and_a_decode_node_is_left(seed: int) -> None:
    faults = faults_of(seed)
    assert {fault.kind for fault in faults} == set(KINDS)
    for fault in faults:
        away = {
            other.victim
            for other in faults
            if other.at_s <= fault.at_s < other.at_s + other.for_s + RETURNS_WITHIN_S
        }
        assert not away >= {"d0", "d1", "d2"} and not away >= set(COORDINATORS)
        assert fault.kind not in FAULTS_OF_NODES or fault.victim in NODES


def course_of(seen: Sequence[Seen], faults: Sequence[Happened] = (), held_pages: int = 0) -> Course:
    questions = questions_of(0, 8)
    expected, memory = [RIGHT] * len(questions), {"d0": 300.0}
    return Course(questions, expected, seen, faults, (), held_pages, True, memory, memory)


def test_what_is_broken_is_told() -> None:
    good = Seen("greedy", 0, 1.0, 2.0, 0.1, 0.2, 1.5, 1, 0, 0, RIGHT)
    assert broken_promises(course_of([good]), None) == []
    refused = replace(good, tokens=None, error="refused")
    other = replace(good, tokens=(5, 8, 7))
    late = replace(good, worst_gap_s=7.0)
    for wrong, word in ((refused, "refused"), (other, "at token 1"), (late, "99th percentile")):
        (sentence,) = broken_promises(course_of([wrong]), None)
        assert word in sentence
    assert broken_promises(course_of([good], held_pages=3), None) == ["3 pages are still held"]
    assert broken_promises(course_of([other]), lambda *_: True) == [], "a tie is no fault"


def test_what_cannot_be_resumed_may_fail_with_its_coordinator_only() -> None:
    failed = Seen("several answers", 6, 1.0, 2.0, 0.1, 0.2, 1.5, 1, 0, 0, None, "gone")
    during, before = (
        [Happened(Fault(at, "kill coordinator", "coordinator"), at, at + 0.5)] for at in (1.5, 0.1)
    )
    assert broken_promises(course_of([failed], during), None) == []
    assert figures(course_of([failed], during))["failed_with_their_coordinator"] == 1
    assert len(broken_promises(course_of([failed], before), None)) == 1
    resumable = replace(failed, kind="greedy")
    assert len(broken_promises(course_of([resumable], during), None)) == 1


@pytest.mark.verify
def test_a_short_run_keeps_every_promise(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    save_servable_model("llama3", model)
    course = run(Plan(2, 12.0, 8, 2.5, 1.0, is_deterministic=True), model, tmp_path / "logs")
    assert broken_promises(course, None) == []
    assert len(course.seen) > 20 and len(course.faults) + len(course.skipped) == 4
