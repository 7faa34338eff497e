"""What single things cost the coordinator when a run is over: CPU time, of many in a row.

The machine's other processes do not count in it; asking for CPU time may take longer than what is
measured, so it is asked for twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.scale.conversations import ANSWER_TOKENS, TURNS, Conversation
from benchmarks.scale.nodes import LAYOUT, ScaledNode
from coordinator.core.core import CoordinatorCore
from coordinator.routing.demand import Demand
from protocol.messages import encode
from protocol.trust.checks import read_message

NUM_PROMPTS = 200
NUM_HEARTBEATS = 2_000


def probed(
    core: CoordinatorCore, load: Sequence[Conversation], nodes: Sequence[ScaledNode], now: float
) -> dict[str, float]:
    """Returns what a match, a whole decision with nothing remembered, and a heartbeat take."""
    chosen = [load[number * len(load) // NUM_PROMPTS] for number in range(NUM_PROMPTS)]
    num_tokens = [one.prompt_tokens(TURNS - 1) for one in chosen]
    prompts = [
        one.hashes[: length // LAYOUT.page_size]
        for one, length in zip(chosen, num_tokens, strict=True)
    ]
    demands = [
        Demand(length, LAYOUT.num_pages(length + ANSWER_TOKENS), LAYOUT.num_pages(length), hashes)
        for length, hashes in zip(num_tokens, prompts, strict=True)
    ]
    match_us = cpu_us(core.index.match, prompts)
    route_us = cpu_us(lambda demand: core.placement.route(demand, now), demands)
    heartbeats = [nodes[i % len(nodes)].heartbeat() for i in range(NUM_HEARTBEATS)]
    raw = [encode(one) for one in heartbeats]
    read_us = cpu_us(lambda one: read_message(one, time.time_ns()), raw)
    handle_us = cpu_us(lambda one: core.handle(one, now), heartbeats)
    return {
        "index_pages": core.index.num_unique_pages,
        "match_us": match_us,
        "route_us": route_us,
        "routes_per_cpu_s": 1e6 / route_us,
        "heartbeat_bytes": sum(map(len, raw)) / len(raw),
        "heartbeat_read_us": read_us,
        "heartbeat_handle_us": handle_us,
    }


def cpu_us(run: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    """Returns how much CPU time `run` takes with one of `arguments`, in microseconds."""
    began = time.process_time()
    for argument in arguments:
        run(argument)
    return 1e6 * (time.process_time() - began) / len(arguments)
