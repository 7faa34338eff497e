"""A tracker over nodes that tests let come and go, and what is asked of it."""

from __future__ import annotations

from coordinator.answers.answer import Answer
from coordinator.answers.request import Request
from coordinator.core.demands import DemandMaker
from coordinator.core.instructions import (
    Instruction,
)
from coordinator.core.statistics import Statistics
from coordinator.core.tracker import Tracker
from protocol.ids import Attempt, Node
from protocol.messages import TokenOut, TokensOut
from protocol.sampling import Sampling
from tests.support.coordinator.nodes import Nodes

D0 = Node("d0", 1)
LONG = 2_000
"""Tokens of a prompt that keeps a node busy for two seconds."""


def request(
    name: str = "r",
    max_new_tokens: int = 8,
    num_tokens: int = 3,
    now: float = 0.0,
    sampling: Sampling = Sampling(seed=5),  # noqa: B008 - it is frozen
) -> Answer:
    """The answer to a request of this id, which is yet to be submitted."""
    tokens = list(range(1, num_tokens + 1))
    return Answer(Request(tokens, sampling, max_new_tokens, end_token_ids=[0]), name, now)


def tokens_of(
    attempt: Attempt, *tokens: int, finish: str = "", start: int = 0, node: Node = D0
) -> TokensOut:
    return TokensOut([TokenOut(attempt, start, list(tokens), finish)], node)


def tracker_of(nodes: Nodes) -> Tracker:
    demands, statistics = DemandMaker(nodes.registry), Statistics(nodes.registry)
    return Tracker(nodes.placement, nodes.queue, demands, statistics, "tcp://me:1")


def tick(tracker: Tracker, now: float) -> list[Instruction]:
    return tracker.retry(now) + tracker.dispatch(now)
