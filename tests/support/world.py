"""Both schedulers in a world without sockets or tensors, for tests of what they do together."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from hypothesis import strategies as st

from decode.scheduler import DecodeLimits, DecodeScheduler
from engine.cache.prefix_cache import PrefixCache
from node.core.instructions import (
    AbortTransfer,
    CancelSends,
    Event,
    ExpectPages,
    Instruction,
    PagesArrived,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    Scheduler,
    Send,
    SendPages,
    StreamPages,
)
from prefill.scheduler import PrefillLimits, PrefillScheduler
from protocol.hashing import PageHasher, token_bytes
from protocol.ids import Addresses, Attempt, Node
from protocol.messages import (
    Failed,
    Fetch,
    FetchRefused,
    Generate,
    Prefill,
    TokensOut,
)
from protocol.namespace import SHARED
from protocol.sampling import Sampling
from tests.support.device import Device, next_token
from tests.support.nodes import LAYOUT

HASHER = PageHasher("model", LAYOUT)
PAGE = LAYOUT.page_size
P0, D0 = Node("p0", 1), Node("d0", 1)
COORDINATOR, PREFILL, DECODE = "coordinator", "prefill", "decode"
STOP = 0
GREEDY = Sampling(temperature=0.0)


def answer_of(prompt: list[int], count: int, stops: Collection[int] = ()) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def prefill_scheduler(
    num_pages: int = 64,
    chunk: int = 32,
    waiting: int = 8,
    node: Node = P0,
    address: str = PREFILL,
) -> PrefillScheduler:
    limits = PrefillLimits(chunk_tokens=chunk, max_running=4, max_waiting=waiting)
    return PrefillScheduler(
        node, Addresses(address, (address,)), PrefixCache(num_pages), HASHER, limits
    )


def decode_scheduler(
    num_pages: int = 64,
    waiting: int = 8,
    receive_timeout_s: float = 10.0,
    running: int = 4,
    cache: PrefixCache | None = None,
) -> DecodeScheduler:
    """One address for control and data keeps the world simple."""
    limits = DecodeLimits(
        chunk_tokens=32,
        max_running=running,
        max_waiting=waiting,
        receive_timeout_s=receive_timeout_s,
    )
    cache = cache or PrefixCache(num_pages)
    return DecodeScheduler(D0, Addresses(DECODE, (DECODE,)), cache, HASHER, limits)


def generate(
    name: str,
    prompt: list[int],
    max_new_tokens: int = 4,
    prefill: str = PREFILL,
    number: int = 1,
    fetch: tuple[Node, str, int] = (D0, "", 0),
    stops: Collection[int] = (STOP,),
    sampling: Sampling = GREEDY,
) -> Generate:
    """`fetch`: owner, its address, pages."""
    return Generate(
        attempt=Attempt(name, number),
        tokens=token_bytes(prompt),
        namespace=SHARED,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        stop_token_ids=list(stops),
        prefill_node=P0 if prefill else None,
        prefill_address=prefill,
        reply_address=COORDINATOR,
        fetch_node=fetch[0],
        fetch_address=fetch[1],
        fetch_pages=fetch[2],
    )


def asked_prefill(name: str, num_tokens: int, number: int = 1) -> Prefill:
    """A prompt of its own."""
    prompt = token_bytes([ord(name)] * num_tokens)
    return Prefill(Attempt(name, number), prompt, SHARED, Sampling(), 0, DECODE, (DECODE,))


@dataclass(eq=False)
class Travelling:
    """Pages that one node sends to another; some may have been delivered."""

    sender: str
    work: SendPages | StreamPages
    num_steps: int
    """Of the sender's, that have to be done before these pages may be read."""
    num_delivered: int = 0

    @property
    def is_fetch(self) -> bool:
        return isinstance(self.work, SendPages) and self.work.is_fetch


