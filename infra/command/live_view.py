"""Shows `kvrelay top` in a terminal, until q or Ctrl-C."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from infra.tables.top import ClusterSample, top_view
from kvrelay.client import Client
from kvrelay.errors import ClientError

REFRESH_S = 1.0
SHOWN_REQUESTS = 20
QUIT = b"qQ"


def print_top(client: Client, console: Console) -> None:
    """Prints the screen once, with the rates of the next second. Raises ClientError."""
    before = _sample(client)
    time.sleep(REFRESH_S)
    console.print(top_view(before, _sample(client)))


def watch_top(client: Client, console: Console) -> None:
    """Shows the screen anew every second until q or Ctrl-C. While the coordinator is away the last
    one stays, with the error. Raises ClientError if it never answered."""
    before = _sample(client)
    view = top_view(before, before)
    with _keys_at_once(), Live(view, console=console, screen=True, auto_refresh=False) as live:
        try:
            while not _wants_to_quit(REFRESH_S):
                problem = ""
                try:
                    now = _sample(client)
                    view, before = top_view(before, now), now
                except ClientError as error:
                    problem = str(error)
                live.update(Group(view, Text(problem, style="red")), refresh=True)
        except KeyboardInterrupt:
            pass  # how it is meant to end


def _sample(client: Client) -> ClusterSample:
    stats, nodes = client.cache_stats(), client.nodes()
    requests = client.requests(SHOWN_REQUESTS, state="unfinished")
    return ClusterSample(time.monotonic(), stats, nodes, requests)


def _wants_to_quit(timeout_s: float) -> bool:
    """Waits that long for a key. Returns True if it says that it is enough."""
    if not select.select([sys.stdin], [], [], timeout_s)[0]:
        return False
    typed = os.read(sys.stdin.fileno(), 64)
    return not typed or any(key in QUIT for key in typed)


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Has the terminal give each key at once, and not show it."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
