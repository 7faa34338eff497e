"""`Runner`: what computes the steps of a node, as its shell sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.model.decoder import OnLayer
from engine.steps.runner import Step
from engine.steps.sequence import Slice


class Runner(Protocol):
    """`ModelRunner` is one; so are several ranks together."""

    @property
    def runs_ahead(self) -> bool: ...

    def start(
        self,
        slices: Sequence[Slice],
        on_layer: OnLayer | None = None,
        after: Step | None = None,
    ) -> Step: ...
