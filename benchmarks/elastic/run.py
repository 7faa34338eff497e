"""One run: a cluster, its undisturbed answers, the load without changes, then with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.elastic.changes import ChangePlanner
from benchmarks.elastic.load import HANGS_AFTER_S, Clients, LoadShape, Seen, conversations_of
from benchmarks.elastic.memory import ReadMemory
from benchmarks.elastic.population import Happened, Population
from benchmarks.elastic.watching import NodeLife, NodeWatch, StartedNode
from infra.cluster import ClusterPlan
from infra.process import Start, start_program
from protocol.ids import Role

POLL_S = 0.1
LEAST_CHANGES_S = 5.0
HEARTBEATS_S = 2.0
"""After so long every living node has told of itself again."""
LAST_ANSWERS_S, STOPS_S = 12.0, 5.0
"""How long the last answers and the stopping of all processes are given at least."""
STARTS_WITHIN_S = 60.0
"""How long the nodes that joined last are waited for."""


@dataclass(frozen=True)
class Drill:
    """What a run does."""

    plan: ClusterPlan
    num_gpus: int
    load: LoadShape
    idle_close_s: float
    """When the nodes close a pair that nobody uses."""
    quiet_s: float
    """How long the load runs without changes."""
    seconds: float
    """How long it runs with them."""
    period_s: float
    """From one change to the next."""
    seed: int
    within_s: float
    """The changes end earlier if the whole run would take longer than this."""


@dataclass(frozen=True)
class Course:
    """All that was seen of a run. Times are of `time.monotonic`, but for those in `Seen`."""

    ready_after_s: float
    """From the start of the first processes until all had registered."""
    quiet: Sequence[Seen]
    changed: Sequence[Seen]
    changed_at: float
    """When the load with changes began; the times in `changed` count from here."""
    loaded_until: float
    """When its last answer had ended."""
    happened: Sequence[Happened]
    starts: Sequence[StartedNode]
    lives: Sequence[NodeLife]
    open_pairs: dict[tuple[str, int], int]
    """By name and incarnation: the pairs that each node had open to send when the load ended."""
    idle_at: float
    """When pairs that nobody uses had had the time to be closed."""
    lost: Sequence[tuple[str, float]]
    gpus: Sequence[tuple[float, dict[str, float]]]


def run(
    drill: Drill, log_dir: Path, read_memory: ReadMemory, start: Start = start_program
) -> Course:
    """Runs it. Raises StartError if the cluster does not come up."""
    began = time.monotonic()
    population = Population(drill.plan, log_dir, drill.num_gpus, start)
    with population, ThreadPoolExecutor(1) as pool:
        ready_after_s = time.monotonic() - began
        print(f"{len(population.started())} nodes serve after {ready_after_s:.0f} s", flush=True)
        url = population.local.url
        with NodeWatch(url, population.started, read_memory) as watch:
            clients = Clients(url, drill.load, conversations_of(drill.load, drill.seed))
            asyncio.run(clients.learn())
            print(f"answers learnt after {time.monotonic() - began:.0f} s", flush=True)
            quiet = asyncio.run(clients.keep_up(drill.quiet_s, drill.seed, HANGS_AFTER_S))
            left_s = drill.within_s - (time.monotonic() - began)
            seconds, patience_s = time_for_changes(drill, left_s)
            talking = clients.keep_up(seconds, drill.seed + 1, patience_s)
            changed_at = time.monotonic()
            # The load has the other thread: a process ends with the thread that has started it.
            load = pool.submit(asyncio.run, talking)
            _change(population, watch, drill, load, changed_at + seconds)
            changed = load.result()
            loaded_until = time.monotonic()
            time.sleep(HEARTBEATS_S)
            open_pairs = {key: num_open(life) for key, life in watch.lives.items()}
            idle_s = drill.idle_close_s + HEARTBEATS_S
            _await_all(population, watch, began + drill.within_s - idle_s - STOPS_S)
            time.sleep(idle_s)
            return Course(
                ready_after_s,
                quiet,
                changed,
                changed_at,
                loaded_until,
                population.happened,
                population.starts,
                list(watch.lives.values()),
                open_pairs,
                time.monotonic(),
                population.lost,
                [(at, dict(gpus)) for at, gpus in watch.gpus],
            )


def num_open(life: NodeLife) -> int:
    """Returns how many pairs a node has open to send, as its last heartbeat told."""
    return sum(link["open"] for link in life.links if link["direction"] == "out")


def time_for_changes(drill: Drill, left_s: float) -> tuple[float, float]:
    """Returns how long the load with changes may run, and how long its last answers are waited
    for, if the whole run has `left_s` left."""
    left_s -= drill.idle_close_s + 2 * HEARTBEATS_S + STOPS_S
    seconds = max(LEAST_CHANGES_S, min(drill.seconds, left_s - LAST_ANSWERS_S))
    return seconds, max(LAST_ANSWERS_S, min(HANGS_AFTER_S, left_s - seconds))


def _change(
    population: Population,
    watch: NodeWatch,
    drill: Drill,
    load: Future[list[Seen]],
    until: float,
) -> None:
    """Makes a change every period while conversations begin, and sees to it until the last one has
    ended."""
    planner = ChangePlanner(drill.seed, drill.plan.num_prefill, drill.plan.num_decode)
    due = time.monotonic() + drill.period_s
    while not load.done():
        population.go_on()
        now = time.monotonic()
        if now >= due and due < until:
            due += drill.period_s
            population.make(planner.next(_serving(population, watch)))
        time.sleep(POLL_S)


def _await_all(population: Population, watch: NodeWatch, until: float) -> None:
    """Waits until every node that was started serves: those that joined last make pairs then."""
    until = min(until, time.monotonic() + STARTS_WITHIN_S)
    while time.monotonic() < until:
        population.go_on()
        if _serving(population, watch).keys() == population.started().keys():
            return
        time.sleep(POLL_S)


def _serving(population: Population, watch: NodeWatch) -> dict[str, Role]:
    """Returns the roles of the nodes that live and are listed by the coordinator."""
    living = population.started()
    return {
        name: life.role
        for name, life in watch.serving().items()
        if name in living and life.seen_at > living[name].at
    }
