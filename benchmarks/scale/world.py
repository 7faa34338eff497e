"""`World`: what a played process sees of everything around it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from benchmarks.replaying.leaf_lru import LeafLru
from benchmarks.scale.conversations import Asked
from benchmarks.scale.counted_redis import CountedRedis
from benchmarks.scale.events import Events
from coordinator.answers.answer import Answer
from protocol.messages import AnyMessage, Generate, Heartbeat
from protocol.sampling import Sampling


class World(Protocol):
    """The other processes, the clients and the clock."""

    events: Events
    redis: CountedRedis
    chance: random.Random
    sampling: Sampling
    answer_tokens: int
    num_nodes: int

    def cache_of(self, name: str) -> LeafLru:
        """Returns the cache of a node, by its name."""

    def send_heartbeat(self, addresses: Sequence[str], heartbeat: Heartbeat) -> None:
        """Brings a heartbeat to each of the coordinators."""

    def send_to_coordinator(self, address: str, message: AnyMessage) -> None:
        """Brings a message to one coordinator."""

    def begin(self, address: str, request: Generate, asked: Asked) -> None:
        """Gives a request to the node that answers it, and its prompt to the one that computes."""

    def ended(self, asked: Asked, answer: Answer) -> None:
        """Notes an answer, and plans the next turn of its conversation."""
