"""Schedulers of single nodes, what they are asked, and what carries their steps out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from decode.answers import Answers
from engine.batches.sequence import Sampled, Slice
from engine.cache.prefix_cache import PrefixCache
from node.core.instructions import Instruction, PagesSent, SendMessage, SendPages, StreamPages
from node.core.scheduler import Scheduler, SchedulerLimits
from node.core.work import WorkFactory
from prefill.handovers import Handovers
from protocol.hashing import PageHasher, token_bytes
from protocol.ids import Addresses, Attempt, Node, Role
from protocol.messages import Generate, Message, Prefill
from protocol.namespace import SHARED
from protocol.sampling import Sampling
from tests.support.coordinator.nodes import LAYOUT

HASHER = PageHasher("model", LAYOUT)
PAGE = LAYOUT.page_size
P0, D0 = Node("p0", 1), Node("d0", 1)
COORDINATOR, PREFILL, DECODE = "coordinator", "prefill", "decode"
STOP = 0
GREEDY = Sampling(temperature=0.0)


def scheduler_of(
    role: Role,
    node: Node,
    address: str,
    limits: SchedulerLimits,
    cache: PrefixCache,
    kinds: Sequence[WorkFactory],
) -> Scheduler:
    """Returns a scheduler with one address for control and data."""
    return Scheduler(role, node, Addresses(address, (address,)), cache, HASHER, limits, kinds)


def prefill_scheduler(
    num_pages: int = 64,
    chunk: int = 32,
    waiting: int = 8,
    node: Node = P0,
    address: str = PREFILL,
) -> Scheduler:
    limits = SchedulerLimits(chunk_tokens=chunk, max_running=4, max_waiting=waiting)
    return scheduler_of("prefill", node, address, limits, PrefixCache(num_pages, PAGE), [Handovers])


def decode_scheduler(
    num_pages: int = 64,
    waiting: int = 8,
    running: int = 4,
    cache: PrefixCache | None = None,
) -> Scheduler:
    limits = SchedulerLimits(
        chunk_tokens=32, max_running=running, max_waiting=waiting, receive_timeout_s=10.0
    )
    cache = cache or PrefixCache(num_pages, PAGE)
    return scheduler_of("decode", D0, DECODE, limits, cache, [Answers])


def generate(
    name: str,
    prompt: list[int],
    max_new_tokens: int = 4,
    prefill: str = PREFILL,
    number: int = 1,
    fetch: tuple[Node, str, int] = (D0, "", 0),
    stops: Collection[int] = (STOP,),
    sampling: Sampling = GREEDY,
    reply_address: str = COORDINATOR,
) -> Generate:
    """`fetch`: owner, its address, pages."""
    return Generate(
        attempt=Attempt(name, number),
        tokens=token_bytes(prompt),
        namespace=SHARED,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        end_token_ids=list(stops),
        prefill_node=P0 if prefill else None,
        prefill_address=prefill,
        reply_address=reply_address,
        fetch_node=fetch[0],
        fetch_address=fetch[1],
        fetch_pages=fetch[2],
    )


def asked_prefill(name: str, num_tokens: int, number: int = 1) -> Prefill:
    """Returns what a decode node asks of a prefill node, for a prompt of its own."""
    prompt = token_bytes([ord(name)] * num_tokens)
    return Prefill(Attempt(name, number), prompt, SHARED, Sampling(), 0, DECODE, (DECODE,))


def step(scheduler: Scheduler, now: float = 0.0) -> tuple[list[Slice], list[Instruction]]:
    """Carries out one step; every sampled token is 7, and all that it streams is sent."""
    slices, instructions = scheduler.next_batch(now)
    sends = [i for i in instructions if isinstance(i, SendPages | StreamPages)]
    if slices:
        sampled = [Sampled((7,)) if part.sampling else None for part in slices]
        instructions = instructions + scheduler.finish(sampled, now)
    for send in sends:
        instructions += scheduler.handle(PagesSent(send.transfer), now)
    return slices, instructions


def compute(scheduler: Scheduler, now: float = 0.0) -> list[Instruction]:
    """Carries out steps until there is nothing to compute; returns all that is wanted."""
    done: list[Instruction] = []
    while True:
        slices, instructions = step(scheduler, now)
        done += instructions
        if not slices:
            return done


def messages(instructions: list[Instruction], kind: type[Message]) -> list[Message]:
    sent = [i.message for i in instructions if isinstance(i, SendMessage)]
    return [message for message in sent if isinstance(message, kind)]
