"""`ScaledNode`: a modelled node that speaks the real protocol, with a real `OwnershipWriter`.

The model, fixed so that figures compare: prompts are computed one after another, a step of 20 ms
and 10,000 tokens a second, which a model of 70 billion parameters has on a card or two; a fetch
takes 2 ms + tokens / 200,000 per second while others are computed; an answer has a token every
20 ms, however many there are; pages are evicted leaf by leaf, least recently used first. Of an
answer two messages are sent: the first token, and all others at its end. A heartbeat is sent as a
real companion does it: 12 times a lease, and when work came or went, at most every 0.05 s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from benchmarks.replaying.leaf_lru import LeafLru
from benchmarks.scale.conversations import ANSWER_TOKENS, Conversation
from benchmarks.scale.world import World
from engine.cache.prefix_cache import CacheChange
from node.liveness.heartbeats import HEARTBEATS_PER_LEASE, NEWS_INTERVAL_S, work_changed
from node.ownership.ownership_writer import OwnershipCall, OwnershipWriter
from node.shell.meetings import look_interval_s
from protocol.hashing import PageHash
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import Generate, Heartbeat, Load, NodeInfo, TokenOut, TokensOut

LAYOUT = KVLayout(page_size=16, num_layers=80, num_kv_heads=8, head_dim=128, dtype="bfloat16")
FINGERPRINT = "a model of 70 billion parameters"
NUM_PAGES = 50_000
LEASE_S = 3.0
STEP_S = 0.02
PREFILL_TOKENS_PER_S = 10_000.0
FETCH_BASE_S = 0.002
FETCH_TOKENS_PER_S = 200_000.0
HOP_S = 0.001
"""One control message between two processes."""
REDIS_S = 0.0005
"""One call to Redis, with its way there and back."""


@dataclass(eq=False)
class Work:
    """One request at the node that computes its prompt, and at the one that answers."""

    request: Generate
    conversation: Conversation
    num_tokens: int
    """The length of the prompt."""
    answers_at: ScaledNode
    fetched_pages: int = 0
    fetch_ends: float = 0.0

    @property
    def prompt_hashes(self) -> list[PageHash]:
        """The hashes of the prompt's pages."""
        return self.conversation.hashes[: self.num_tokens // LAYOUT.page_size]

    @property
    def all_hashes(self) -> list[PageHash]:
        """The hashes of the prompt's and the answer's pages. The last token of an answer is never
        computed."""
        num_tokens = self.num_tokens + ANSWER_TOKENS - 1
        return self.conversation.hashes[: num_tokens // LAYOUT.page_size]


class ScaledNode:
    """Computes prompts and answers, tells Redis what it owns and coordinators how busy it is."""

    def __init__(self, cluster: World, name: str, role: Role) -> None:
        self._cluster = cluster
        self._events = cluster.events
        self.role: Role = role
        self.info = NodeInfo(
            node=Node(name, 1_700_000_000_000_000_000),
            control_address=f"{name}.cluster.local:40000#0123456789abcdef",
            data_addresses=(f"{name}.cluster.local:40001",),
            layout=LAYOUT,
            model_fingerprint=FINGERPRINT,
            num_pages=NUM_PAGES,
            max_running_requests=256,
            max_queued_requests=1_024,
            device="cuda:0 (NVIDIA H200)",
            chunk_tokens=2_048,
        )
        self.cache = LeafLru(NUM_PAGES)
        self._prompts: deque[Work] = deque()
        self._is_computing = False
        self._num_answers = 0
        """Answers that are given here, those whose prompts are still computed included."""
        self._writer = OwnershipWriter(self.info, LEASE_S)
        self._is_calling = False
        self._pump_number = 0
        self._told: Load | None = None
        self._beat_at = 0.0
        self._is_due = False
        self._pump()
        self._beat()
        first_look_s = cluster.chance.uniform(0.0, look_interval_s(cluster.num_nodes))
        self._events.after(first_look_s, self._look)

    def begin(self) -> None:
        """Takes a request that is to be answered here; another node may compute its prompt."""
        self._num_answers += 1
        self._tell_news()

    def compute(self, work: Work) -> None:
        """Takes a prompt to compute, after the pages that another node has are here."""
        request, events = work.request, self._events
        work.fetch_ends = events.now
        if request.fetch_node is not None:
            source = self._cluster.cache_of(request.fetch_node.name)
            there = min(request.fetch_pages, source.match(work.prompt_hashes))
            here = self.cache.match(work.prompt_hashes)
            if there > here:
                work.fetched_pages = there
                num_tokens = (there - here) * LAYOUT.page_size
                work.fetch_ends += FETCH_BASE_S + num_tokens / FETCH_TOKENS_PER_S
        self._prompts.append(work)
        self._tell_news()
        self._compute_next()

    def _compute_next(self) -> None:
        now = self._events.now
        if self._is_computing or not self._prompts:
            return
        self._is_computing = True
        work = self._prompts[0]
        hashes = work.prompt_hashes
        num_hits = self.cache.match(hashes)
        self.cache.use(hashes[:num_hits], now)
        num_cached = max(num_hits, work.fetched_pages) * LAYOUT.page_size
        num_cached = min(num_cached, work.num_tokens - 1)
        seconds = STEP_S + (work.num_tokens - num_cached) / PREFILL_TOKENS_PER_S
        wait_s = max(0.0, work.fetch_ends - now)
        self._events.after(wait_s + seconds, self._computed, num_cached)

    def _computed(self, num_cached: int) -> None:
        work = self._prompts.popleft()
        self._is_computing = False
        self.store(work.prompt_hashes)
        if work.answers_at is self:
            self.answer(work, num_cached)
        else:
            self._events.after(HOP_S, work.answers_at.answer, work, num_cached)
        self._tell_news()
        self._compute_next()

    def answer(self, work: Work, num_cached: int) -> None:
        """Sends the first token of an answer, whose prompt is here now, and later the rest."""
        self.store(work.prompt_hashes)
        self._send(work, TokenOut(work.request.attempt, 0, [1], cached_tokens=num_cached))
        self._events.after((ANSWER_TOKENS - 1) * STEP_S, self._answered, work)

    def _answered(self, work: Work) -> None:
        rest = [1] * (ANSWER_TOKENS - 1)
        self._send(work, TokenOut(work.request.attempt, 1, rest, "length"))
        self.store(work.all_hashes)
        self._num_answers -= 1
        self._tell_news()

    def store(self, hashes: list[PageHash]) -> None:
        """Keeps pages, and tells Redis of those that are new and of those that had to go."""
        stored, removed = self.cache.insert(hashes, self._events.now)
        if stored or removed:
            self._writer.publish([CacheChange(removed, stored)])
            self._pump()

    def _send(self, work: Work, out: TokenOut) -> None:
        message = TokensOut([out], self.info.node)
        self._cluster.send_to_coordinator(work.request.reply_address, message)

    # Heartbeats

    def _load(self) -> Load:
        num_free = self.cache.num_free
        return Load(
            role=self.role,
            num_running=self._num_answers + len(self._prompts),
            queued_tokens=sum(work.num_tokens for work in self._prompts),
            free_pages=num_free,
            cached_pages=NUM_PAGES - num_free,
            prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
            step_s=STEP_S,
            link_bytes_per_s=FETCH_TOKENS_PER_S * LAYOUT.page_bytes / LAYOUT.page_size,
        )

    def heartbeat(self) -> Heartbeat:
        """Returns the heartbeat that it would send now."""
        return Heartbeat(self.info, self._load(), LEASE_S)

    def _beat(self) -> None:
        interval_s = LEASE_S / HEARTBEATS_PER_LEASE
        wait_s = self._beat_at + interval_s - self._events.now
        if wait_s <= 0.0 or self._told is None:
            self._tell()
            wait_s = interval_s
        self._events.after(wait_s, self._beat)

    def _tell_news(self) -> None:
        if self._is_due or (self._told is not None and not work_changed(self._told, self._load())):
            return
        self._is_due = True
        wait_s = max(0.0, self._beat_at + NEWS_INTERVAL_S - self._events.now)
        self._events.after(wait_s, self._tell)

    def _tell(self) -> None:
        self._is_due = False
        self._beat_at = self._events.now
        self._told = self._load()
        self._cluster.send_heartbeat(self._writer.coordinators, self.heartbeat())

    # Redis

    def _look(self) -> None:
        """Looks who lives, to make links to nodes that are new."""
        num_listed = self._cluster.redis.meet()
        self._events.after(look_interval_s(num_listed), self._look)

    def _pump(self, number: int | None = None) -> None:
        if self._is_calling or number not in (None, self._pump_number):
            return  # a later call for the same thing
        self._pump_number += 1
        now = self._events.now
        call = self._writer.next_call(now)
        if call is None:
            wait_s = max(0.001, self._writer.wake_at - now)
            self._events.after(wait_s, self._pump, self._pump_number)
            return
        self._is_calling = True
        self._events.after(REDIS_S, self._reply, call)

    def _reply(self, call: OwnershipCall) -> None:
        result = self._cluster.redis.write(self.info.node, call)
        self._is_calling = False
        self._writer.replied(call, result, self._events.now)
        self._pump()
