"""Warms a node up before anybody knows of it: computes each form of step once, and says so."""

from __future__ import annotations

import logging
import time
from itertools import groupby

from engine.batches.step import Step
from engine.errors import DeviceBroken
from engine.steps.warm_up import WarmUpLimits, warm_up_steps
from node.shell.runner import Runner

log = logging.getLogger(__name__)


def warm_up(runner: Runner, limits: WarmUpLimits) -> None:
    """Computes all forms of steps, and copies a page. Raises DeviceBroken.

    A step that fails for another reason is a line in the log: what serving needs of it will fail
    with a sentence to its client.
    """
    began, compiled_before = time.monotonic(), runner.num_compiles
    for topic, group in groupby(warm_up_steps(limits), lambda step: step.topic):
        steps = list(group)
        log.info("warming up: %s, %d steps", topic, len(steps))
        before: Step | None = None
        for step in steps:
            try:
                before = runner.start(step.slices, None, before if step.follows else None)
                before.sampled()
            except DeviceBroken:
                raise
            except Exception as error:
                log.warning("warming up: a step of %s failed: %s", topic, error)
            for part in step.slices:
                runner.end_sequence(part.sequence_id)
    if limits.num_pages > 1:
        runner.copy_pages([0], [1])
    log.info(
        "warm after %.1f s: %d kernels and graphs were compiled or loaded",
        time.monotonic() - began,
        runner.num_compiles - compiled_before,
    )
