"""The companion of a node: a small process beside it, which tells others that the node lives.

A thread of the node that holds Python's lock, as compilers do for seconds, stops all its other
threads, but not this process. It sends the heartbeats, renews the lease in Redis and answers at the
health port, from what the main process has written on the board.

Its standard input says the rest: a plan in the first line, then a byte for each piece of news, and
GOODBYE when the node stops. The end of the input means that the main process is gone.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from node.liveness.board import Board
from node.liveness.condition import CompanionPlan, Told, health_of
from node.liveness.health_server import HealthServer
from node.liveness.heartbeats import HEARTBEATS_PER_LEASE, NEWS_INTERVAL_S
from node.liveness.process import GOODBYE
from node.metrics.familiar_names import NAMES
from node.metrics.node_samples import health_samples, node_samples
from node.metrics.table import METRICS
from protocol.channel import Outgoing, PeerUnreachable
from protocol.messages import Condition, Goodbye, Health, Heartbeat
from protocol.redis import ownership
from protocol.redis.client import REDIS_ERRORS, connect
from protocol.telemetry.exposition import exposition
from protocol.telemetry.familiar import familiar
from protocol.telemetry.logs import start_logging
from protocol.trust.secrets import ClusterSecrets

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.25
"""How long it may take until a node that is stuck, or stopped, is known to be."""
RENEWALS_PER_LEASE = 3
REDIS_TIMEOUT_S = 1.0
_STOPPED = "TtXZx"
"""States of a process in /proc in which it does not run, and will not by itself."""


class Companion:
    """Speaks for one node until its main process ends."""

    def __init__(self, plan: CompanionPlan) -> None:
        self._plan = plan
        self._board = Board(plan.board_file)
        self._context = zmq.Context()
        self.secrets = ClusterSecrets.of(plan.cluster_secret, plan.cluster_secret_file)
        self._outgoing = Outgoing(self._context, self.secrets)
        self._unreachable: set[str] = set()
        """Coordinators of which the log says that they cannot be told anything."""
        self._told: Told | None = None
        self._condition: Condition = "starting"

    def health(self) -> Health:
        """Returns how the node does now. May be called from any thread."""
        stamped_ns, told = self._board.stamped_ns, self._read()
        return health_of(
            self._plan.node,
            stamped_ns / 1e9 if stamped_ns else None,
            is_stopped(self._plan.pid),
            self._plan.stall_s,
            time.monotonic(),
            told is not None and told.is_draining,
        )

    def metrics(self) -> bytes:
        """Returns what Prometheus scrapes of the node. May be called from any thread."""
        node, told = self._plan.node, self._read()
        samples = list(health_samples(self.health()))
        role = ""
        if told is not None:
            role = told.load.role
            samples += node_samples(told.info, told.load)
        metrics, named = familiar(NAMES, self._plan.metric_names, samples)
        labels = {"node": node.name, "role": role}
        return exposition([*METRICS, *metrics], [*samples, *named], labels, self._plan.pid)

    def run(self, news: int) -> None:
        """Sends heartbeats until the file `news` ends or says GOODBYE, and then a goodbye."""
        interval_s = self._plan.lease_s / HEARTBEATS_PER_LEASE
        due_at, is_over, is_planned = 0.0, False, False
        while not is_over:
            now = time.monotonic()
            health = self.health()
            if health.condition != self._condition:
                self._changed(health)
                due_at = now  # a node that is back is not to wait for its turn
            if now >= due_at:
                self._beat(health)
                due_at = now + interval_s
            wait_s = min(LOOK_INTERVAL_S, max(0.0, due_at - time.monotonic()))
            if select.select([news], [], [], wait_s)[0]:
                said = os.read(news, 65_536)
                is_planned = GOODBYE in said
                is_over = not said or is_planned
                due_at = min(due_at, now + NEWS_INTERVAL_S)
        self._say_goodbye(is_planned)
        self._outgoing.close()
        self._context.term()  # waits until the goodbyes have left, or too long

    def _beat(self, health: Health) -> None:
        """Sends heartbeats with the newest load, unless nobody should count on the node."""
        told = self._read()
        if told is None or not health.keeps_lease:
            return
        self._outgoing.keep_only(told.coordinators)
        self._unreachable.intersection_update(told.coordinators)
        load = msgspec.structs.replace(told.load, turn_s=health.turn_s)
        for address in told.coordinators:
            self._send(address, Heartbeat(told.info, load, self._plan.lease_s))

    def _changed(self, health: Health) -> None:
        self._condition = health.condition
        if health.condition == "stuck":
            log.error(
                "node %s is stuck: its main loop has not come round for %g s (--stall-s), so it "
                "gives up its lease",
                self._plan.node,
                self._plan.stall_s,
            )
            self._say_goodbye(is_planned=False)
        else:
            log.info("node %s is %s", self._plan.node, health.condition)

    def _say_goodbye(self, is_planned: bool) -> None:
        told = self._read()
        for address in told.coordinators if told is not None else ():
            self._send(address, Goodbye(self._plan.node, is_planned))

    def _read(self) -> Told | None:
        """Returns the last that the main process told; None before the first time."""
        message = self._board.read()
        if message is not None:
            self._told = msgspec.msgpack.decode(message, type=Told)
        return self._told

    def _send(self, address: str, message: Heartbeat | Goodbye) -> None:
        try:
            self._outgoing.send(address, message)
            self._unreachable.discard(address)
        except PeerUnreachable as error:
            self._outgoing.forget(address)
            if address not in self._unreachable:
                self._unreachable.add(address)
                log.error("no heartbeats for a coordinator: %s", error)


class LeaseKeeper:
    """Renews the node's lease in Redis from a thread, which may wait for Redis as long as it
    takes. A lease that the node has not registered, or has released, is left alone."""

    def __init__(self, plan: CompanionPlan, health: Callable[[], Health]) -> None:
        self._plan = plan
        self._health = health
        self._redis: Any = None

    def start(self) -> None:
        """Starts the thread, which ends with the process."""
        threading.Thread(target=self._run, name="lease", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self._plan.lease_s / RENEWALS_PER_LEASE)
            if self._health().keeps_lease:
                self._renew()

    def _renew(self) -> None:
        node = self._plan.node
        arguments = [node.incarnation, int(self._plan.lease_s * 1000)]
        try:
            if self._redis is None:
                self._redis = connect(self._plan.redis_url, REDIS_TIMEOUT_S)
            keep = self._redis.register_script(ownership.KEEP)
            keep(ownership.NodeKeys.of(node).all(), arguments)
        except REDIS_ERRORS as error:
            log.debug("the lease of %s was not renewed: %s", node, error)
            self._redis = None


def is_stopped(pid: int) -> bool:
    """Returns True if the process is stopped or dead, as far as the system tells."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            # The name of the program, in parentheses, may have spaces and parentheses in it.
            return stat.read().rpartition(") ")[2][0] in _STOPPED
    except FileNotFoundError:
        return os.path.exists("/proc/self/stat")  # else this system does not tell
    except OSError:
        return True


def main() -> None:
    """Runs a companion. The node stops it, so signals that a terminal sends to both do not."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    news = sys.stdin.fileno()
    plan = msgspec.json.decode(_first_line(news), type=CompanionPlan)
    start_logging(plan.log_level, plan.log_format)
    companion = Companion(plan)
    listening = socket.socket(fileno=plan.health_socket)
    HealthServer(listening, companion.health, companion.secrets, companion.metrics).start()
    LeaseKeeper(plan, companion.health).start()
    companion.run(news)
    logging.shutdown()
    # Daemon threads may wait for Redis: nothing is left that they must not be cut off from.
    os._exit(0)


def _first_line(file: int) -> bytes:
    """Reads a line byte by byte: what follows it must stay in the file."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(file, 1)
        if not byte:
            sys.exit(0)  # the node has ended meanwhile
        line += byte
    return line


if __name__ == "__main__":
    main()
