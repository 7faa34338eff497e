"""Prefill and decode nodes without a model, to measure everything around the model.

They speak the real protocol over the real channel, send real heartbeats and publish the pages of
a real `PrefixCache` in Redis; a `StubEngine` models the computing. No KV moves and no torch is
imported.

A decode stub answers every `Generate` at once, with all tokens in one message. With `simulate` it
first asks the prefill node of the route, or is busy itself when there is none, and keeps the
pages as a real node does. A fetch from another node succeeds after its modelled time, without
asking that node. The answer is always the token ANSWER, again and again.

    .venv/bin/python -m benchmarks.clusters.stub_nodes decode --name d0 --redis-url redis://127.0.0.1:6379/0
"""

from __future__ import annotations

import argparse
import logging
import signal
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass

from benchmarks.clusters.stub_engine import Prompt, StubEngine
from node.shell.heartbeat import HEARTBEATS_PER_LEASE, Heartbeats
from node.shell.publisher import OwnershipPublisher
from protocol.channel import Channel, PeerUnreachable
from protocol.counters import NodeCounters
from protocol.hashing import PageHasher, tokens_from_bytes
from protocol.ids import Attempt, Node, Role
from protocol.layout import KVLayout
from protocol.messages import (
    AnyMessage,
    CacheFlushed,
    Cancel,
    Failed,
    FlushCache,
    Generate,
    Load,
    Message,
    NodeInfo,
    Prefill,
    PrefillDone,
    TokenOut,
    TokensOut,
)

log = logging.getLogger(__name__)

ANSWER = 100
"""The id of the only token that is ever answered."""
HOST = "127.0.0.1"
MAX_WAIT_S = 0.1
STALL_S = 30.0


@dataclass(frozen=True)
class StubSettings:
    """Settings of a stub node. Pages and tokens have the sizes that its engine models."""

    name: str
    redis_url: str
    num_pages: int = 100_000
    page_size: int = 16
    lease_s: float = 3.0
    max_running_requests: int = 256
    max_queued_requests: int = 4096
    prefill_tokens_per_s: float = 0.0
    """The rate of computing, which heartbeats tell the router; 0: prompts take no time, and the
    router is told that nothing was measured yet."""
    prefill_base_s: float = 0.0
    """What every prompt takes beside the time of its uncached tokens."""
    fetch_tokens_per_s: float = 0.0
    """The rate of fetches from other nodes; 0: they take no time."""
    fetch_base_s: float = 0.0
    """What every fetch takes beside the time of its tokens."""

    def prefill_s(self, uncached_tokens: int) -> float:
        """Returns how long a prompt takes to compute."""
        return self._seconds(self.prefill_base_s, uncached_tokens, self.prefill_tokens_per_s)

    def fetch_s(self, num_tokens: int) -> float:
        """Returns how long the pages of so many tokens take from another node."""
        return self._seconds(self.fetch_base_s, num_tokens, self.fetch_tokens_per_s)

    def _seconds(self, base_s: float, num_tokens: int, tokens_per_s: float) -> float:
        return base_s + num_tokens / tokens_per_s if tokens_per_s else 0.0


