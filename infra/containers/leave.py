"""Lets a node end what it computes before its container stops: `python -m infra.containers.leave`.

It drains the node, that is, new requests go to others, and waits until the node holds nothing any
more, for --timeout-s at most. It takes the node's settings from the environment and asks the node
itself and Redis, no coordinator. A node that cannot be drained is left as it is: what it computes
goes on at another node when it stops, so this is a courtesy and its exit status is always 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping

from protocol.ids import Node
from protocol.redis import ownership
from protocol.redis.client import REDIS_ERRORS, connect

TIMEOUT_S = 2.0
LOOK_EVERY_S = 0.5
QUIET_LOOKS = 4
"""The node is done when it was found idle so often in a row: what coordinators sent before they
knew of the drain has come by then."""
BUSY = ("kvrelay_running_requests", "kvrelay_waiting_requests", "kvrelay_queued_tokens")
"""The gauges of a node that are all 0 when it computes nothing and keeps pages for nobody."""


class CannotLeave(Exception):
    """The node cannot be drained, or says nothing of itself. The message says why."""


def is_idle(metrics: str) -> bool:
    """Returns True if the node that tells these metrics has nothing to do. Raises CannotLeave if
    they do not say so, as of a node that has not begun to serve."""
    values = dict(_samples(metrics.splitlines()))
    if not values.keys() >= set(BUSY):
        raise CannotLeave("the node does not serve yet")
    return not any(values[name] for name in BUSY)


def _samples(lines: Iterable[str]) -> Iterable[tuple[str, float]]:
    for line in lines:
        name = line.partition("{")[0]
        if name in BUSY:
            yield name, float(line.rpartition(" ")[2])


def leave(
    drain: Callable[[], None],
    idle: Callable[[], bool],
    timeout_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> bool:
    """Drains a node and waits until `idle` was true QUIET_LOOKS times in a row. Returns False if
    `timeout_s` are over before. Raises what `drain` and `idle` raise."""
    drain()
    deadline = clock() + timeout_s
    num_quiet = 0
    while num_quiet < QUIET_LOOKS:
        if clock() >= deadline:
            return False
        sleep(LOOK_EVERY_S)
        num_quiet = num_quiet + 1 if idle() else 0
    return True


def _ask(port: str, path: str) -> str:
    """Returns what the health port of this container's node answers. Raises CannotLeave."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S) as reply:
            return str(reply.read().decode())
    except OSError as error:
        raise CannotLeave(f"the node's health port does not answer: {error}") from error


def _drain(redis_url: str, node: Node) -> None:
    """Marks the node as one that drains, until it restarts. Raises CannotLeave."""
    try:
        connect(redis_url, TIMEOUT_S).hset(ownership.DRAINING_KEY, node.name, str(node.incarnation))
    except REDIS_ERRORS as error:
        raise CannotLeave(f"Redis takes no mark: {error}") from error


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Drains the node of this container and waits. Returns 0: nothing here may hold up a stop."""
    parser = argparse.ArgumentParser(prog="python -m infra.containers.leave")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="how long to wait at most")
    timeout_s = parser.parse_args(arguments).timeout_s
    port = environment.get("KVRELAY_HEALTH_PORT", "30080")
    try:
        ready = json.loads(_ask(port, "/ready"))
        node = Node(ready["node"], ready["incarnation"])
        is_done = leave(
            lambda: _drain(environment.get("KVRELAY_REDIS_URL", ""), node),
            lambda: is_idle(_ask(port, "/metrics")),
            timeout_s,
            time.monotonic,
            time.sleep,
        )
    except CannotLeave as error:
        print(f"not drained: {error}", file=sys.stderr)
        return 0
    print(
        f"{node.name} is idle" if is_done else f"{node.name} computes after {timeout_s:g} s still"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
