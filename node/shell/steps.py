"""The steps that a node has started on its device, how long they take, and what becomes of those
that fail. Pure but for its runner and its clock; knows no torch.

`Runner.start` may return before the device is done. Then the next step is started before the
tokens of this one are known, so that the device never waits for what is decided in between. It is
planned no earlier than it needs to be: a prompt that comes while a long step runs is in the next.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.batches.sequence import Sampled, Slice
from engine.batches.step import OnLayer, Step
from engine.errors import DeviceBroken, RequestFailed
from node.load.rates import Rates
from node.metrics.table import STEP_SECONDS
from node.shell.runner import Runner
from protocol.messages import FailureKind, StepKind
from protocol.telemetry.metric import Histogram

log = logging.getLogger(__name__)

KNOWN_SHARE = 0.7
"""A step is taken to last for this share of the time that the rates tell at least."""


@dataclass(frozen=True)
class StepOutcome:
    """What became of a step: what was sampled, and which slices failed."""

    sampled: list[Sampled | None]
    """What was sampled for each slice that did not fail."""
    failed: frozenset[int] = frozenset()
    """The positions of the slices that failed."""
    reason: str = ""
    """The error of the last one of them."""
    kind: FailureKind = "node"
    """"request": each of them failed for what its request asks for, so no other node can help."""

    @classmethod
    def of(cls, sampled: Sequence[Sampled | None]) -> StepOutcome:
        """Returns the outcome of a step that was computed: slices without a token have failed."""
        errors = {i: one.error for i, one in enumerate(sampled) if one is not None and one.error}
        kept = [one for i, one in enumerate(sampled) if i not in errors]
        return cls(kept, frozenset(errors), next(reversed(errors.values()), ""))


@dataclass(frozen=True, eq=False)
class StartedStep:
    """A step that is not settled yet."""

    slices: Sequence[Slice]
    began: float
    step: Step | None
    """The step as the runner returned it; None if it could not be started."""


class Steps:
    """Starts steps and settles them in the same order. Every call raises DeviceBroken when a new
    process is needed."""

    def __init__(self, runner: Runner, clock: Callable[[], float]) -> None:
        """`clock` gives monotonic seconds."""
        self.rates = Rates()
        self.step_times: dict[StepKind, Histogram] = {
            kind: Histogram.empty(STEP_SECONDS) for kind in ("prompt", "decode")
        }
        self.busy_s = 0.0
        """Time spent in steps, failed ones included."""
        self._runner = runner
        self._clock = clock
        self._started: deque[StartedStep] = deque()
        self._before: Step | None = None
        """The step that was settled last; None if it failed."""
        self._ended = 0.0
        self._launch_s = 0.0
        """How long it took to start the last step."""
        self._ended_sequences: set[int] = set()
        """Sequences that the runner is to forget when no started step has a slice of them."""

    def __len__(self) -> int:
        return len(self._started)

    @property
    def may_stay(self) -> bool:
        """True if one step is started, and the next one may be started before that one is
        settled."""
        return (
            self._runner.runs_ahead
            and len(self._started) == 1
            and self._started[0].step is not None
        )

    def spare_s(self, now: float) -> float:
        """Returns for how long the next step may wait to be planned, so that it takes in what comes
        meanwhile, and still be started before the device is done with the one under way; 0 without
        a chunk of a prompt in that."""
        if not self.may_stay:
            return 0.0
        oldest = self._started[0]
        lengths = [len(part.token_ids) for part in oldest.slices]
        num_prompt_tokens = sum(length for length in lengths if length > 1)
        rates = self.rates.read()
        if not num_prompt_tokens or not rates.prefill_tokens_per_s:
            return 0.0
        seconds = num_prompt_tokens / rates.prefill_tokens_per_s
        if 1 in lengths:
            seconds += rates.step_s
        began = max(oldest.began, self._ended)
        return max(0.0, began + KNOWN_SHARE * seconds - self._launch_s - now)

    def start(self, slices: Sequence[Slice], on_layer: OnLayer) -> bool:
        """Starts a step. Returns False if that failed; `settle` then computes it in another way."""
        # Slices that follow an unread token take it from the samples of this step.
        before = self._started[-1].step if self._started else self._before
        began, step = self._clock(), None
        try:
            step = self._runner.start(slices, on_layer, before)
        except DeviceBroken:
            raise
        except RequestFailed as error:
            log.info("a step of %d sequences is computed in parts: %s", len(slices), error)
        except Exception:
            log.exception("a step of %d sequences failed", len(slices))
        self._started.append(StartedStep(slices, began, step))
        self._launch_s = self._clock() - began
        return step is not None

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copies pages behind the started steps, and before those that are not started yet. A step
        that is computed once more finds the copies: nothing but that step writes into them."""
        self._runner.copy_pages(sources, destinations)

    def settle(self) -> StepOutcome:
        """Waits until the oldest step is over, and returns what became of it."""
        oldest = self._started[0]
        sampled = self._sampled(oldest)
        outcome = (
            StepOutcome.of(sampled) if sampled is not None else self._one_by_one(oldest.slices)
        )
        self._started.popleft()
        self._before = oldest.step
        # A step that was started ahead has waited for the one before it; that time is not its own.
        began, self._ended = max(oldest.began, self._ended), self._clock()
        self.busy_s += self._ended - began
        has_prompt = any(len(part.token_ids) > 1 for part in oldest.slices)
        times = self.step_times["prompt" if has_prompt else "decode"]
        times.observe(STEP_SECONDS, self._ended - began)
        if sampled is not None and oldest.step is not None and not oldest.step.has_compiled:
            self.rates.observe(oldest.slices, self._ended - began)
        self._forget_ended()
        return outcome

    def end_sequence(self, sequence_id: int) -> None:
        """Lets the runner forget a sequence as soon as no started step has a slice of it. The
        sequence's pages may be given to others at once."""
        self._ended_sequences.add(sequence_id)
        self._forget_ended()

    def _sampled(self, oldest: StartedStep) -> list[Sampled | None] | None:
        """Waits for the device and returns what was sampled; None if the step failed."""
        if oldest.step is None:
            return None
        try:
            return oldest.step.sampled()
        except DeviceBroken:
            raise
        except Exception:
            log.exception("the tokens of %d sequences are lost", len(oldest.slices))
            return None

    def _one_by_one(self, slices: Sequence[Slice]) -> StepOutcome:
        """Computes a failed step again, each sequence alone, so that an error costs only the
        sequence that made it. Computing a token's KV twice changes nothing, nor does giving a token
        to the state of its sequence twice. Sequences that ended meanwhile are left out: another one
        may have their pages."""
        sampled: list[Sampled | None] = []
        failed: set[int] = set()
        reason = ""
        kind: FailureKind = "request"
        for position, part in enumerate(slices):
            if part.sequence_id in self._ended_sequences:
                sampled.append(None)
                continue
            try:
                (one,) = self._runner.start([part], None, self._before).sampled()
            except DeviceBroken:
                raise
            except RequestFailed as error:
                failed.add(position)
                reason = str(error)
            except Exception as error:
                failed.add(position)
                reason, kind = type(error).__name__, "node"
            else:
                if one is not None and one.error:
                    failed.add(position)
                    reason, kind = one.error, "node"
                else:
                    sampled.append(one)
        return StepOutcome(sampled, frozenset(failed), reason, kind)

    def _forget_ended(self) -> None:
        if not self._ended_sequences:
            return
        started = {part.sequence_id for step in self._started for part in step.slices}
        for sequence_id in sorted(self._ended_sequences - started):
            self._runner.end_sequence(sequence_id)
        self._ended_sequences &= started