class StubNode(ABC):
    """What stubs of both roles share: channel, heartbeats, publisher, engine and the loop."""

    def __init__(self, role: Role, settings: StubSettings) -> None:
        self._role: Role = role
        self.channel = Channel(HOST)
        layout = KVLayout(
            num_layers=2,
            page_size=settings.page_size,
            num_kv_heads=2,
            head_dim=16,
            dtype="float32",
        )
        self.info = NodeInfo(
            node=Node(settings.name, time.time_ns()),
            control_address=self.channel.address,
            data_addresses=(),
            layout=layout,
            model_fingerprint="stub",
            num_pages=settings.num_pages,
            max_running_requests=settings.max_running_requests,
            max_queued_requests=settings.max_queued_requests,
            device="none",
        )
        hasher = PageHasher(self.info.model_fingerprint, layout)
        self.engine = StubEngine(hasher, settings.num_pages, settings.prefill_s, settings.fetch_s)
        self._settings = settings
        self._generated_tokens = 0
        self._next_load = 0.0
        self._running = True
        self._publisher = OwnershipPublisher(
            settings.redis_url, self.info, settings.lease_s, self.stop
        )
        self._heartbeats = Heartbeats(
            self.channel.outgoing(),
            self.info,
            settings.lease_s,
            STALL_S,
            lambda: self._publisher.coordinators,
        )

    def run(self) -> None:
        """Serves until `stop`."""
        self._publisher.start()
        self._heartbeats.start()
        try:
            while self._running:
                self._step()
        finally:
            self._heartbeats.close()
            self._publisher.close()
            self.channel.close()

    def stop(self) -> None:
        """Ends `run`. May be called from any thread and from a signal handler."""
        self._running = False
        self.channel.wake()

    def load(self) -> Load:
        """Returns the node's state for its heartbeats."""
        engine = self.engine
        return Load(
            role=self._role,
            num_running=self.num_running(),
            num_waiting=engine.num_queued,
            queued_tokens=engine.queued_tokens(time.monotonic()),
            free_pages=engine.cache.num_free_pages,
            cached_pages=engine.cache.num_cached_pages,
            held_pages=engine.cache.num_held_pages,
            prefill_tokens_per_s=self._settings.prefill_tokens_per_s,
            step_s=self._settings.prefill_base_s,
            link_bytes_per_s=self._settings.fetch_tokens_per_s
            * (self.info.layout.page_bytes / self.info.layout.page_size),
            counters=NodeCounters(
                computed_tokens=engine.counts.computed_tokens,
                reused_tokens=engine.counts.reused_tokens,
                fetched_tokens=engine.counts.fetched_tokens,
                generated_tokens=self._generated_tokens,
                requests=engine.counts.requests,
                requests_hit=engine.counts.requests_hit,
                pages_evicted=engine.cache.num_evicted_pages,
            ),
        )

    def num_running(self) -> int:
        """Returns how many requests are being answered here."""
        return 0

    def handle(self, message: AnyMessage, now: float) -> None:
        """Does what a message asks for; subclasses know the messages of their role."""
        if isinstance(message, Cancel):
            self.cancel(message.attempt, now)
        elif isinstance(message, FlushCache):
            reply = CacheFlushed(self.info.node, message.flush_id, self.engine.cache.flush())
            self.send(message.reply_address, reply)

    @abstractmethod
    def computed(self, prompt: Prompt) -> None:
        """Is called when the engine has computed a prompt."""

    def cancel(self, attempt: Attempt, now: float) -> None:
        """Drops the attempt and older ones of its request."""
        self.engine.cancel(attempt, now)

    def flush(self) -> None:  # noqa: B027
        """Sends what a turn of the loop has gathered; a prefill node gathers nothing."""

    def send(self, address: str, message: Message) -> None:
        """Sends a message; drops it, with a log line, if its receiver cannot be reached."""
        try:
            self.channel.send(address, message)
        except PeerUnreachable as error:
            log.warning("message dropped: %s", error)

    def _step(self) -> None:
        """One turn of the loop: waits for a message or the end of a prompt, and acts on it."""
        due = self.engine.next_finish()
        wait_s = MAX_WAIT_S if due is None else min(MAX_WAIT_S, max(0.0, due - time.monotonic()))
        messages = self.channel.drain(wait_s)
        now = time.monotonic()
        for message in messages:
            self.handle(message, now)
        for prompt in self.engine.finished(now):
            self.computed(prompt)
        self.flush()
        if changes := self.engine.cache.take_changes():
            self._publisher.publish(changes)
        if now >= self._next_load:
            self._next_load = now + self._settings.lease_s / HEARTBEATS_PER_LEASE
            self._heartbeats.update(self.load())


class StubPrefill(StubNode):
    """Answers every `Prefill` with `PrefillDone` when its engine's time for it is over."""

    def __init__(self, settings: StubSettings) -> None:
        super().__init__("prefill", settings)
        self._askers: dict[Attempt, str] = {}

    def handle(self, message: AnyMessage, now: float) -> None:
        if not isinstance(message, Prefill):
            return super().handle(message, now)
        tokens = tokens_from_bytes(message.tokens)
        prompt = self.engine.prompt(message.attempt, tokens, message.namespace, 0)
        if prompt.num_pages > self._settings.num_pages:
            reason = f"{prompt.num_pages} pages never fit"
            failed = Failed(message.attempt, reason, "request", self.info.node)
            return self.send(message.reply_address, failed)
        self._askers[message.attempt] = message.reply_address
        self.engine.compute(prompt, now, message.fetch_pages)

    def computed(self, prompt: Prompt) -> None:
        asker = self._askers.pop(prompt.attempt)
        done = PrefillDone(
            prompt.attempt, [ANSWER], prompt.cached_tokens, self.info.node, prompt.fetched_tokens
        )
        self.send(asker, done)

    def cancel(self, attempt: Attempt, now: float) -> None:
        super().cancel(attempt, now)
        for gone in [known for known in self._askers if known.superseded_by(attempt)]:
            del self._askers[gone]


@dataclass(eq=False)
class _StubAnswer:
    """A request of a simulating decode stub, while its prompt is computed, here or elsewhere."""

    request: Generate
    prompt: Prompt


