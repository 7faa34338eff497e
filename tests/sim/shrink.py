"""A failing life with as few faults as still make it fail."""

from __future__ import annotations

import dataclasses

from tests.sim.checks import Wrong
from tests.sim.cluster import SimCluster
from tests.sim.life import LifePlan, MakeCluster, live


def failure_of(plan: LifePlan, make: MakeCluster = SimCluster) -> str:
    """Returns what goes wrong in a life; "" if nothing does."""
    try:
        live(plan, make)
    except (Exception, Wrong) as error:  # whatever a process raises is a finding
        return f"{type(error).__name__}: {error}"
    return ""


def shrunk(plan: LifePlan, make: MakeCluster = SimCluster) -> LifePlan:
    """Returns the life with as few faults as it needs: drops one after the other, as long as the
    life still fails in the same way."""
    kind = failure_of(plan, make).partition(":")[0]
    position = 0
    while position < len(plan.faults):
        fewer = plan.faults[:position] + plan.faults[position + 1 :]
        smaller = dataclasses.replace(plan, faults=fewer)
        if failure_of(smaller, make).partition(":")[0] == kind:
            plan = smaller
        else:
            position += 1
    return plan