class World:
    """Delivers messages and pages, and plays the model; what arrives when is up to `rng`.

    A page is remembered as the tokens whose KV was written to it, so a page that was sent, reused
    or overwritten wrongly gives a wrong token, as it would with a real model. What a page holds is
    looked at when it is delivered, page by page; until then it must not change. With `lossy`,
    questions to owners and their answers get lost, and time passes whenever all are at rest. With
    `breaking`, links break while pages of a prefill node travel, so requests may fail. With
    `ahead`, a node starts a step before it asks for the tokens of the one before, and its device
    computes each as late as it may.
    """

    def __init__(
        self,
        rng: random.Random,
        schedulers: dict[str, Scheduler],
        lossy: bool = False,
        breaking: bool = False,
        ahead: bool = False,
    ) -> None:
        """`schedulers` by address, control and data being one."""
        self.rng = rng
        self.schedulers = schedulers
        self.lossy = lossy
        self.breaking = breaking
        self.ahead = ahead
        self.now = 0.0
        self.devices = {name: Device(PAGE) for name in schedulers}
        self.num_pages = {name: num_pages_of(s) for name, s in schedulers.items()}
        self.queues: dict[str, deque[Event]] = {name: deque() for name in schedulers}
        self.expected: dict[tuple[str, Attempt], tuple[list[int], int]] = {}
        """Pages, and the number of steps that have to be done before anything is written there."""
        self.arrived: dict[tuple[str, Attempt], set[int]] = {}
        self.travelling: list[Travelling] = []
        self.num_delivered = 0
        """Pages that reached somebody who expected them."""
        self.tokens: dict[str, list[int]] = {}
        self.fetched: dict[str, int] = {}
        self.reused: dict[str, tuple[int, int, int]] = {}
        self.ends: dict[str, str] = {}
        self.time_has_passed = not lossy
        self.in_step: set[str] = set()
        self.later: list[tuple[int, str, Event]] = []
        """Turns from the start, where, what."""
        self.resting = dict.fromkeys(schedulers, False)
        """Had nothing to compute, and has heard nothing since."""

    def post(self, where: str, event: Event) -> None:
        self.queues[where].append(event)

    def post_later(self, where: str, event: Event) -> None:
        """After some of what is going to happen."""
        self.later.append((self.rng.randrange(200), where, event))

    def run(self) -> None:
        """Until nothing is left to do; a world that never rests fails."""
        self.time_has_passed = not self.lossy
        for turn in range(10_000):
            for at, where, event in list(self.later):
                if at <= turn:
                    self.later.remove((at, where, event))
                    self.post(where, event)
            choices = [name for name, queue in self.queues.items() if queue]
            busy = [name for name, resting in self.resting.items() if not resting]
            if self.travelling and self.rng.random() < 0.3:
                self.deliver_some()
            elif not choices and not busy:
                if self.travelling or self.later:
                    continue
                if self.time_has_passed:
                    return
                self.now += 6.0
                self.time_has_passed = True
                self.resting = dict.fromkeys(self.schedulers, False)
            else:
                name = self.rng.choice(choices + busy)
                if self.queues[name] and self.rng.random() < 0.6:
                    self.hear(name)
                else:
                    self.step(name)
        raise AssertionError("the world does not come to rest")

    def hear(self, name: str) -> None:
        event = self.queues[name].popleft()
        self.resting[name] = False
        self.carry_out(name, self.schedulers[name].handle(event, self.now))

    def step(self, name: str) -> None:
        scheduler, device = self.schedulers[name], self.devices[name]
        under_way = self.pages_under_way(name)
        slices, instructions = scheduler.next_batch(self.now)
        self.carry_out(name, instructions)
        self.resting[name] = not slices and not device.num_under_way
        self.time_has_passed &= self.resting[name] or not self.lossy
        if slices:
            for part in slices:
                end = part.start + len(part.token_ids)
                written = part.pages[part.start // PAGE : (end - 1) // PAGE + 1]
                assert under_way.isdisjoint(map(int, written)), "it is being sent"
            device.start(slices)
        while self.travelling and self.rng.random() < 0.3:  # layers travel during the step
            self.deliver_some()
        self.in_step.add(name)
        while self.ahead and self.rng.random() > 0.6:
            self.go_on_elsewhere()
        self.in_step.remove(name)
        while device.num_under_way > (1 if slices and self.ahead else 0):
            self.carry_out(name, scheduler.finish(device.finish(), self.now))
        assert num_pages_of(scheduler) == self.num_pages[name], "a page is lost"

    def go_on_elsewhere(self) -> None:
        others = [name for name in self.schedulers if name not in self.in_step]
        if self.travelling and (not others or self.rng.random() < 0.5):
            self.deliver_some()
        elif others:
            name = self.rng.choice(others)
            if self.queues[name]:
                self.hear(name)
            else:
                self.step(name)

    def pages_under_way(self, name: str) -> set[int]:
        return {page for t in self.travelling if t.sender == name for page in t.work.pages}

    def carry_out(self, name: str, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, ExpectPages):
                assert not self.pages_under_way(name).intersection(instruction.pages)
                num_steps = self.devices[name].num_started
                self.expected[name, instruction.transfer] = instruction.pages, num_steps
                self.arrived[name, instruction.transfer] = set()
            elif isinstance(instruction, AbortTransfer):
                self.expected.pop((name, instruction.transfer), None)
            elif isinstance(instruction, SendPages | StreamPages):
                is_stream = isinstance(instruction, StreamPages)  # of the step about to start
                num_steps = self.devices[name].num_started + is_stream
                self.travelling.append(Travelling(name, instruction, num_steps))
            elif isinstance(instruction, CancelSends):
                self.cancel(name, instruction.transfer)
            elif instruction.address == COORDINATOR:
                self.reply(instruction)
            elif not isinstance(instruction.message, Fetch | FetchRefused) or not self.loses():
                assert not isinstance(instruction.message, TokensOut)
                self.post(instruction.address, instruction.message)  # type: ignore[arg-type]

    def loses(self) -> bool:
        return self.lossy and self.rng.random() < 0.2

    def cancel(self, name: str, transfer: Attempt) -> None:
        """What has not begun is not sent; what has may go on."""
        for t in [t for t in self.travelling if (t.sender, t.work.transfer) == (name, transfer)]:
            if t.num_delivered == 0 or self.rng.random() < 0.5:
                self.end(t, "cancelled")

    def end(self, travelling: Travelling, error: str = "") -> None:
        self.travelling.remove(travelling)
        sent = PagesSent(travelling.work.transfer, error, travelling.is_fetch)
        self.post(travelling.sender, sent)

    def deliver_some(self) -> None:
        """A page or more of one send, or its loss."""
        travelling = self.rng.choice(self.travelling)
        work = travelling.work
        (receiver,) = work.data_addresses
        key = (receiver, work.transfer)
        breaks = self.breaking and not travelling.is_fetch and self.rng.random() < 0.2
        if breaks or (travelling.is_fetch and self.loses()):
            self.end(travelling, "peer lost")
            if self.rng.random() < 0.5 and self.expected.pop(key, None) is not None:
                self.post(receiver, ReceiveFailed(work.transfer, "peer lost"))
            return
        self.deliver(travelling, self.rng.randint(1, len(work.pages) - travelling.num_delivered))

    def deliver(self, travelling: Travelling, num_pages: int) -> None:
        work = travelling.work
        first = travelling.num_delivered
        travelling.num_delivered += num_pages
        pages = work.pages[first : travelling.num_delivered]
        device = self.devices[travelling.sender]
        device.compute_until(travelling.num_steps)
        contents = [device.contents(page) for page in pages]
        (receiver,) = work.data_addresses
        self.write(receiver, work.transfer, work.offset + first, contents)
        if travelling.num_delivered == len(work.pages):
            self.end(travelling)

    def write(
        self, name: str, transfer: Attempt, offset: int, contents: list[dict[int, int]]
    ) -> None:
        pages, num_steps = self.expected.get((name, transfer), ([], 0))
        if not pages:
            return
        device = self.devices[name]
        device.compute_until(num_steps)
        arrived = self.arrived[name, transfer]
        num_leading = leading(arrived)
        for position, content in enumerate(contents, offset):
            page = pages[position]
            assert position not in arrived, "it is sent twice"
            assert page not in self.pages_under_way(name), "it is being sent"
            arrived.add(position)
            device.replace(page, content)
        self.num_delivered += len(contents)
        if len(arrived) == len(pages):
            del self.expected[name, transfer]
            self.post(name, PagesReceived(transfer))
        elif leading(arrived) > num_leading:
            self.post(name, PagesArrived(transfer, leading(arrived)))

    def reply(self, send: Send) -> None:
        message = send.message
        if isinstance(message, Failed):
            name = message.attempt.request_id
            assert name not in self.ends
            self.ends[name] = message.reason
            return
        assert isinstance(message, TokensOut)
        for out in message.outs:
            name = out.attempt.request_id
            assert name not in self.ends, "tokens after the end"
            tokens = self.tokens.setdefault(name, [])
            assert out.start == len(tokens), "tokens are lost, or reported twice"
            tokens += out.tokens
            reused = out.cached_tokens, out.transferred_pages, out.fetched_tokens
            assert self.reused.setdefault(name, reused) == reused
            self.fetched[name] = out.fetched_tokens
            assert out.fetched_tokens <= out.cached_tokens
            if out.finish:
                self.ends[name] = out.finish


def num_pages_of(scheduler: Scheduler) -> int:
    load = scheduler.load()
    return load.free_pages + load.cached_pages + load.held_pages


def leading(positions: set[int]) -> int:
    """How many of 0, 1, 2, … are there before the first that is not."""
    return next(i for i in range(len(positions) + 1) if i not in positions)


prompts = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 120), st.integers(1, 40)),
    min_size=1,
    max_size=8,
)
