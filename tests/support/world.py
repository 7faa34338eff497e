"""Nodes in a world without sockets or tensors: real shells and cores, everything else is played."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from decode.answers import Answers
from engine.batches.sequence import Sampled, Slice
from engine.batches.step import OnLayer, Step
from engine.cache.prefix_cache import CacheChange, PrefixCache
from kvtransfer.transport import LinkStats, OnDone, OnProgress
from node.core.core import NodeCore
from node.core.scheduler import Scheduler, SchedulerLimits
from node.core.work import WorkFactory
from node.shell.shell import NodeShell
from prefill.handovers import Handovers
from protocol.hashing import PageHasher, token_bytes
from protocol.ids import Addresses, Attempt, Node, Role
from protocol.messages import (
    AnyMessage,
    CoordinatorAlive,
    Failed,
    Fetch,
    FetchRefused,
    Generate,
    Load,
    Message,
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


def scheduler_of(
    role: Role,
    node: Node,
    address: str,
    limits: SchedulerLimits,
    cache: PrefixCache,
    kinds: Sequence[WorkFactory],
) -> Scheduler:
    """One address for control and data keeps the world simple."""
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
    receive_timeout_s: float = 10.0,
    running: int = 4,
    cache: PrefixCache | None = None,
    kinds: Sequence[WorkFactory] = (Answers,),
) -> Scheduler:
    limits = SchedulerLimits(
        chunk_tokens=32,
        max_running=running,
        max_waiting=waiting,
        receive_timeout_s=receive_timeout_s,
    )
    return scheduler_of("decode", D0, DECODE, limits, cache or PrefixCache(num_pages, PAGE), kinds)


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
    """A prompt of its own."""
    prompt = token_bytes([ord(name)] * num_tokens)
    return Prefill(Attempt(name, number), prompt, SHARED, Sampling(), 0, DECODE, (DECODE,))


@dataclass(eq=False)
class Travelling:
    """Pages that one node sends to another; some may have been delivered."""

    sender: str
    receiver: str
    transfer: Attempt
    pages: Sequence[int]
    offset: int
    on_done: OnDone
    num_steps: int
    """Steps of the sender that have to be done before these pages may be read."""
    num_delivered: int = 0


@dataclass(eq=False)
class ExpectedPages:
    """Pages that a node waits for."""

    pages: Sequence[int]
    num_steps: int
    """Steps of the receiver that have to be done before anything is written there."""
    on_progress: OnProgress
    on_done: OnDone
    arrived: set[int]


@dataclass(frozen=True, eq=False)
class DeviceStep:
    """A `Step` of a `Device`."""

    slices: Sequence[Slice]
    device: Device
    has_compiled: bool = False

    def sampled(self) -> list[Sampled | None]:
        return self.device.finish()


class PlayedNode:
    """All ports of one shell."""

    def __init__(self, world: World, name: str, scheduler: Scheduler) -> None:
        self._world = world
        self.name = name
        self.scheduler = scheduler
        self.device = Device(PAGE, lambda: world.rng.randint(1, world.most_tokens))
        self.inbox: list[AnyMessage] = []
        self.ended_sequences: set[int] = set()
        core = NodeCore(Node(name, 1), scheduler._cache, scheduler)
        core.handle(CoordinatorAlive(COORDINATOR, lease_s=1e9), 0.0)
        self.shell = NodeShell(core, self, self, self, self, self, lambda: world.now)

    # A channel (`send` is also a transport's)

    def drain(self, timeout_s: float) -> list[AnyMessage]:
        messages, self.inbox = self.inbox, []
        return messages

    def forget(self, address: str) -> None:
        raise AssertionError("everybody can be reached")

    def wake(self) -> None:
        pass

    # A transport

    def send(self, address: str | Sequence[str], *what: object) -> None:
        if isinstance(address, str):
            self._world.sent(address, *what)  # type: ignore[arg-type]
        else:
            self._travel(address, self.device.num_started, *what)  # type: ignore[arg-type]

    def stream(self, peer: Sequence[str], *what: object) -> PlayedStream:
        self._travel(peer, self.device.num_started + 1, *what)  # type: ignore[arg-type]
        return PlayedStream()

    def _travel(
        self,
        peer: Sequence[str],
        num_steps: int,
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        (receiver,) = peer
        self._world.travelling.append(
            Travelling(self.name, receiver, transfer, pages, offset, on_done, num_steps)
        )

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None:
        assert not self._world.pages_under_way(self.name).intersection(pages)
        self._world.expected[self.name, transfer] = ExpectedPages(
            pages, self.device.num_started, on_progress, on_done, set()
        )

    def abort(self, transfer: Attempt) -> None:
        self._world.expected.pop((self.name, transfer), None)

    def cancel(self, transfer: Attempt) -> None:
        self._world.cancel(self.name, transfer)

    def links(self) -> list[LinkStats]:
        return []

    # A runner

    @property
    def runs_ahead(self) -> bool:
        return self._world.ahead

    def start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None = None, after: Step | None = None
    ) -> DeviceStep:
        under_way = self._world.pages_under_way(self.name, self.device.num_started)
        for part in slices:
            assert part.sequence_id not in self.ended_sequences
            written = part.pages[part.start // PAGE : (part.end - 1) // PAGE + 1]
            assert under_way.isdisjoint(map(int, written)), "it is being sent"
        self.device.start(slices)
        return DeviceStep(slices, self.device)

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        under_way = self._world.pages_under_way(self.name, self.device.num_started)
        assert under_way.isdisjoint(destinations), "it is being sent"
        self.device.copy_pages(sources, destinations)

    def end_sequence(self, sequence_id: int) -> None:
        self.ended_sequences.add(sequence_id)
        self.device.end_sequence(sequence_id)

    # A publisher and heartbeats

    def publish(self, changes: Iterable[CacheChange]) -> None:
        pass

    def republish(self) -> None:
        pass

    def update(self, load: Load) -> None:
        pass


class PlayedStream:
    def layers_ready(self, num_layers: int) -> None:
        pass

    def finish(self) -> None:
        pass


class World:
    """Delivers messages and pages, and plays the model; what arrives when is up to `rng`.

    A page is remembered as the tokens whose KV was written to it, so a page that was sent, reused
    or overwritten wrongly gives a wrong token, as it would with a real model. What a page holds is
    looked at when it is delivered, page by page; until then it must not change. With `lossy`,
    questions to owners and their answers get lost, and time passes whenever all are at rest. With
    `breaking`, links break while pages of a prefill node travel, so requests may fail. With
    `ahead`, a node starts a step before it asks for the tokens of the one before, and its device
    computes each as late as it may. A step samples up to `most_tokens` of a sequence.
    """

    def __init__(
        self,
        rng: random.Random,
        schedulers: dict[str, Scheduler],
        lossy: bool = False,
        breaking: bool = False,
        ahead: bool = False,
        most_tokens: int = 1,
    ) -> None:
        """`schedulers` by address, control and data being one."""
        self.rng = rng
        self.lossy = lossy
        self.breaking = breaking
        self.ahead = ahead
        self.most_tokens = most_tokens
        self.now = 0.0
        self.nodes = {name: PlayedNode(self, name, s) for name, s in schedulers.items()}
        self.num_pages = {name: num_pages_of(s) for name, s in schedulers.items()}
        self.queues: dict[str, deque[AnyMessage | Callable[[], None]]] = {
            name: deque() for name in schedulers
        }
        """Messages, and news of transfers that the transport has not told yet."""
        self.expected: dict[tuple[str, Attempt], ExpectedPages] = {}
        self.travelling: list[Travelling] = []
        self.fetches: set[tuple[str, str, Attempt]] = set()
        """Owner, asker and attempt of everything that was asked for."""
        self.num_delivered = 0
        """Pages that reached somebody who expected them."""
        self.tokens: dict[str, list[int]] = {}
        self.fetched: dict[str, int] = {}
        self.reused: dict[str, tuple[int, int, int]] = {}
        self.ends: dict[str, str] = {}
        self.time_has_passed = not lossy
        self.in_step: set[str] = set()
        self.later: list[tuple[int, str, AnyMessage]] = []
        """Turns from the start, where, what."""
        self.resting = dict.fromkeys(schedulers, False)
        """Had nothing to compute, and has heard nothing since."""

    def post(self, where: str, event: AnyMessage | Callable[[], None]) -> None:
        self.queues[where].append(event)

    def post_later(self, where: str, event: AnyMessage) -> None:
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
                self.resting = dict.fromkeys(self.nodes, False)
            else:
                name = self.rng.choice(choices + busy)
                if self.queues[name] and self.rng.random() < 0.6:
                    self.hear(name)
                else:
                    self.step(name)
        raise AssertionError("the world does not come to rest")

    def hear(self, name: str) -> None:
        """Something reaches the node, which looks at it in its next turn."""
        event = self.queues[name].popleft()
        self.resting[name] = False
        if callable(event):
            event()
        else:
            self.nodes[name].inbox.append(event)

    def step(self, name: str) -> None:
        """One turn of a node's shell; others go on meanwhile."""
        node = self.nodes[name]
        num_started = node.device.num_started
        node.shell.begin_turn()
        has_started = node.device.num_started > num_started
        self.resting[name] = not has_started and not node.shell.is_computing
        self.time_has_passed &= self.resting[name] or not self.lossy
        while self.travelling and self.rng.random() < 0.3:  # layers travel during the step
            self.deliver_some()
        self.in_step.add(name)
        while self.ahead and self.rng.random() > 0.6:
            self.go_on_elsewhere()
        self.in_step.remove(name)
        node.shell.end_turn()
        assert num_pages_of(node.scheduler) == self.num_pages[name], "a page is lost"

    def go_on_elsewhere(self) -> None:
        others = [name for name in self.nodes if name not in self.in_step]
        if self.travelling and (not others or self.rng.random() < 0.5):
            self.deliver_some()
        elif others:
            name = self.rng.choice(others)
            if self.queues[name]:
                self.hear(name)
            else:
                self.step(name)

    def pages_under_way(self, name: str, num_started: int | None = None) -> set[int]:
        """Pages that `name` sends; with `num_started`, those of steps that were started before."""
        return {
            page
            for t in self.travelling
            if t.sender == name and (num_started is None or t.num_steps <= num_started)
            for page in t.pages
        }

    def sent(self, address: str, message: Message) -> None:
        """A node said something."""
        if isinstance(message, Fetch):
            self.fetches.add((address, message.reply_address, message.attempt))
        if address == COORDINATOR:
            self.reply(message)
        elif not isinstance(message, Fetch | FetchRefused) or not self.loses():
            assert not isinstance(message, TokensOut)
            self.post(address, message)  # type: ignore[arg-type]

    def loses(self) -> bool:
        return self.lossy and self.rng.random() < 0.2

    def cancel(self, name: str, transfer: Attempt) -> None:
        """What has not begun is not sent; what has may go on."""
        for t in [t for t in self.travelling if (t.sender, t.transfer) == (name, transfer)]:
            if t.num_delivered == 0 or self.rng.random() < 0.5:
                self.end(t, "cancelled")

    def end(self, travelling: Travelling, error: str = "") -> None:
        self.travelling.remove(travelling)
        self.post(travelling.sender, lambda: travelling.on_done(error))

    def deliver_some(self) -> None:
        """A page or more of one send, or its loss."""
        t = self.rng.choice(self.travelling)
        is_fetch = (t.sender, t.receiver, t.transfer) in self.fetches
        breaks = self.breaking and not is_fetch and self.rng.random() < 0.2
        if breaks or (is_fetch and self.loses()):
            self.end(t, "peer lost")
            expected = self.expected.get((t.receiver, t.transfer))
            if expected is not None and self.rng.random() < 0.5:
                del self.expected[t.receiver, t.transfer]
                self.post(t.receiver, lambda: expected.on_done("peer lost"))
            return
        self.deliver(t, self.rng.randint(1, len(t.pages) - t.num_delivered))

    def deliver(self, travelling: Travelling, num_pages: int) -> None:
        first = travelling.num_delivered
        travelling.num_delivered += num_pages
        pages = travelling.pages[first : travelling.num_delivered]
        device = self.nodes[travelling.sender].device
        device.compute_until(travelling.num_steps)
        contents = [device.contents(page) for page in pages]
        offset = travelling.offset + first
        self.write(travelling.receiver, travelling.transfer, offset, contents)
        if travelling.num_delivered == len(travelling.pages):
            self.end(travelling)

    def write(
        self, name: str, transfer: Attempt, offset: int, contents: list[dict[int, int]]
    ) -> None:
        expected = self.expected.get((name, transfer))
        if expected is None:
            return
        device = self.nodes[name].device
        device.compute_until(expected.num_steps)
        num_leading = leading(expected.arrived)
        for position, content in enumerate(contents, offset):
            page = expected.pages[position]
            assert position not in expected.arrived, "it is sent twice"
            assert page not in self.pages_under_way(name), "it is being sent"
            expected.arrived.add(position)
            device.replace(page, content)
        self.num_delivered += len(contents)
        num_arrived = leading(expected.arrived)
        if len(expected.arrived) == len(expected.pages):
            del self.expected[name, transfer]
            self.post(name, lambda: expected.on_done(""))
        elif num_arrived > num_leading:
            self.post(name, lambda: expected.on_progress(num_arrived))

    def reply(self, message: Message) -> None:
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
