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
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from coordinator.answers.answer import Answer
from coordinator.answers.grammars import GrammarCompiler
from coordinator.answers.request import Request
from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.core.core import NO_NODE, CoordinatorCore
from coordinator.core.errors import DuplicateRequest
from coordinator.core.instructions import (
    AnswerChanged,
    AnswerEnded,
    AnswerStarted,
    Forget,
    Instruction,
    Send,
    TellCoordinators,
)
from coordinator.core.pause import Pause
from coordinator.leaving.farewell import Farewell
from coordinator.leaving.resume_token import ResumeToken
from coordinator.leaving.taking_over import AnsweredBefore, answered_before
from coordinator.mailbox import Mailbox
from coordinator.ownership.follower import OwnershipFollower
from coordinator.peers.counts import ClusterCounts
from coordinator.peers.found_requests import FoundRequests
from coordinator.peers.peers import Peers
from coordinator.pending_replies import PendingReplies, never
from coordinator.routing.draining import draining_names
from coordinator.routing.registry import LiveNode
from coordinator.sessions.store import SessionStore
from coordinator.tracing.exporter import TraceExporter
from coordinator.tracing.kept_traces import KeptTraces
from coordinator.tracing.trace import trace_of
from protocol.channel import Channel, PeerUnreachable
from protocol.messages import (
    COORDINATOR_LEASE_S,
    AbortRequest,
    AnyMessage,
    AskCounts,
    AskRequests,
    AuditReply,
    CacheFlushed,
    CountsReply,
    FlushCache,
    Message,
    PauseMode,
    PauseSeen,
    RequestsReply,
    SetPause,
    TakenOver,
    TakeOver,
)
from protocol.redis.client import connect_async
from protocol.timelines.request_reports import RequestFilter

log = logging.getLogger(__name__)

STOPPING = "the coordinator is stopping; another one, or this one a little later, serves"
REDIS_TIMEOUT_S = 2.0
PAUSE_SEEN_S = 2.0
"""How long the other coordinators are waited for when a pause begins or ends."""
COUNTS_S = 1.0
"""How long the other coordinators are waited for when they are asked what they have counted."""
TAKE_OVER_S = 2.0
"""How long nodes are waited for when they are asked what they keep of an answer."""
FIRST_LOOK_EVERY_S = 0.02
IDLE_CHECK_S = 0.05
"""How often draining nodes are asked for, whatever the core waits for."""


