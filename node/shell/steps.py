"""The steps that a node has under way on its device, how long they take, and what becomes of those
that fail.

`Runner.start` may return before the device is done. Then the next step is started before the
tokens of this one are known, so that the device never waits for what is decided in between.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.model.decoder import OnLayer
from engine.steps.runner import Step
from engine.steps.sequence import Sampled, Slice
from node.core.rates import Rates
from node.shell.runner import Runner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    sampled: list[Sampled | None]
    """For each slice that did not fail."""
    failed: frozenset[int] = frozenset()
    """By position."""
    reason: str = ""
    """Of the last one of them."""


@dataclass(frozen=True, eq=False)
class _UnderWay:
    slices: Sequence[Slice]
    began: float
    step: Step | None
    """None: it could not be started."""


class Steps:
    """Oldest first. Every call raises torch.AcceleratorError when the device is broken: a new
    process is needed."""

    def __init__(self, runner: Runner) -> None:
        self.rates = Rates()
        self.busy_s = 0.0
        """Time spent in steps, failed ones included."""
        self._runner = runner
        self._under_way: deque[_UnderWay] = deque()
        self._before: Step | None = None
        """The one that was over last."""
        self._ended = 0.0

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def may_stay(self) -> bool:
        """One step is under way, and another one may be started before it is over."""
        return (
            self._runner.runs_ahead
            and len(self._under_way) == 1
            and self._under_way[0].step is not None
        )

    def start(self, slices: Sequence[Slice], on_layer: OnLayer) -> bool:
        """False: it failed and will be computed in another way, when the step before it is over."""
        before = self._under_way[-1].step if self._under_way else self._before
        began, step = time.monotonic(), None
        try:
            step = self._runner.start(slices, on_layer, before)
        except torch.AcceleratorError:
            raise
        except Exception:
            log.exception("a step of %d sequences failed", len(slices))
        self._under_way.append(_UnderWay(slices, began, step))
        return step is not None

    def settle(self) -> Outcome:
        """Waits until the oldest step is over."""
        oldest = self._under_way.popleft()
        outcome = self._outcome(oldest)
        self._before = oldest.step
        began, self._ended = max(oldest.began, self._ended), time.monotonic()
        self.busy_s += self._ended - began
        if oldest.step is not None:
            self.rates.observe(oldest.slices, self._ended - began)
        return outcome

    def _outcome(self, oldest: _UnderWay) -> Outcome:
        if oldest.step is not None:
            try:
                return Outcome(oldest.step.sampled())
            except torch.AcceleratorError:
                raise
            except Exception:
                log.exception("the tokens of %d sequences are lost", len(oldest.slices))
        return self._one_by_one(oldest.slices)

    def _one_by_one(self, slices: Sequence[Slice]) -> Outcome:
        """The same step, each sequence alone: an error costs the one that made it, and nobody else
        anything. Computing a token's KV twice changes nothing."""
        sampled: list[Sampled | None] = []
        failed: set[int] = set()
        reason = ""
        for position, part in enumerate(slices):
            try:
                sampled += self._runner.start([part], None, self._before).sampled()
            except torch.AcceleratorError:
                raise
            except Exception as error:
                failed.add(position)
                reason = type(error).__name__
        return Outcome(sampled, frozenset(failed), reason)
