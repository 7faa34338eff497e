"""When requests are sent, if the workload or the user says so (open loop). Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from kvrelay.bench.workloads.dialogue import Dialogue


def at_rate(dialogues: Sequence[Dialogue], rate: float, chance: random.Random) -> list[Dialogue]:
    """Returns the dialogues in their order, as a Poisson process of `rate` a second brings them:
    the gaps between them are independent and exponential."""
    now_s = 0.0
    arriving = []
    for dialogue in dialogues:
        arriving.append(replace(dialogue, arrival_s=now_s))
        now_s += chance.expovariate(rate)
    return arriving


def at_own_times(dialogues: Sequence[Dialogue], speedup: float) -> list[Dialogue]:
    """Returns the dialogues at the times of their workload, the first at once and all `speedup`
    times as fast."""
    times = [dialogue.arrival_s or 0.0 for dialogue in dialogues]
    start_s = min(times, default=0.0)
    return [
        replace(dialogue, arrival_s=(time_s - start_s) / speedup)
        for dialogue, time_s in zip(dialogues, times, strict=True)
    ]
