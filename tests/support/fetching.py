"""A prompt that is fetched, its owner, and what schedulers do about both."""

from __future__ import annotations

import pytest

from engine.batches.sequence import Sampled
from node.core.instructions import (
    Instruction,
    PagesSent,
    SendMessage,
    SendPages,
    StreamPages,
)
from node.core.scheduler import Scheduler
from protocol.hashing import join_hashes
from protocol.ids import Attempt, Node
from protocol.messages import (
    Fetch,
    Message,
)
from tests.support.world import (
    DECODE,
    HASHER,
    PREFILL,
    prefill_scheduler,
)

OWNER = "owner"
P1 = Node("p1", 1)
R1 = Attempt("r", 1)
PROMPT = list(range(1, 101))  # 6 full pages, all reusable, and a part


def owner_scheduler(num_pages: int = 64) -> Scheduler:
    return prefill_scheduler(num_pages, node=P1, address=OWNER)


def compute(scheduler: Scheduler, now: float = 0.0) -> list[Instruction]:
    """Steps until there is nothing to compute; every sampled token is 7, and all is sent."""
    done: list[Instruction] = []
    while True:
        slices, instructions = scheduler.next_batch(now)
        sends = [i for i in instructions if isinstance(i, SendPages | StreamPages)]
        done += instructions
        if not slices:
            return done
        done += scheduler.finish([Sampled((7,)) if part.sampling else None for part in slices], now)
        for send in sends:
            done += scheduler.handle(PagesSent(send.transfer), now)


def fetch_of(num_pages: int, skip_pages: int = 0) -> Fetch:
    chain = join_hashes(HASHER.hashes(PROMPT)[:num_pages])
    return Fetch(R1, chain, skip_pages, PREFILL, ("data",))


def messages(instructions: list[Instruction], kind: type[Message]) -> list[Message]:
    sent = [i.message for i in instructions if isinstance(i, SendMessage)]
    return [message for message in sent if isinstance(message, kind)]


both_kinds = pytest.mark.parametrize("kind", [PREFILL, DECODE])
