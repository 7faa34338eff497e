"""`InstantNode`: answers every request at once, with all tokens in one message, or in steps.

It is not made of the product's node, unlike a modelled one (`benchmarks.clusters.modelled_node`):
it is there to measure the coordinator alone, and shares a core with the load. A real node would
hash, cache and schedule every request, and the figures would be those of the node.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict

from node.liveness.heartbeats import HEARTBEATS_PER_LEASE, Heartbeats
from node.liveness.process import CompanionProcess
from node.shell.publisher import OwnershipPublisher
from protocol.channel import Channel, PeerUnreachable
from protocol.ids import Role
from protocol.messages import (
    AnyMessage,
    Cancel,
    Finish,
    Generate,
    Load,
    NodeInfo,
    TokenOut,
    TokensOut,
)

log = logging.getLogger(__name__)

ANSWER = 100
"""The id of the only token that is ever answered."""
MAX_WAIT_S = 0.1
STALL_S = 30.0
_Outs = defaultdict[str, list[TokenOut]]
"""What goes to each coordinator, by its address."""


class InstantNode:
    """Speaks the real protocol over the real channel, and owns nothing."""

    def __init__(
        self,
        role: Role,
        info: NodeInfo,
        channel: Channel,
        redis_url: str,
        lease_s: float,
        step_s: float = 0.0,
    ) -> None:
        """With a `step_s`, each running request gets one token every so many seconds, and all
        tokens of a step go in one message, as a real node's do."""
        self._step_s = step_s
        self._next_step = 0.0
        self._running_requests: dict[str, _Running] = {}
        self._load = Load(role=role, free_pages=info.num_pages)
        self._info = info
        self._channel = channel
        self._load_interval_s = lease_s / HEARTBEATS_PER_LEASE
        self._next_load = 0.0
        self._running = True
        self._publisher = OwnershipPublisher(redis_url, info, lease_s, self.stop)
        self._companion = CompanionProcess(info.node, "127.0.0.1", 0, redis_url, lease_s, STALL_S)
        self._heartbeats = Heartbeats(
            self._companion.board,
            info,
            lambda: self._publisher.coordinators,
            self._companion.tell_news,
        )

    def run(self) -> None:
        """Serves until `stop`."""
        self._publisher.start()
        try:
            while self._running:
                self._turn()
        finally:
            self._companion.close()
            self._publisher.close()
            self._channel.close()

    def stop(self) -> None:
        """Ends `run`. May be called from any thread and from a signal handler."""
        self._running = False
        self._channel.wake()

    def _turn(self) -> None:
        """Answers whatever has come, or does the step that is due."""
        outs: _Outs = defaultdict(list)
        wait_s = MAX_WAIT_S
        if self._running_requests:
            wait_s = min(wait_s, max(0.0, self._next_step - time.monotonic()))
        for message in self._channel.drain(wait_s):
            if isinstance(message, Generate) and self._step_s:
                self._running_requests[message.attempt.request_id] = _Running(message)
            elif isinstance(message, Generate):
                outs[message.reply_address].append(_answer(message))
            elif isinstance(message, Cancel):
                self._running_requests.pop(message.attempt.request_id, None)
        now = time.monotonic()
        if self._running_requests and now >= self._next_step:
            self._next_step = max(self._next_step + self._step_s, now)
            self._step(outs)
        for address, answers in outs.items():  # what goes to one coordinator goes in one message
            self._send(address, TokensOut(answers, self._info.node))
        if now >= self._next_load:
            self._next_load = now + self._load_interval_s
            self._heartbeats.update(self._load)

    def _step(self, outs: _Outs) -> None:
        """Gives each running request its next token."""
        for request_id, running in list(self._running_requests.items()):
            out = running.next_token()
            outs[running.request.reply_address].append(out)
            if out.finish:
                del self._running_requests[request_id]

    def _send(self, address: str, message: AnyMessage | TokensOut) -> None:
        try:
            self._channel.send(address, message)
        except PeerUnreachable as error:
            log.warning("message dropped: %s", error)


class _Running:
    """A request that gets one token per step."""

    def __init__(self, request: Generate) -> None:
        self.request = request
        self._num_sent = 0

    def next_token(self) -> TokenOut:
        """Returns the next token of the answer."""
        start = self._num_sent
        self._num_sent += 1
        finish: Finish = "length" if self._num_sent == self.request.max_new_tokens else ""
        return TokenOut(self.request.attempt, start, [ANSWER], finish)


def _answer(request: Generate) -> TokenOut:
    tokens = [ANSWER] * request.max_new_tokens
    return TokenOut(attempt=request.attempt, start=0, tokens=tokens, finish="length")
