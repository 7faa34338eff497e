"""The coordinator's shell: messages in and out, deadlines, and running answers.

Everything runs on one event loop; decisions are the tracker's, the router's and the registry's.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from coordinator.config import CoordinatorConfig
from coordinator.cost import Assigned
from coordinator.detokenizer import Detokenizer, StopStrings
from coordinator.follower import OwnershipFollower
from coordinator.generation import Generation
from coordinator.index import PrefixIndex
from coordinator.intake import make_request
from coordinator.registry import Registry
from coordinator.router import Demand, NoRoute, Route, Router
from coordinator.schema import BadRequest, Prompt
from coordinator.tokenizer import Tokenizer
from coordinator.tracker import Ended, Outcome, Produced, Send, Stray, Tracker
from protocol.channel import Channel, PeerUnreachable
from protocol.hashing import PageHasher
from protocol.messages import (
    AnyMessage,
    CacheFlushed,
    Cancel,
    Failed,
    FlushCache,
    Goodbye,
    Heartbeat,
    NodeInfo,
    TokensOut,
)

log = logging.getLogger(__name__)

TICK_S = 0.05
FLUSH_TIMEOUT_S = 5.0
TIMED_OUT = 504


class Unavailable(Exception):
    """503: no node can serve now."""


class TooBusy(Exception):
    """429: too many requests are unfinished."""


def _stop_if_it_failed(task: asyncio.Task[None]) -> None:
    """Half a coordinator is worse than none: without its tasks this process ends."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s failed, the coordinator stops", task.get_name(), exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


@dataclass
class Totals:
    """Lifetime counts over all requests of this coordinator."""

    requests: int = 0
    requests_hit: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    transferred_pages: int = 0
    retries: int = 0
    failed: int = 0


