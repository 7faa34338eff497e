"""A prompt that is fetched, and its owner."""

from __future__ import annotations

import pytest

from node.core.scheduler import Scheduler
from protocol.hashing import join_hashes
from protocol.ids import Attempt, Node
from protocol.messages import Fetch
from tests.support.node.schedulers import DECODE, HASHER, PREFILL, prefill_scheduler

OWNER = "owner"
P1 = Node("p1", 1)
R1 = Attempt("r", 1)
PROMPT = list(range(1, 101))  # 6 full pages, all reusable, and a part


def owner_scheduler(num_pages: int = 64) -> Scheduler:
    return prefill_scheduler(num_pages, node=P1, address=OWNER)


def fetch_of(num_pages: int, skip_pages: int = 0) -> Fetch:
    chain = join_hashes(HASHER.hashes(PROMPT)[:num_pages])
    return Fetch(R1, chain, skip_pages, PREFILL, ("data",))


both_kinds = pytest.mark.parametrize("kind", [PREFILL, DECODE])
