"""`InstantNode`: answers every request at once, with all tokens in one message.

It is not made of the product's node, unlike a modelled one (`benchmarks.clusters.modelled_node`):
it is there to measure the coordinator alone, and shares a core with the load. A real node would
hash, cache and schedule every request, and the figures would be those of the node.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict

from node.shell.heartbeat import HEARTBEATS_PER_LEASE, Heartbeats
from node.shell.publisher import OwnershipPublisher
from protocol.channel import Channel, PeerUnreachable
from protocol.ids import Role
from protocol.messages import AnyMessage, Generate, Load, NodeInfo, TokenOut, TokensOut

log = logging.getLogger(__name__)

ANSWER = 100
"""The id of the only token that is ever answered."""
MAX_WAIT_S = 0.1
STALL_S = 30.0


class InstantNode:
    """Speaks the real protocol over the real channel, and owns nothing."""

    def __init__(
        self, role: Role, info: NodeInfo, channel: Channel, redis_url: str, lease_s: float
    ) -> None:
        self._load = Load(role=role, free_pages=info.num_pages)
        self._info = info
        self._channel = channel
        self._load_interval_s = lease_s / HEARTBEATS_PER_LEASE
        self._next_load = 0.0
        self._running = True
        self._publisher = OwnershipPublisher(redis_url, info, lease_s, self.stop)
        self._heartbeats = Heartbeats(
            channel.outgoing(), info, lease_s, STALL_S, lambda: self._publisher.coordinators
        )

    def run(self) -> None:
        """Serves until `stop`."""
        self._publisher.start()
        self._heartbeats.start()
        try:
            while self._running:
                self._turn()
        finally:
            self._heartbeats.close()
            self._publisher.close()
            self._channel.close()

    def stop(self) -> None:
        """Ends `run`. May be called from any thread and from a signal handler."""
        self._running = False
        self._channel.wake()

    def _turn(self) -> None:
        """Answers whatever has come; what goes to one coordinator goes in one message."""
        outs: defaultdict[str, list[TokenOut]] = defaultdict(list)
        for message in self._channel.drain(MAX_WAIT_S):
            if isinstance(message, Generate):
                outs[message.reply_address].append(_answer(message))
        for address, answers in outs.items():
            self._send(address, TokensOut(answers, self._info.node))
        now = time.monotonic()
        if now >= self._next_load:
            self._next_load = now + self._load_interval_s
            self._heartbeats.update(self._load)

    def _send(self, address: str, message: AnyMessage | TokensOut) -> None:
        try:
            self._channel.send(address, message)
        except PeerUnreachable as error:
            log.warning("message dropped: %s", error)


def _answer(request: Generate) -> TokenOut:
    tokens = [ANSWER] * request.max_new_tokens
    return TokenOut(attempt=request.attempt, start=0, tokens=tokens, finish="length")
