"""The coordinator's shell: sockets, timers and waiting handlers around the core, on one event loop.

Whatever is decided is decided by `CoordinatorCore`. The shell tells it what happens, with the time,
and carries out its instructions.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from coordinator.answers.grammars import GrammarCompiler
from coordinator.answers.request import Request
from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.core.core import CoordinatorCore
from coordinator.core.instructions import (
    AnswerChanged,
    AnswerEnded,
    AnswerStarted,
    Forget,
    Instruction,
    Send,
)
from coordinator.inquiry import Inquiries
from coordinator.mailbox import Mailbox
from coordinator.ownership.follower import OwnershipFollower
from coordinator.routing.registry import LiveNode
from protocol.channel import Channel, PeerUnreachable
from protocol.messages import AnyMessage, AuditReply, CacheFlushed, FlushCache, Message

log = logging.getLogger(__name__)

IDLE_CHECK_S = 0.05
"""How often draining nodes are asked for, whatever the core waits for."""


def _stop_if_it_failed(task: asyncio.Task[None]) -> None:
    """Ends this process with its task: half a coordinator is worse than none."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s failed, the coordinator stops", task.get_name(), exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


class Service:
    """Call `start`, then `submit` and wait on the `Mailbox`; `close` at the end."""

    def __init__(self, config: CoordinatorConfig, tokenizer: Tokenizer, channel: Channel) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.grammars = GrammarCompiler(tokenizer.to_json)
        # Not its bound method: a copy of the policy, which explains, has a copy of the chance too.
        chance = partial(random.Random.random, random.Random(config.routing_seed or None))
        self.core = CoordinatorCore(config, channel.address, chance, lambda: uuid.uuid4().hex)
        self.follower = OwnershipFollower(config.redis_url, channel.address, self.core.index)
        self._channel = channel
        self._mailboxes: dict[str, Mailbox] = {}
        """Whom to tell of the answers that have not ended, by request id."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._inquiries = Inquiries()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins to listen to nodes and to follow Redis."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._drain)
        self._tasks = [
            asyncio.create_task(self.follower.run(), name="ownership"),
            asyncio.create_task(self._tick_for_ever(), name="tick"),
        ]
        for task in self._tasks:
            task.add_done_callback(_stop_if_it_failed)

    async def close(self) -> None:
        """Ends its tasks and closes its sockets."""
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._stop_timer()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.follower.close()
        self._channel.close()

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus answer that model and nodes serve."""
        return self.core.registry.context_length(self.tokenizer.max_model_len)

    @property
    def max_total_tokens(self) -> int:
        """The longest prompt plus answer that is taken now."""
        return min(self.max_model_len, self.core.max_total_tokens)

    def submit(self, request: Request) -> Mailbox:
        """Starts a request. Raises one of `core.errors.RequestRefused`; then nothing is kept."""
        now = self.now()
        started, *instructions = self.core.submit(request, now)
        assert isinstance(started, AnswerStarted)
        mailbox = self._mailboxes[started.answer.request_id] = Mailbox(started.answer)
        self._carry_out(instructions, now)
        self._plan_tick(now)
        return mailbox

    def cancel(self, request_id: str) -> None:
        """Frees what a request holds, on every node: the client is gone. Harmless twice."""
        now = self.now()
        self._carry_out(self.core.cancel(request_id, now), now)
        self._plan_tick(now)

    async def flush_cache(
        self, nodes: list[LiveNode], cache_salt: str | None, timeout_s: float
    ) -> dict[str, int]:
        """Tells nodes to forget their unheld pages, of one tenant or (None) of all.

        Returns how many these were, by name, of the nodes that answered in time.
        """
        return await self.ask(
            nodes,
            lambda inquiry_id, address: FlushCache(address, inquiry_id, cache_salt),
            timeout_s,
        )

    async def ask(
        self, nodes: list[LiveNode], question: Callable[[str, str], Message], timeout_s: float
    ) -> dict[str, Any]:
        """Sends `question(inquiry id, reply address)` to nodes.

        Returns the answers, by node name, of those that answered in time.
        """
        inquiry_id = self._inquiries.open(live.node.name for live in nodes)
        for live in nodes:
            self.send(live, question(inquiry_id, self._channel.address))
        return await self._inquiries.wait(inquiry_id, timeout_s)

    def send(self, live: LiveNode, message: Message) -> None:
        """Sends a message that needs no answer."""
        self._carry_out([Send(live.info.control_address, message)], self.now())

    async def set_draining(self, name: str, draining: bool) -> None:
        """Marks a node for all coordinators. Raises REDIS_ERRORS; then nothing is changed."""
        await self.follower.set_draining(name, draining)
        self.core.set_draining(self.follower.mirror.draining, self.now())

    def now(self) -> float:
        """Returns the time that the core counts in; uvloop's clock counts whole milliseconds."""
        return time.monotonic()

    def handle(self, message: AnyMessage) -> None:
        """Takes one message of a node."""
        if isinstance(message, CacheFlushed):
            self._inquiries.answered(message.flush_id, message.node.name, message.num_pages)
        elif isinstance(message, AuditReply):
            self._inquiries.answered(message.audit_id, message.node.name, message.hashes)
        else:
            now = self.now()
            self._carry_out(self.core.handle(message, now), now)

    def tick(self) -> None:
        """Reads what has come and lets the core do what is due."""
        self._read_channel()  # first, so that a lease does not end whose heartbeat has come
        now = self.now()
        self.core.set_draining(self.follower.mirror.draining, now)
        self._carry_out(self.core.tick(now), now)
        self._plan_tick(now)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_S)
            self.tick()

    def _drain(self) -> None:
        """Takes what the channel has: its descriptor is ready."""
        self._read_channel()
        self._plan_tick(self.now())

    def _read_channel(self) -> None:
        # The descriptor is edge-triggered: read until nothing is left.
        while messages := self._channel.drain():
            for message in messages:
                try:
                    self.handle(message)
                except Exception:  # it must not cost the messages behind it
                    log.exception("a %s could not be handled", type(message).__name__)

    def _plan_tick(self, now: float) -> None:
        """Sets the one timer to when the core wants to be asked again."""
        wake_at = self.core.wake_at(now)
        if wake_at is not None and wake_at <= now:
            self._carry_out(self.core.tick(now), now)
            wake_at = self.core.wake_at(now)
        if self._timer is not None and wake_at == self._timer_at:
            return
        self._stop_timer()
        if wake_at is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, wake_at - now), self._timer_ended)
            self._timer_at = wake_at

    def _timer_ended(self) -> None:
        self._timer = None
        self.tick()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _carry_out(self, instructions: Iterable[Instruction], now: float) -> None:
        todo = deque(instructions)
        while todo:
            instruction = todo.popleft()
            if isinstance(instruction, Send):
                try:
                    self._channel.send(instruction.address, instruction.message)
                except PeerUnreachable as error:
                    log.warning("message dropped: %s", error)
                    todo.extend(
                        self.core.undeliverable(instruction.address, instruction.message, now)
                    )
            elif isinstance(instruction, AnswerChanged):
                if mailbox := self._mailboxes.get(instruction.answer.request_id):
                    mailbox.wake()
            elif isinstance(instruction, AnswerEnded):
                if mailbox := self._mailboxes.pop(instruction.answer.request_id, None):
                    mailbox.wake()
            elif isinstance(instruction, Forget):
                self._channel.forget(instruction.address)