class StubDecode(StubNode):
    """Answers every `Generate`. What one turn of the loop answers goes out in one `TokensOut`."""

    def __init__(self, settings: StubSettings, simulate: bool = False) -> None:
        super().__init__("decode", settings)
        self._simulate = simulate
        self._answers: dict[Attempt, _StubAnswer] = {}
        self._outs: defaultdict[str, list[TokenOut]] = defaultdict(list)

    def num_running(self) -> int:
        return len(self._answers)

    def handle(self, message: AnyMessage, now: float) -> None:
        if isinstance(message, Generate):
            if self._simulate:
                self._accept(message, now)
            else:
                self._answer(message, 0, 0, 0)
        elif isinstance(message, PrefillDone):
            self._received(message, now)
        elif isinstance(message, Failed):
            self._failed(message)
        else:
            super().handle(message, now)

    def computed(self, prompt: Prompt) -> None:
        answer = self._answers.pop(prompt.attempt)
        self._answer(answer.request, prompt.cached_tokens, prompt.fetched_tokens, 0)

    def cancel(self, attempt: Attempt, now: float) -> None:
        super().cancel(attempt, now)
        for gone in [known for known in self._answers if known.superseded_by(attempt)]:
            answer = self._answers.pop(gone)
            self.engine.release(answer.prompt)
            if answer.request.prefill_node is not None:
                self.send(answer.request.prefill_address, Cancel(gone))

    def flush(self) -> None:
        for address, outs in self._outs.items():
            self.send(address, TokensOut(outs, self.info.node))
        self._outs.clear()

    def _accept(self, request: Generate, now: float) -> None:
        """Computes the prompt here if the route has no prefill node; else takes the pages for it
        and asks that node. Says `Failed` if there is no room."""
        attempt = request.attempt
        tokens = tokens_from_bytes(request.tokens)
        prompt = self.engine.prompt(attempt, tokens, request.namespace, request.max_new_tokens)
        if request.prefill_node is None:
            self._answers[attempt] = _StubAnswer(request, prompt)
            return self.engine.compute(prompt, now, request.fetch_pages)
        if not self.engine.acquire(prompt, now):
            failed = Failed(attempt, "no pages are free", "busy", self.info.node)
            return self.send(request.reply_address, failed)
        assert prompt.held is not None
        self._answers[attempt] = _StubAnswer(request, prompt)
        ask = Prefill(
            attempt=attempt,
            tokens=request.tokens,
            namespace=request.namespace,
            sampling=request.sampling,
            skip_pages=prompt.held.num_cached_pages,
            reply_address=self.info.control_address,
            data_addresses=self.info.data_addresses,
            fetch_node=request.fetch_node,
            fetch_address=request.fetch_address,
            fetch_pages=request.fetch_pages,
        )
        self.send(request.prefill_address, ask)

    def _received(self, done: PrefillDone, now: float) -> None:
        """Keeps the prompt's pages, as if they had been received, and answers."""
        answer = self._answers.pop(done.attempt, None)
        if answer is None:
            return
        held = answer.prompt.held
        assert held is not None
        transferred = len(answer.prompt.hashes) - held.num_cached_pages
        self.engine.keep(answer.prompt, now)
        self._answer(answer.request, done.cached_tokens, done.fetched_tokens, transferred)

    def _failed(self, failed: Failed) -> None:
        """Gives up the request that the prefill node could not serve, and tells the coordinator."""
        answer = self._answers.pop(failed.attempt, None)
        if answer is not None:
            self.engine.release(answer.prompt)
            self.send(answer.request.reply_address, failed)

    def _answer(
        self, request: Generate, cached_tokens: int, fetched_tokens: int, transferred_pages: int
    ) -> None:
        """Answers the whole request, with the next `flush`."""
        self._generated_tokens += request.max_new_tokens
        out = TokenOut(
            attempt=request.attempt,
            start=0,
            tokens=[ANSWER] * request.max_new_tokens,
            finish="length",
            cached_tokens=cached_tokens,
            transferred_pages=transferred_pages,
            fetched_tokens=fetched_tokens,
        )
        self._outs[request.reply_address].append(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="A node without a model.")
    parser.add_argument("role", choices=("prefill", "decode"))
    parser.add_argument("--name", required=True)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--num-pages", type=int, default=100_000)
    parser.add_argument("--prefill-tokens-per-s", type=float, default=0.0, help="0: instant")
    parser.add_argument("--prefill-base-s", type=float, default=0.0)
    parser.add_argument("--fetch-tokens-per-s", type=float, default=0.0, help="0: instant")
    parser.add_argument("--fetch-base-s", type=float, default=0.0)
    parser.add_argument("--simulate", action="store_true", help="decode: ask prefill, keep pages")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    settings = StubSettings(
        given.name,
        given.redis_url,
        num_pages=given.num_pages,
        prefill_tokens_per_s=given.prefill_tokens_per_s,
        prefill_base_s=given.prefill_base_s,
        fetch_tokens_per_s=given.fetch_tokens_per_s,
        fetch_base_s=given.fetch_base_s,
    )
    node = (
        StubPrefill(settings) if given.role == "prefill" else StubDecode(settings, given.simulate)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    node.run()


if __name__ == "__main__":
    main()
