"""One run: a cluster, its undisturbed answers, streams and faults at once, and what is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.faults import Fault, plan_of
from tests.chaos.networks import networks_for
from tests.chaos.questions import questions_of
from tests.chaos.report import Course, Happened
from tests.chaos.streams import ask_each, keep_up
from tests.chaos.victims import COORDINATORS, Victims
from tests.support.processes.ready_proxies import haproxy, haproxy_program, tiny_proxy

NUM_QUESTIONS = 64
WARM_UP_S = 4.0


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    seed: int
    seconds: float
    num_streams: int
    every_s: float
    """Seconds from one fault to the next."""
    pause_s: float
    """How long a client pauses between two requests, on average."""
    is_deterministic: bool


def run(plan: Plan, model: Path, directory: Path) -> Course:
    """Runs it. Raises AssertionError if the cluster does not recover."""
    with ExitStack() as stack:
        names = ("p0", "p1", "d0", "d1", "d2")
        networks = networks_for(names)
        if networks is not None:
            stack.callback(networks.close)
        victims = Victims(model, directory, networks, plan.is_deterministic)
        stack.callback(victims.stop)
        if haproxy_program():
            url = stack.enter_context(haproxy(victims.ports, directory))
        else:
            url = stack.enter_context(tiny_proxy(victims.ports))
        questions = questions_of(plan.seed, NUM_QUESTIONS)
        expected = asyncio.run(ask_each(url, questions))
        keep = (plan.num_streams, plan.pause_s, plan.seed)
        asyncio.run(keep_up(url, questions, keep[0], WARM_UP_S, *keep[1:]))
        victims.wait_until_clean()
        warm = victims.resident_mebibytes()
        faults = plan_of(plan.seed, plan.seconds, plan.every_s, names, COORDINATORS)
        skipped = [fault for fault in faults if fault.kind == "cut link" and networks is None]
        # What a thread has started ends with it, so these threads outlive the cluster.
        pool = stack.enter_context(ThreadPoolExecutor(len(faults) + 1))
        stack.callback(victims.stop)
        striking = pool.submit(
            _strike, victims, [fault for fault in faults if fault not in skipped], pool
        )
        seen = asyncio.run(keep_up(url, questions, keep[0], plan.seconds, *keep[1:]))
        happened = [one.result() for one in striking.result()]
        victims.wait_until_whole()
        audit = victims.wait_until_clean()
        return Course(
            questions,
            expected,
            seen,
            happened,
            skipped,
            victims.cluster.total("held_pages"),
            audit["clean"],
            warm,
            victims.resident_mebibytes(),
        )


def _strike(
    victims: Victims, faults: Sequence[Fault], pool: ThreadPoolExecutor
) -> list[Future[Happened]]:
    """Lets each fault happen when its time has come, though others still last."""
    began = time.monotonic()

    def inflict(fault: Fault) -> Happened:
        at_s = time.monotonic() - began
        print(fault, flush=True)
        victims.inflict(fault)
        return Happened(fault, at_s, time.monotonic() - began)

    struck = []
    for fault in faults:
        time.sleep(max(0.0, began + fault.at_s - time.monotonic()))
        struck.append(pool.submit(inflict, fault))
    return struck
