"""`CompanionProcess`: a node's side of its companion: starts it, talks to it, notices its end."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec

from node.liveness.board import Board
from node.liveness.condition import CompanionPlan
from protocol.errors import UserError
from protocol.ids import Node

log = logging.getLogger(__name__)

GOODBYE = b"g"
NEWS = b"n"
EXIT_TIMEOUT_S = 3.0
"""How long a companion may take to say goodbye; it is killed then."""


class HealthPortInUse(UserError):
    """The health port cannot be listened on; the message names another flag value to try."""


class CompanionProcess:
    """The companion of this process. One thread calls `tell_news` and `close`."""

    def __init__(
        self,
        node: Node,
        host: str,
        port: int,
        redis_url: str,
        lease_s: float,
        stall_s: float,
        log_level: str = "info",
        log_format: str = "text",
        cluster_secret: tuple[str, ...] = (),
        cluster_secret_file: str = "",
        metric_names: tuple[str, ...] = (),
    ) -> None:
        """Listens on the health port (0: any free one), and starts the process, which answers
        there. Raises HealthPortInUse."""
        self.board, board_file = Board.create()
        self._when_lost: Callable[[], None] = lambda: None
        self._is_closing = self._is_lost = False
        try:
            with _listen(host, port) as listening:
                self.health_port = int(listening.getsockname()[1])
                plan = CompanionPlan(
                    node=node,
                    pid=os.getpid(),
                    board_file=board_file,
                    health_socket=listening.fileno(),
                    redis_url=redis_url,
                    lease_s=lease_s,
                    stall_s=stall_s,
                    log_level=log_level,
                    log_format=log_format,
                    metric_names=metric_names,
                    cluster_secret=cluster_secret,
                    cluster_secret_file=cluster_secret_file,
                )
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "node.liveness.companion"],
                    stdin=subprocess.PIPE,
                    pass_fds=(plan.board_file, plan.health_socket),
                )
        finally:
            os.close(board_file)
        assert self._process.stdin is not None
        self._news = self._process.stdin.fileno()
        self._write(msgspec.json.encode(plan) + b"\n")
        # Not before the plan is written: a full pipe must not stop the main loop.
        os.set_blocking(self._news, False)
        threading.Thread(target=self._watch, name="companion", daemon=True).start()

    def when_lost(self, act: Callable[[], None]) -> None:
        """Has `act` called if the companion ends before `close`, on a thread of its own, or at once
        if it has ended already. Without it nobody would hear of this node any more. `act` may be
        called twice."""
        self._when_lost = act
        if self._is_lost:
            act()

    def tell_news(self) -> None:
        """Has the newest message on the board told soon. Returns at once."""
        self._write(NEWS)

    def close(self) -> None:
        """Has the companion say goodbye to every coordinator, and waits for its end. May be
        repeated."""
        if self._is_closing:
            return
        self._is_closing = True
        self._write(GOODBYE)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, message: bytes) -> None:
        """Writes to the companion. A full pipe has news enough; a broken one is noticed by
        `_watch`."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._news, message)

    def _watch(self) -> None:
        status = self._process.wait()
        if not self._is_closing:
            log.error("the companion of this node has ended (status %d); the node stops", status)
            self._is_lost = True
            self._when_lost()


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise HealthPortInUse(
            f"cannot answer for this node's health on {host}:{port} ({error.strerror}); "
            "choose another port with --health-port"
        ) from error
    listening.listen(64)
    return listening
