"""One life of a cluster, from a seed: what is asked, what goes wrong, and what must hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.sim.acts import some_acts
from tests.sim.checks import Wrong
from tests.sim.clients import Asked, some_requests, some_rush
from tests.sim.cluster import SimCluster, SimSettings, Tell
from tests.sim.faults import Cut, Fault, Leave, some_faults, some_leaves
from tests.sim.nodes import CLOSE_S

BUSY_S = 3.0
"""Requests and faults begin within this time."""
QUIET_S = 8.0
"""After the last request has ended: leases end, and everybody learns what is owned."""
TENANTS = ("", "acme", "greedy", "modest", "small")
LIMIT_S = 120.0
"""A life that is not over by then hangs."""

MakeCluster = Callable[[SimSettings, random.Random, "Tell | None"], SimCluster]


@dataclass(frozen=True)
class LifePlan:
    """Everything that a seed decides about a life, but for the dice within it."""

    seed: int
    settings: SimSettings
    faults: tuple[Fault, ...]

    @property
    def is_orderly(self) -> bool:
        """True if nothing goes wrong but that nodes are told to stop, and have time for it."""
        return all(isinstance(fault, Leave) for fault in self.faults) and bool(self.faults)


@dataclass
class Outcome:
    """What became of a life."""

    num_requests: int = 0
    num_faults: int = 0
    num_answered: int = 0
    num_pages_moved: int = 0
    num_forced_tokens: int = 0
    num_preemptions: int = 0
    num_copied_pages: int = 0
    num_pauses: int = 0
    num_left: int = 0
    """Nodes that ended because they were told to stop."""
    num_cut_steps: int = 0
    """Steps with a chunk beside answers that a bound may have cut."""
    num_tokens_of_prefill_nodes: int = 0
    """Tokens of answers that prefill nodes gave."""
    ends: dict[str, int] = field(default_factory=dict)


def plan_of(seed: int) -> LifePlan:
    chance = random.Random(f"plan {seed}")
    limits = random.Random(f"limits {seed}")
    page_size = chance.choice((4, 4, 8))
    max_itl_s = chance.choice((0.0, 0.025))
    # Shorter chunks than these are never cut.
    chunk_pages = 8 if max_itl_s else chance.choice((1, 2, 8))
    settings = SimSettings(
        num_prefill=chance.randint(0, 2) if chance.random() < 0.2 else chance.randint(1, 2),
        num_decode=chance.randint(1, 3),
        num_coordinators=chance.choice((1, 1, 2, 3)),
        page_size=page_size,
        num_pages=chance.choice((16, 24, 40, 96)),
        chunk_tokens=chunk_pages * page_size,
        max_running=chance.choice((2, 4, 8)),
        max_waiting=chance.choice((2, 4, 16)),
        max_itl_s=max_itl_s,
        policy=chance.choice(("cost", "cost", "disaggregate", "round-robin", "longest-prefix")),
        max_ttft=limits.choice((0.0, 0.0, 0.3, 2.0)),
        max_wait_s=limits.choice((120.0, 3.0)),
    )
    nodes = [name for name, _ in settings.nodes]
    faults = some_faults(chance, nodes, settings.coordinators, BUSY_S)
    leaving = random.Random(f"leaving {seed}")
    if leaving.random() < 0.15:
        return LifePlan(seed, settings, tuple(some_leaves(leaving, nodes, BUSY_S)))
    if leaving.random() < 0.3:
        settings = replace(settings, drain_timeout_s=leaving.choice((0.0, 0.5, 4.0)))
        faults = sorted(faults + some_leaves(leaving, nodes, BUSY_S), key=lambda fault: fault.at)
    return LifePlan(seed, settings, tuple(faults))


def live(plan: LifePlan, make: MakeCluster = SimCluster, tell: Tell | None = None) -> Outcome:
    """Lives a life to its end. Raises Wrong, or whatever a process raised."""
    chance = random.Random(f"life {plan.seed}")
    requests = some_requests(chance, plan.settings.page_size, BUSY_S)
    requests += some_rush(random.Random(f"rush {plan.seed}"))
    acts = some_acts(random.Random(f"acts {plan.seed}"), requests)
    cluster = make(plan.settings, chance, tell)
    everything = [one for asked in requests for one in _turns(asked)]
    for asked in everything:
        cluster.shadow.learn(asked.tokens + asked.right_answer, asked.namespace)
    for asked in requests:
        cluster.clock.at(0.3 + asked.at, cluster.ask, asked)
    for fault in plan.faults:
        cluster.clock.at(0.3 + fault.at, cluster.apply, fault)
    for act in acts:
        cluster.clock.at(0.3 + act.at, cluster.act, act, everything)
    cluster.num_unfinished = len(everything)
    cluster.is_orderly = plan.is_orderly
    cluster.clock.run(LIMIT_S, lambda: cluster.num_unfinished == 0)
    if unfinished := [asked.name for asked in everything if not asked.end]:
        raise Wrong(f"{', '.join(unfinished)} never ended")
    loses = any(isinstance(fault, Cut) and fault.loses for fault in plan.faults)
    for asked in everything:
        if "timed_out" in asked.end and not loses:
            raise Wrong(f"{asked.name} hung until its deadline, although no message was lost")
    last_fault = max((fault.at + getattr(fault, "for_s", 0.0) for fault in plan.faults), default=0)
    absence_s = _longest_absence(plan.faults)
    if any(isinstance(fault, Leave) for fault in plan.faults):
        absence_s += plan.settings.drain_timeout_s + CLOSE_S
    quiet = max(cluster.clock.now, 0.3 + last_fault + absence_s) + QUIET_S
    cluster.clock.run(quiet, lambda: False)
    check_at_rest(cluster)
    return _outcome(plan, cluster, everything)


def check_at_rest(cluster: SimCluster) -> None:
    """Raises Wrong unless nothing is held, nothing waits, and nobody owns what it lacks."""
    for node in cluster.nodes.values():
        if node.is_dead:
            continue
        node.cache.check_sum()
        load = node.core.load()
        if node.cache.num_held_pages:
            raise Wrong(f"{node.name} holds {node.cache.num_held_pages} pages for nobody")
        if load.num_running or load.num_waiting or load.queued_tokens or load.promised_pages:
            raise Wrong(f"{node.name} has work for nobody: {load}")
        if node.transport.num_expected or node.transport.num_sends:
            raise Wrong(f"{node.name} has transfers for nobody")
        if node.device.num_states:
            raise Wrong(f"the runner of {node.name} remembers sequences that have ended")
    for coordinator in cluster.coordinators.values():
        if coordinator.is_dead:
            continue
        if coordinator.core.num_unfinished or coordinator.asked:
            raise Wrong(f"{coordinator.name} has requests that have ended")
        shares = coordinator.core.turns.shares
        if any(map(shares.num_unfinished, TENANTS)) or shares.num_waiting_tenants:
            raise Wrong(f"{coordinator.name} counts requests of tenants that have ended")
        for name, backlog in coordinator.core.placement.queues.items():
            if backlog.num_requests or backlog.promised_pages:
                raise Wrong(f"{coordinator.name} counts work of {name} that has ended")
        owned = sum(len(node.cache.hashes()) for node in cluster.nodes.values() if not node.is_dead)
        if coordinator.core.index.num_owned_pages != owned:
            raise Wrong(f"{coordinator.name} believes in pages of nodes that are gone")
        for node in cluster.nodes.values():
            believed = set(coordinator.core.index.pages(node.node))
            has = set() if node.is_dead else set(node.cache.hashes())
            if believed != has:
                raise Wrong(
                    f"{coordinator.name} believes that {node.node} owns {len(believed)} pages; "
                    f"it owns {len(has)}, {len(believed & has)} of these"
                )


def _turns(asked: Asked) -> list[Asked]:
    return [asked] if asked.next_turn is None else [asked, *_turns(asked.next_turn)]


def _longest_absence(faults: Sequence[Fault]) -> float:
    return max((getattr(fault, "back_after_s", 0.0) for fault in faults), default=0.0)


def _outcome(plan: LifePlan, cluster: SimCluster, everything: Sequence[Asked]) -> Outcome:
    outcome = Outcome(
        num_requests=len(everything),
        num_faults=len(plan.faults),
        num_answered=sum(asked.end in ("stop", "length") for asked in everything),
        num_pages_moved=cluster.plane.num_pages_moved,
        num_forced_tokens=sum(node.device.num_forced for node in cluster.nodes.values()),
        num_preemptions=sum(
            node.core.load().counters.preemptions for node in cluster.nodes.values()
        ),
        num_copied_pages=sum(node.device.num_copied_pages for node in cluster.nodes.values()),
        num_pauses=cluster.num_pauses,
        num_left=cluster.num_left,
        num_cut_steps=sum(node.num_cut_steps for node in cluster.nodes.values()),
        num_tokens_of_prefill_nodes=sum(
            node.core.load().counters.generated_tokens
            for node in cluster.nodes.values()
            if node.role == "prefill"
        ),
    )
    for asked in everything:
        kind = " ".join(asked.end.split(" ")[:2])
        outcome.ends[kind] = outcome.ends.get(kind, 0) + 1
    return outcome