def _stop_if_it_failed(task: asyncio.Task[None]) -> None:
    """Ends this process if the task failed: half a coordinator is worse than none."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s failed, the coordinator stops", task.get_name(), exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


class Service:
    """A coordinator within an event loop. Call `start`, then `submit` and wait on the `Mailbox`;
    `close` at the end."""

    def __init__(
        self, config: CoordinatorConfig, tokenizer: Tokenizer, channel: Channel, worker: int = 0
    ) -> None:
        """`worker` is the number of this process among those that share its HTTP port."""
        self.config = config
        self.worker = worker
        self.tokenizer = tokenizer
        self.grammars = GrammarCompiler(tokenizer.model.json_text)
        # Not its bound method: a copy of the policy, which explains, has a copy of the chance too.
        chance = partial(random.Random.random, random.Random(config.routing_seed or None))
        # Seeded by the system, as the ids of all coordinators must differ, but asked in its place:
        # a call of the system for every request costs ten times as much.
        ids = random.Random()
        self.core = CoordinatorCore(
            config, channel.address, chance, lambda: f"{ids.getrandbits(128):032x}"
        )
        self._redis = connect_async(config.redis_url, REDIS_TIMEOUT_S)
        self.sessions = SessionStore(self._redis, config.session_ttl_s)
        self._peers = Peers(self._redis, channel.address, lambda: self.core.pause, self._obey)
        self.follower = OwnershipFollower(config.redis_url, channel.address, self.core.index)
        self._channel = channel
        self._mailboxes: dict[str, Mailbox] = {}
        """Whom to tell of the answers that have not ended, by request id."""
        self._changed: dict[Mailbox, None] = {}
        """Those to be told of new tokens when all messages that have come are taken, in order."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._replies = PendingReplies()
        self.farewell = Farewell(config.drain_timeout_s)
        self._kept_traces = KeptTraces(config.trace_share, config.trace_slow_s)
        self._traces: TraceExporter | None = None
        if config.otlp_endpoint:
            self._traces = TraceExporter(config.otlp_endpoint, channel.address)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins to listen to nodes and to follow Redis."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._drain)
        self._tasks = [
            asyncio.create_task(self.follower.run(), name="ownership"),
            asyncio.create_task(self._tick_for_ever(), name="tick"),
            asyncio.create_task(self._peers.run(), name="peers"),
            asyncio.create_task(self.sessions.catch_up_for_ever(), name="sessions"),
        ]
        for task in self._tasks:
            task.add_done_callback(_stop_if_it_failed)

    async def until_ready(self, timeout_s: float) -> None:
        """Waits until a node takes requests, for `timeout_s` at most, and for a quarter of it if
        Redis knows of none by then."""
        begun = self.now()
        while not self.core.is_ready:
            waited_s = self.now() - begun
            if waited_s > (timeout_s if self.follower.mirror.knows_nodes else timeout_s / 4):
                return
            await asyncio.sleep(FIRST_LOOK_EVERY_S)

    async def close(self) -> None:
        """Ends its tasks and closes its sockets."""
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._stop_timer()
        self._peers.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.follower.close()
        await self._redis.aclose()
        self._channel.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    @property
    def num_refusals(self) -> int:
        """How many connections and messages of peers were refused so far."""
        return self._channel.refusals.total

    @property
    def model_path(self) -> Path:
        """The model: a directory, or a file in GGUF."""
        return Path(self.config.model_path)

    def is_ready(self, now: float) -> bool:
        """Returns True while requests are served: a node takes some, or did so a moment ago, and
        the process was not told to stop."""
        return not self.farewell.has_begun and self.core.serves(now)

    @property
    def why_not_ready(self) -> str:
        """A sentence that says why `is_ready` is False."""
        return STOPPING if self.farewell.has_begun else NO_NODE

    def stop_soon(self) -> None:
        """Notes that the process was told to stop: it is not ready any more, and serves on until
        `may_close`."""
        self.farewell.begin(self.now())

    @property
    def may_close(self) -> bool:
        """True once the process was told to stop and nothing has to be waited for any more."""
        return self.farewell.is_over(self.core.num_unfinished, self.now())

    def end_unfinished(self) -> None:
        """Ends all requests with an error that says that the coordinator stops, and takes no more
        of them."""
        now = self.now()
        self._carry_out(self.core.stop(STOPPING, now), now)

    @property
    def max_model_len(self) -> int:
        """The most tokens, prompt and answer together, that the model and all nodes serve."""
        return self.core.registry.context_length(self.tokenizer.max_model_len)

    @property
    def max_total_tokens(self) -> int:
        """The most tokens, prompt and answer together, that a request may have now."""
        return min(self.max_model_len, self.core.max_total_tokens)

    @property
    def num_coordinators(self) -> int:
        """How many coordinators there are, this one included, as Redis told last."""
        return 1 + len(self._peers.others)

    @property
    def address(self) -> str:
        """Where nodes and other coordinators send messages to this one."""
        return self._channel.address

    async def answered_before(self, token: ResumeToken) -> AnsweredBefore:
        """Asks all nodes what was answered of a request whose coordinator has died. Raises
        DuplicateRequest if it lives."""
        replies = await self.ask(
            list(self.core.registry.live()),
            lambda question, address: TakeOver(token.key, token.owner_tag, address, question),
            TAKE_OVER_S,
            # A node that is gone would hold up the next try, which comes when the lease has ended.
            decides=lambda reply: reply.owner_lives,
        )
        before = answered_before(list(replies.values()))
        if before is None:
            raise DuplicateRequest(
                "the coordinator that has this request lives, or did a moment ago; another one can "
                f"take it over when its lease of {COORDINATOR_LEASE_S:g} s has ended"
            )
        return before

    def submit(
        self, request: Request, before: AnsweredBefore | None = None, is_next: bool = False
    ) -> Mailbox:
        """Starts a request, or with `before` goes on with one that another coordinator had begun.
        `is_next`: it came with others that were let in. Raises one of
        `core.errors.RequestRefused`; then nothing is kept."""
        now = self.now()
        started, *instructions = self.core.submit(request, now, before, is_next)
        assert isinstance(started, AnswerStarted)
        mailbox = self._mailboxes[started.answer.request_id] = Mailbox(
            started.answer, lambda: self.core.pause
        )
        self._carry_out(instructions, now)
        self._wake_changed()  # what was answered before is news
        self._plan_tick(now)
        return mailbox

    def cancel(self, request_id: str) -> None:
        """Ends a request whose client is gone, on every node. Does nothing if it has ended."""
        now = self.now()
        self._carry_out(self.core.cancel(request_id, now), now)
        self._plan_tick(now)

    def abort(self, rid: str, abort_all: bool = False) -> None:
        """Ends the requests that go by the name `rid`, or all of them, at every coordinator, with
        what they have answered so far. Does nothing if there is none."""
        now = self.now()
        self._carry_out(self.core.abort(rid, abort_all, now), now)
        request = AbortRequest(rid, abort_all)
        self._carry_out([Send(address, request) for address in self._peers.others], now)
        self._plan_tick(now)

    async def set_pause(self, mode: PauseMode | None) -> None:
        """Begins a pause of the whole cluster, or ends it (None).

        Returns when all coordinators obey, or after PAUSE_SEEN_S: who has not heard by then learns
        it from Redis. Raises Unavailable if Redis is gone.
        """
        pause = await self._peers.set_pause(mode)
        self._obey(pause)
        others = self._peers.others
        question_id = self._replies.open(others)
        message = SetPause(pause.number, pause.mode, self._channel.address, question_id)
        self._carry_out([Send(address, message) for address in others], self.now())
        await self._replies.wait(question_id, PAUSE_SEEN_S)

    def _obey(self, pause: Pause) -> None:
        now = self.now()
        self._carry_out(self.core.set_pause(pause, now), now)
        self._plan_tick(now)

    async def count_everywhere(self) -> ClusterCounts:
        """Returns the sums of what all coordinators have counted. Those that do not answer within
        COUNTS_S are only named."""
        others = self._peers.others
        question_id = self._replies.open(others)
        question = AskCounts(self._channel.address, question_id)
        self._carry_out([Send(address, question) for address in others], self.now())
        replies = await self._replies.wait(question_id, COUNTS_S)
        everybody = [self.core.counts(self.now()), *replies.values()]
        return ClusterCounts.sum(everybody, unanswered=others - replies.keys())

    async def find_requests(self, wanted: RequestFilter) -> FoundRequests:
        """Returns what all coordinators know of the requests that are wanted: unfinished ones
        first, and the newest of each first. Those that do not answer within COUNTS_S are only
        named."""
        others = self._peers.others
        question_id = self._replies.open(others)
        question = AskRequests(self._channel.address, question_id, wanted)
        self._carry_out([Send(address, question) for address in others], self.now())
        replies = await self._replies.wait(question_id, COUNTS_S)
        found = self.core.requests(wanted, self.now())
        return FoundRequests.join(
            [found, *(reply.requests for reply in replies.values())],
            wanted.limit,
            unanswered=others - replies.keys(),
        )

    async def flush_cache(
        self, nodes: list[LiveNode], cache_salt: str | None, timeout_s: float
    ) -> dict[str, int]:
        """Tells nodes to forget the pages that no request holds: those of one tenant, or of all
        (None).

        Returns how many pages these were, by name, of the nodes that answered in time.
        """
        return await self.ask(
            nodes,
            lambda question_id, address: FlushCache(address, question_id, cache_salt),
            timeout_s,
        )

    async def ask(
        self,
        nodes: list[LiveNode],
        question: Callable[[str, str], Message],
        timeout_s: float,
        decides: Callable[[Any], bool] = never,
    ) -> dict[str, Any]:
        """Sends `question(question id, reply address)` to each of `nodes`.

        Returns the replies, by node name, that came in time; not those after one that `decides`.
        """
        question_id = self._replies.open((live.node.name for live in nodes), decides)
        for live in nodes:
            self.send(live, question(question_id, self._channel.address))
        return await self._replies.wait(question_id, timeout_s)

    def send(self, live: LiveNode, message: Message) -> None:
        """Sends a message that needs no answer."""
        self._carry_out([Send(live.info.control_address, message)], self.now())

    async def set_drain_mark(self, name: str, mark: str) -> None:
        """Marks a node as draining, or not, for all coordinators. Raises REDIS_ERRORS, and then
        changes nothing."""
        await self.follower.set_drain_mark(name, mark)
        self._obey_drain_marks(self.now())

    def _obey_drain_marks(self, now: float) -> None:
        marks = self.follower.mirror.drain_marks
        self.core.set_draining(draining_names(marks, self.core.registry.live()), now)

    def now(self) -> float:
        """Returns the time that the core counts in. It is not the loop's: uvloop's clock counts
        whole milliseconds."""
        return time.monotonic()

    def handle(self, message: AnyMessage) -> None:
        """Takes one message: the reply to a question of an operator, or something for the core."""
        self._take(message)
        self._wake_changed()

    def _take(self, message: AnyMessage) -> None:
        """Does what `handle` does, but for telling who waits for an answer of its new tokens."""
        if isinstance(message, CacheFlushed):
            self._replies.answered(message.flush_id, message.node.name, message.num_pages)
        elif isinstance(message, AuditReply):
            self._replies.answered(message.audit_id, message.node.name, message.hashes)
        elif isinstance(message, PauseSeen):
            self._replies.answered(message.question_id, message.address, None)
        elif isinstance(message, TakenOver):
            self._replies.answered(message.question_id, message.node.name, message)
        elif isinstance(message, CountsReply | RequestsReply):
            self._replies.answered(message.question_id, message.address, message)
        else:
            now = self.now()
            self._carry_out(self.core.handle(message, now), now)

    def tick(self) -> None:
        """Reads what has come and lets the core do what is due."""
        self._read_channel()  # first, so that a lease does not end whose heartbeat has come
        now = self.now()
        self._obey_drain_marks(now)
        mirror = self.follower.mirror
        self.core.changes.record_seen(
            mirror.is_connected, mirror.num_reloads, mirror.last_reloaded, now
        )
        self._carry_out(self.core.tick(now), now)
        self._plan_tick(now)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_S)
            self.tick()

    def _drain(self) -> None:
        """Reads what has come: the channel's file descriptor is readable."""
        self._read_channel()
        self._plan_tick(self.now())

    def _read_channel(self) -> None:
        # The descriptor is edge-triggered: read until nothing is left.
        while messages := self._channel.drain():
            for message in messages:
                try:
                    self._take(message)
                except Exception:  # it must not cost the messages behind it
                    log.exception("a %s could not be handled", type(message).__name__)
        # Only now: when events take longer to send than steps to compute, tokens of several
        # messages become one event, and other work has its turn between two rounds of events.
        self._wake_changed()

    def _wake_changed(self) -> None:
        changed, self._changed = self._changed, {}
        for mailbox in changed:
            mailbox.wake()

    def _plan_tick(self, now: float) -> None:
        """Sets the one timer to the time at which the core wants to be asked again."""
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
        todo = list(instructions)
        for instruction in todo:  # which may grow meanwhile
            if isinstance(instruction, AnswerChanged):
                if mailbox := self._mailboxes.get(instruction.answer.request_id):
                    self._changed[mailbox] = None
            elif isinstance(instruction, Send):
                try:
                    # Noted first: a node may have the message before `send` returns.
                    self.core.sent(instruction.message, self.now())
                    self._channel.send(instruction.address, instruction.message)
                except PeerUnreachable as error:
                    log.warning("message dropped: %s", error)
                    todo.extend(
                        self.core.undeliverable(instruction.address, instruction.message, now)
                    )
            elif isinstance(instruction, AnswerEnded):
                self._trace(instruction.answer, now)
                if mailbox := self._mailboxes.pop(instruction.answer.request_id, None):
                    mailbox.wake()
            elif isinstance(instruction, TellCoordinators):
                message = instruction.message
                todo.extend(Send(address, message) for address in self._peers.others)
            elif isinstance(instruction, Forget):
                self._channel.forget(instruction.address)

    def _trace(self, answer: Answer, now: float) -> None:
        """Sends the trace of a request that has ended, if traces are sent and it is kept."""
        if self._traces is None or not self._kept_traces.keeps(answer):
            return
        model = self.config.served_model_name
        self._traces.export(trace_of(answer, model, now, time.time_ns()))
