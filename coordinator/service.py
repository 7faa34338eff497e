"""The coordinator's shell: messages in and out, deadlines, and running answers.

Everything runs on one event loop; decisions are the tracker's, the placement's and the registry's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

from coordinator.answers.generation import Generation
from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.core.hot_prefixes import HotPrefixes
from coordinator.core.registry import LiveNode, Model, Registry
from coordinator.core.totals import Totals
from coordinator.core.tracker import Ended, Outcome, Produced, Send, Stray, Tracker
from coordinator.http.intake import make_request
from coordinator.http.schema import BadRequest, Prompt
from coordinator.inquiry import Inquiries
from coordinator.ownership.follower import OwnershipFollower
from coordinator.ownership.index import PrefixIndex
from coordinator.routing.dispatch import DispatchQueue
from coordinator.routing.placement import Placement, Work
from coordinator.routing.policies import POLICIES
from coordinator.routing.router import Candidates, NoRoute, Route, Router
from protocol.admission import admission_tokens, most_tokens
from protocol.channel import Channel, PeerUnreachable
from protocol.hashing import PageHasher
from protocol.messages import (
    AnyMessage,
    AuditReply,
    CacheFlushed,
    Cancel,
    Failed,
    FlushCache,
    Generate,
    Goodbye,
    Heartbeat,
    Message,
    NodeInfo,
    TokensOut,
)
from protocol.namespace import Namespace

log = logging.getLogger(__name__)

TICK_S = 0.05
TIMED_OUT = 504
NO_NODE = "no decode node takes requests: none is alive, or all are draining"


class Unavailable(Exception):
    """503: no node can serve now."""


class TooBusy(Exception):
    """429: too many requests are unfinished."""


def _stop_if_it_failed(task: asyncio.Task[None]) -> None:
    """Half a coordinator is worse than none: without its tasks this process ends."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s failed, the coordinator stops", task.get_name(), exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