@dataclass
class _Flush:
    """A cache flush under way; `answers`: pages forgotten, by node name."""

    expected: set[str]
    answers: dict[str, int] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class Service:
    """Use as: `start()`, then `submit` and wait on the `Generation`; `close()` at the end."""

    def __init__(self, config: CoordinatorConfig, tokenizer: Tokenizer, channel: Channel) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.registry = Registry()
        self.index = PrefixIndex()
        self.totals = Totals()
        self._channel = channel
        self._router = Router(config.local_prefill_max_tokens)
        self._tracker = Tracker(self._route, channel.address)
        self._follower = OwnershipFollower(config.redis_url, channel.address, self.index)
        self._generations: dict[str, Generation] = {}
        self._rids: set[str] = set()
        self._flushes: dict[str, _Flush] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._drain)
        self._tasks = [
            asyncio.create_task(self._follower.run(), name="ownership"),
            asyncio.create_task(self._tick(), name="tick"),
        ]
        for task in self._tasks:
            task.add_done_callback(_stop_if_it_failed)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._follower.close()
        self._channel.close()

    @property
    def redis_connected(self) -> bool:
        return self._follower.connected

    @property
    def num_running(self) -> int:
        return len(self._tracker)

    @property
    def ready(self) -> bool:
        """A request would find a node."""
        return bool(self.registry.live("decode"))

    @property
    def max_total_tokens(self) -> int:
        """The longest prompt plus answer that a decode node has room for."""
        nodes = self.registry.live("decode")
        return max((n.info.num_pages * n.info.layout.page_size for n in nodes), default=0)

    @property
    def max_unfinished(self) -> int:
        """Requests that the decode nodes, or this process, keep at once; more get a 429."""
        infos = [live.info for live in self.registry.live("decode")]
        room = sum(info.max_running_requests + info.max_queued_requests for info in infos)
        return min(room, self.config.max_queued_requests)

    def submit(self, prompt: Prompt, tokens: list[int], choice: int, rid: str | None) -> Generation:
        """Starts one answer to `tokens`. Raises BadRequest, TooBusy or Unavailable; then nothing
        is kept.

        `choice` tells the n answers of one prompt apart: each gets its own seed.
        """
        now = self._now()
        # Ours, so that a rid that is used again never meets messages of its earlier use.
        request_id = uuid.uuid4().hex
        rid = rid or request_id
        if rid in self._rids:
            raise BadRequest(f"a request with rid {rid!r} is running")
        if not self.ready:
            raise Unavailable("no decode node is alive; start one, or try again in a moment")
        if len(self._tracker) >= self.max_unfinished:
            raise TooBusy(f"{len(self._tracker)} requests are unfinished; try again in a moment")
        limit = min(self.tokenizer.max_model_len, self.max_total_tokens)
        request = make_request(request_id, prompt, tokens, choice, self.tokenizer, limit)
        sampling = prompt.sampling
        decode = partial(self.tokenizer.decode, skip_special_tokens=sampling.skip_special_tokens)
        generation = Generation(
            request_id=request_id,
            rid=rid,
            prompt_tokens=len(request.tokens),
            detokenizer=Detokenizer(decode, request.tokens),
            stops=StopStrings(sampling.stops),
            stop_token_ids=frozenset(request.stop_token_ids),
            no_stop_trim=sampling.no_stop_trim,
            started=now,
        )
        self._generations[request_id] = generation
        self._rids.add(rid)
        try:
            self._carry_out(self._tracker.submit(request, now))
        except BaseException as error:
            self.cancel(request_id)
            if isinstance(error, NoRoute):
                raise Unavailable(str(error)) from None
            raise
        return generation

    def cancel(self, request_id: str) -> None:
        """The client is gone: frees what its request holds, on every node. Harmless twice."""
        self._carry_out(self._tracker.cancel(request_id))
        self._forget(request_id)

    async def flush_cache(self) -> dict[str, int]:
        """Tells every node to forget its unheld pages; pages by node name. Raises TimeoutError."""
        flush_id = uuid.uuid4().hex
        nodes = self.registry.live()
        flush = self._flushes[flush_id] = _Flush({live.node.name for live in nodes})
        try:
            message = FlushCache(self._channel.address, flush_id)
            for live in nodes:
                self._send(Send(live.info.control_address, message))
            if nodes:
                await asyncio.wait_for(flush.complete.wait(), FLUSH_TIMEOUT_S)
            return flush.answers
        finally:
            del self._flushes[flush_id]

    def _route(
        self,
        tokens: list[int],
        cache_salt: str,
        max_new_tokens: int,
        assigned: Mapping[str, Assigned],
        avoid: Collection[str],
    ) -> Route:
        model = self.registry.model
        if model is None:
            raise NoRoute("no node is alive")
        hashes = PageHasher(model.fingerprint, model.layout).hashes(tokens, cache_salt)
        demand = Demand(
            num_tokens=len(tokens),
            num_pages=model.layout.num_pages(len(tokens) + max(1, max_new_tokens) - 1),
            owned_pages=self.index.match(hashes),
        )
        return self._router.route(demand, self.registry, assigned, avoid)

    def _drain(self) -> None:
        """The channel's descriptor is edge-triggered: read until nothing is left."""
        while messages := self._channel.drain():
            for message in messages:
                try:
                    self._handle(message)
                except Exception:  # it must not cost the messages behind it
                    log.exception("a %s could not be handled", type(message).__name__)

    def _handle(self, message: AnyMessage) -> None:
        if isinstance(message, TokensOut):
            self._carry_out(self._tracker.tokens(message, self._now()))
        elif isinstance(message, Heartbeat):
            self._lost(self.registry.heartbeat(message, self._now()))
        elif isinstance(message, Failed):
            log.warning("attempt %s failed: %s", message.attempt, message.reason)
            self._carry_out(self._tracker.failed(message, self._now()))
        elif isinstance(message, Goodbye):
            self._lost(self.registry.remove(message.node))
        elif isinstance(message, CacheFlushed):
            self._note_flushed(message)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._now()
            self._drain()
            for info in self.registry.expire(now):
                self._lost(info)
            self._carry_out(self._tracker.tick(now))
            for generation in list(self._generations.values()):
                if now - generation.started > self.config.request_timeout_s:
                    self._give_up(generation, now)

    def _give_up(self, generation: Generation, now: float) -> None:
        seconds = self.config.request_timeout_s
        message = f"the request did not end within {seconds:g} s"
        self._carry_out(self._tracker.cancel(generation.request_id))
        self._ended(Ended(generation.request_id, "error", message, TIMED_OUT))

    def _lost(self, info: NodeInfo | None) -> None:
        """A life of a node is over: nothing queued for it may reach the next one."""
        if info is not None:
            self._channel.forget(info.control_address)
            self._carry_out(self._tracker.node_lost(info.node, self._now()))

    def _carry_out(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Send):
                self._send(outcome)
            elif isinstance(outcome, Produced):
                self._produced(outcome)
            elif isinstance(outcome, Ended):
                self._ended(outcome)
            else:
                self._cancel_stray(outcome)

    def _cancel_stray(self, stray: Stray) -> None:
        for live in self.registry.live("decode"):
            if live.node == stray.node:
                self._send(Send(live.info.control_address, Cancel(stray.attempt)))

    def _produced(self, outcome: Produced) -> None:
        generation = self._generations.get(outcome.request_id)
        if generation is None or generation.done:
            return
        if generation.produced(outcome, self._now()):
            self._finished(generation)
            self.cancel(outcome.request_id)

    def _ended(self, outcome: Ended) -> None:
        generation = self._forget(outcome.request_id)
        if generation is None or generation.done:
            return
        generation.ended(outcome, self._now())
        self._finished(generation)

    def _forget(self, request_id: str) -> Generation | None:
        generation = self._generations.pop(request_id, None)
        if generation is not None:
            self._rids.discard(generation.rid)
        return generation

    def _finished(self, generation: Generation) -> None:
        totals = self.totals
        totals.requests += 1
        totals.requests_hit += generation.cached_tokens > 0
        totals.prompt_tokens += generation.prompt_tokens
        totals.cached_tokens += generation.cached_tokens
        totals.completion_tokens += len(generation.output_ids)
        totals.transferred_pages += generation.transferred_pages
        totals.retries += max(0, generation.attempts - 1)
        totals.failed += generation.error is not None
        route = generation.route
        log.info(
            "request %s ended: %s, %d + %d tokens, %d cached, attempts %d, %s",
            generation.rid,
            generation.error or generation.finish_reason,
            generation.prompt_tokens,
            len(generation.output_ids),
            generation.cached_tokens,
            generation.attempts,
            route.reason if route else "not routed",
        )

    def _send(self, work: Send) -> None:
        try:
            self._channel.send(work.address, work.message)
        except PeerUnreachable as error:
            # Its lease ends soon, and then its requests are sent elsewhere.
            log.warning("message dropped: %s", error)

    def _note_flushed(self, message: CacheFlushed) -> None:
        flush = self._flushes.get(message.flush_id)
        if flush is not None:
            flush.answers[message.node.name] = message.num_pages
            if flush.expected <= flush.answers.keys():
                flush.complete.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
