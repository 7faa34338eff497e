"""`ScaledCluster`: nodes, coordinators, Redis and clients of one run, and the figures of it."""

from __future__ import annotations

import gc
import logging
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.replaying.leaf_lru import LeafLru
from benchmarks.scale.conversations import ANSWER_TOKENS, TURNS, Asked, conversations
from benchmarks.scale.coordinators import ScaledCoordinator, Spent
from benchmarks.scale.counted_redis import CountedRedis
from benchmarks.scale.events import Events
from benchmarks.scale.nodes import FINGERPRINT, HOP_S, LAYOUT, ScaledNode, Work
from benchmarks.scale.probes import probed
from coordinator.answers.answer import Answer
from protocol.hashing import PageHasher
from protocol.messages import AnyMessage, Generate, Heartbeat
from protocol.sampling import Sampling

STARTS_S = 2.0
"""Nodes and coordinators come to know each other before the first conversation."""
MAX_RUN_S = 600.0


@dataclass
class Seen:
    """What clients have seen of the requests that have ended."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    fetched_tokens: int = 0
    missed_forecast_tokens: int = 0
    """The sum of how far routing was off with what it took for cached."""
    failed: int = 0
    first_token_s: list[float] = field(default_factory=list)
    """From the question to the first token."""
    forecast_errors_s: list[float] = field(default_factory=list)
    """How far routing was off with the time from sending a request to its first token."""


class ScaledCluster:
    """Runs one load once, on half prefill and half decode nodes."""

    def __init__(self, num_nodes: int, num_coordinators: int, seconds: float, seed: int) -> None:
        self.events = Events()
        self.redis = CountedRedis(lambda: self.events.now)
        self.sampling = Sampling(seed=1)
        self.answer_tokens = ANSWER_TOKENS
        self.num_nodes = num_nodes
        self._seconds = seconds
        self.chance = random.Random(seed)
        self.seen = Seen()
        self.coordinators = [
            ScaledCoordinator(self, f"coordinator-{number}", seed + number)
            for number in range(num_coordinators)
        ]
        self._by_address = {one.address: one for one in self.coordinators}
        names = [f"{'pd'[i % 2]}{i:04}" for i in range(num_nodes)]
        self.nodes = {
            name: ScaledNode(self, name, "prefill" if name[0] == "p" else "decode")
            for name in names
        }
        self._nodes_by_address = {one.info.control_address: one for one in self.nodes.values()}
        hasher = PageHasher(FINGERPRINT, LAYOUT)
        self.load = conversations(num_nodes, seconds, hasher, seed)
        self._num_unfinished = len(self.load) * TURNS

    # What the processes do to each other

    def cache_of(self, name: str) -> LeafLru:
        """Returns the cache of a node, by its name."""
        return self.nodes[name].cache

    def send_heartbeat(self, addresses: Sequence[str], heartbeat: Heartbeat) -> None:
        """Brings a heartbeat to each of the coordinators."""
        if addresses:
            self.events.after(HOP_S, self._deliver, addresses, heartbeat)

    def _deliver(self, addresses: Sequence[str], heartbeat: Heartbeat) -> None:
        for address in addresses:
            self._by_address[address].hear(heartbeat)

    def send_to_coordinator(self, address: str, message: AnyMessage) -> None:
        """Brings a message to one coordinator."""
        self.events.after(HOP_S, self._by_address[address].hear, message)

    def begin(self, address: str, request: Generate, asked: Asked) -> None:
        """Gives a request to the node that answers it, and its prompt to the one that computes."""
        answering = self._nodes_by_address[address]
        work = Work(request, asked.conversation, asked.num_tokens, answering)
        answering.begin()
        if request.prefill_node is None:
            answering.compute(work)
        else:
            self.events.after(HOP_S, self.nodes[request.prefill_node.name].compute, work)

    # Clients

    def ask(self, asked: Asked) -> None:
        """Asks any coordinator, as a balancer in front of them would."""
        self.chance.choice(self.coordinators).ask(asked)

    def ended(self, asked: Asked, answer: Answer) -> None:
        """Notes an answer, and plans the next turn of its conversation."""
        self._num_unfinished -= 1
        seen, route = self.seen, answer.route
        if route is None or answer.first_token_at is None:
            seen.failed += 1
            return
        seen.prompt_tokens += asked.num_tokens
        seen.cached_tokens += answer.cached_tokens
        forecast = min(route.cached_pages * LAYOUT.page_size, asked.num_tokens - 1)
        seen.missed_forecast_tokens += abs(forecast - answer.cached_tokens)
        seen.first_token_s.append(answer.first_token_at - answer.started_at)
        took_s = answer.first_token_at - asked.sent_at
        seen.forecast_errors_s.append(abs(took_s - route.cost.first_token_s))
        turn = asked.turn + 1
        if turn < TURNS:
            pause_s = asked.conversation.pauses_s[turn]
            self.events.after(pause_s, self.ask, Asked(asked.conversation, turn))

    # The run

    def run(self) -> dict[str, Any]:
        """Lets everything happen, and returns the figures: of what is per second, those of the time
        in which conversations begin."""
        self.events.run(STARTS_S)
        self.redis.counts.clear()
        for coordinator in self.coordinators:
            coordinator.spent = Spent()
            coordinator.lag_s.clear()
        for conversation in self.load:
            self.events.after(conversation.begins_s, self.ask, Asked(conversation, 0))
        cpu_s, real_s = time.process_time(), time.perf_counter()
        self.events.run(STARTS_S + self._seconds)
        # Others use the core too: what was measured in real time is taken for CPU time at the
        # share that this process had of it.
        cpu_share = (time.process_time() - cpu_s) / (time.perf_counter() - real_s)
        figures = self._rates(cpu_share)
        while self._num_unfinished and self.events.now < MAX_RUN_S:
            self.events.run(self.events.now + 0.5)
        nodes, core = list(self.nodes.values()), self.coordinators[0].core
        figures |= self._qualities() | probed(core, self.load, nodes, self.events.now)
        heartbeat_us = figures["heartbeat_read_us"] + figures["heartbeat_handle_us"]
        return figures | {"core_share_heartbeats": figures["heartbeats_per_s"] * heartbeat_us / 1e6}

    def _rates(self, cpu_share: float) -> dict[str, Any]:
        seconds, spent = self._seconds, [one.spent for one in self.coordinators]
        counts = self.redis.counts
        per_coordinator = seconds * len(spent)
        requests = sum(one.requests for one in spent)
        request_s = cpu_share * sum(one.request_s for one in spent)
        mirror_s = cpu_share * sum(one.mirror_s for one in spent)
        lags = sorted(lag for one in self.coordinators for lag in one.lag_s)
        return {
            "redis_calls_per_s": sum(one.calls for one in counts.values()) / seconds,
            "redis_operations_per_s": sum(one.operations for one in counts.values()) / seconds,
            "redis_bytes_per_s": sum(one.num_bytes for one in counts.values()) / seconds,
            "redis_by_kind": {
                kind: {
                    "calls_per_s": one.calls / seconds,
                    "operations_per_s": one.operations / seconds,
                    "bytes_per_s": one.num_bytes / seconds,
                }
                for kind, one in sorted(counts.items())
            },
            "heartbeats_per_s": sum(one.heartbeats for one in spent) / per_coordinator,
            "alive_messages_per_s": sum(one.alive_messages for one in spent) / per_coordinator,
            "requests_per_s": requests / seconds,
            "request_us": 1e6 * request_s / requests,
            "core_share_ownership": mirror_s / per_coordinator,
            "core_share_requests": request_s / per_coordinator,
            "ownership_lag_p99_ms": 1e3 * lags[int(0.99 * len(lags))],
        }

    def _qualities(self) -> dict[str, float]:
        seen = self.seen
        first = sorted(seen.first_token_s)
        return {
            "requests": len(first),
            "unfinished_or_failed": self._num_unfinished + seen.failed,
            "hit": seen.cached_tokens / seen.prompt_tokens,
            "ttft_mean_ms": 1e3 * sum(first) / len(first),
            "ttft_p99_ms": 1e3 * first[int(0.99 * len(first))],
            "forecast_error_mean_ms": 1e3 * statistics.mean(seen.forecast_errors_s),
            "forecast_error_tokens": seen.missed_forecast_tokens / seen.prompt_tokens,
        }


def run_size(run: tuple[int, int, float, int]) -> dict[str, Any]:
    """Returns the figures of a run with so many nodes and coordinators, in which conversations
    begin for so many seconds, from a seed."""
    num_nodes, num_coordinators, seconds, seed = run
    logging.disable(logging.WARNING)
    cluster = ScaledCluster(num_nodes, num_coordinators, seconds, seed)
    gc.freeze()
    size = {"nodes": num_nodes, "coordinators": num_coordinators, "seconds": seconds}
    return size | cluster.run()