class Service:
    """Use as: `start()`, then `submit` and wait on the `Generation`; `close()` at the end."""

    def __init__(self, config: CoordinatorConfig, tokenizer: Tokenizer, channel: Channel) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.registry = Registry()
        self.index = PrefixIndex()
        self.totals = Totals()
        self.hot_prefixes = HotPrefixes()
        # Not its bound method: a copy of the policy, which explains, has a copy of the chance too.
        chance = partial(random.Random.random, random.Random(config.routing_seed or None))
        policy = POLICIES[config.policy](chance)
        self.placement = Placement(
            self.registry, self.index, Router(policy, config.local_prefill_max_tokens)
        )
        self.follower = OwnershipFollower(config.redis_url, channel.address, self.index)
        self._channel = channel
        queue = DispatchQueue(self.placement, policy.binds_late)
        self._tracker = Tracker(self.placement, queue, self._work, channel.address)
        self._queue = queue
        self._next_dispatch: asyncio.TimerHandle | None = None
        self._hasher: tuple[Model, PageHasher] | None = None
        """Of the model served last."""
        self._generations: dict[str, Generation] = {}
        self._rids: set[str] = set()
        self._inquiries = Inquiries()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._drain)
        self._tasks = [
            asyncio.create_task(self.follower.run(), name="ownership"),
            asyncio.create_task(self._tick(), name="tick"),
        ]
        for task in self._tasks:
            task.add_done_callback(_stop_if_it_failed)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        if self._next_dispatch is not None:
            self._next_dispatch.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.follower.close()
        self._channel.close()

    @property
    def num_running(self) -> int:
        """Unfinished requests; `num_waiting` of them are not bound to a node yet."""
        return len(self._tracker)

    @property
    def num_waiting(self) -> int:
        return self._tracker.num_waiting

    @property
    def ready(self) -> bool:
        """A request would find a node."""
        return bool(self.placement.open("decode"))

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus answer that model and nodes serve."""
        return self.registry.context_length(self.tokenizer.max_model_len)

    @property
    def max_total_tokens(self) -> int:
        """The longest prompt plus answer that a decode node has room for."""
        nodes = self.placement.open("decode")
        return max((n.info.num_pages * n.info.layout.page_size for n in nodes), default=0)

    @property
    def max_unfinished(self) -> int:
        """Requests that the decode nodes, or this process, keep at once; more get a 429."""
        infos = [live.info for live in self.placement.open("decode")]
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
            raise Unavailable(NO_NODE)
        if len(self._tracker) >= self.max_unfinished:
            raise TooBusy(f"{len(self._tracker)} requests are unfinished; try again in a moment")
        limit = min(self.max_model_len, self.max_total_tokens)
        request = make_request(request_id, prompt, tokens, choice, self.tokenizer, limit)
        generation = Generation.of(request, rid, prompt, self.tokenizer, now)
        self._generations[request_id] = generation
        self._rids.add(rid)
        try:
            self._carry_out(self._tracker.submit(request, now))
            self._plan_dispatch(now)
        except BaseException as error:
            self.cancel(request_id)
            if isinstance(error, NoRoute):
                raise Unavailable(str(error)) from None
            raise
        return generation

    def cancel(self, request_id: str) -> None:
        """The client is gone: frees what its request holds, on every node. Harmless twice."""
        self._carry_out(self._tracker.cancel(request_id, self._now()))
        self._forget(request_id)

    async def flush_cache(
        self, nodes: list[LiveNode], cache_salt: str | None, timeout_s: float
    ) -> dict[str, int]:
        """Tells nodes to forget their unheld pages, of one tenant or (None) of all; pages by name
        of the nodes that answered in time."""
        return await self.ask(
            nodes,
            lambda inquiry_id, address: FlushCache(address, inquiry_id, cache_salt),
            timeout_s,
        )

    async def ask(
        self, nodes: list[LiveNode], question: Callable[[str, str], Message], timeout_s: float
    ) -> dict[str, Any]:
        """Sends `question(inquiry id, reply address)` to nodes; the answers, by node name, of
        those that answered in time."""
        inquiry_id = self._inquiries.open(live.node.name for live in nodes)
        for live in nodes:
            self.send(live, question(inquiry_id, self._channel.address))
        return await self._inquiries.wait(inquiry_id, timeout_s)

    def send(self, live: LiveNode, message: Message) -> None:
        """A message that needs no answer."""
        self._send(Send(live.info.control_address, message))

    async def set_draining(self, name: str, draining: bool) -> None:
        """For all coordinators. Raises REDIS_ERRORS; then nothing is changed."""
        await self.follower.set_draining(name, draining)
        self.placement.draining = self.follower.draining

    def explain(self, prompt: Prompt, tokens: list[int]) -> tuple[Candidates, Route]:
        """What routing would do with this request now. Raises BadRequest or Unavailable."""
        if not self.ready:
            raise Unavailable(NO_NODE)
        limit = min(self.max_model_len, self.max_total_tokens)
        request = make_request("", prompt, tokens, 0, self.tokenizer, limit)
        try:
            work = self._work(request.tokens, request.namespace, request.max_new_tokens, ())
            return self.placement.explain(work, self._now())
        except NoRoute as error:
            raise Unavailable(str(error)) from None

    def _work(
        self, tokens: list[int], namespace: Namespace, max_new_tokens: int, avoid: Collection[str]
    ) -> Work:
        """Raises NoRoute."""
        model = self.registry.model
        if model is None:
            raise NoRoute("no node is alive")
        most = most_tokens(len(tokens), max_new_tokens)
        return Work(
            num_tokens=len(tokens),
            num_pages=model.layout.num_pages(most),
            admission_pages=model.layout.num_pages(admission_tokens(len(tokens), most)),
            hashes=self._hasher_of(model).hashes(tokens, namespace),
            avoid=avoid,
        )

    def _hasher_of(self, model: Model) -> PageHasher:
        if self._hasher is None or self._hasher[0] != model:
            self._hasher = model, PageHasher(model.fingerprint, model.layout)
        return self._hasher[1]

    def _dispatch(self) -> None:
        now = self._now()
        self._carry_out(self._tracker.dispatch(now))
        self._plan_dispatch(now)

    def _plan_dispatch(self, now: float) -> None:
        """Looks again when a node is expected to become free, if requests wait."""
        if self._next_dispatch is not None:  # one timer is enough, whoever called
            self._next_dispatch.cancel()
            self._next_dispatch = None
        wait_s = self._queue.dispatch_in_s(now)
        if wait_s is not None:
            loop = asyncio.get_running_loop()
            self._next_dispatch = loop.call_later(wait_s, self._dispatch)

    def _drain(self) -> None:
        """The channel's descriptor is edge-triggered: read until nothing is left."""
        while messages := self._channel.drain():
            for message in messages:
                try:
                    self._handle(message)
                except Exception:  # it must not cost the messages behind it
                    log.exception("a %s could not be handled", type(message).__name__)
        if len(self._queue):
            self._dispatch()

    def _handle(self, message: AnyMessage) -> None:
        if isinstance(message, TokensOut):
            self._carry_out(self._tracker.tokens(message, self._now()))
        elif isinstance(message, Heartbeat):
            self._heard(message)
        elif isinstance(message, Failed):
            log.warning("attempt %s failed: %s", message.attempt, message.reason)
            self._carry_out(self._tracker.failed(message, self._now()))
        elif isinstance(message, Goodbye):
            self._lost(self.registry.remove(message.node))
        elif isinstance(message, CacheFlushed):
            self._inquiries.answered(message.flush_id, message.node.name, message.num_pages)
        elif isinstance(message, AuditReply):
            self._inquiries.answered(message.audit_id, message.node.name, message.hashes)

    def _heard(self, message: Heartbeat) -> None:
        now = self._now()
        replaced = self.registry.heartbeat(message, now)
        model = self.registry.model
        if self._hasher is not None and model is not None and self._hasher[0] != model:
            self._hasher_of(model)
            self._carry_out(self._tracker.remake(now))  # before anything is sent
        self._lost(replaced)
        live = self.registry.get(message.info.node)
        if live is not None:
            self.placement.heard(live, now)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._now()
            self.placement.draining = self.follower.draining
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
        self._carry_out(self._tracker.cancel(generation.request_id, now))
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
        live = self.registry.get(stray.node)
        if live is not None:
            self.send(live, Cancel(stray.attempt))

    def _produced(self, outcome: Produced) -> None:
        generation = self._generations.get(outcome.request_id)
        if generation is None or generation.done:
            return
        if generation.first_token_at is None and outcome.cached_tokens:
            self._note_hit(outcome)
        if generation.produced(outcome, self._now()):
            self._finished(generation)
            self.cancel(outcome.request_id)

    def _note_hit(self, outcome: Produced) -> None:
        model = self.registry.model
        if model is None:
            return
        request, last_page = outcome.request, outcome.cached_tokens // model.layout.page_size - 1
        if 0 <= last_page < len(outcome.hashes):
            tokens = request.tokens[: outcome.cached_tokens]
            self.hot_prefixes.hit(
                outcome.hashes[last_page], tokens, bool(request.namespace.salt), self._now()
            )

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
        self.totals.finished(generation.counts(), self._now())
        route = generation.route
        log.info(
            "request %s ended: %s, %d + %d tokens, %d cached, attempts %d, %s; runner-up %s",
            generation.rid,
            generation.error or generation.finish_reason,
            generation.prompt_tokens,
            len(generation.output_ids),
            generation.cached_tokens,
            generation.attempts,
            route.reason if route else "not routed",
            route.runner_up if route else "none",
        )

    def _send(self, work: Send) -> None:
        try:
            self._channel.send(work.address, work.message)
        except PeerUnreachable as error:
            log.warning("message dropped: %s", error)
            if isinstance(work.message, Generate):
                self._carry_out(self._tracker.undeliverable(work.message.attempt, self._now()))

    def _now(self) -> float:
        return time.monotonic()  # uvloop's own clock counts whole milliseconds
