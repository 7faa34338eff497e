"""Real Redis servers, publishing nodes and following coordinators for the contract tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from coordinator.ownership.follower import OwnershipFollower
from coordinator.ownership.index import PrefixIndex
from engine.cache.prefix_cache import CacheChange
from infra.ports import free_port
from infra.process import Child
from infra.redis_server import server_command
from node.shell.publisher import OwnershipPublisher
from protocol.hashing import PageHash, join_hashes, split_hashes
from protocol.ids import Node
from protocol.redis import ownership
from protocol.redis.client import REDIS_ERRORS, connect
from tests.support.coordinator.nodes import info_of

DEADLINE_S = 20.0
LEASE_S = 1.0
COORDINATOR = "tcp://coordinator:1"


def wait_until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Server:
    """A redis-server of the test's own; `options` as on its command line."""

    def __init__(
        self, directory: Path, *options: str, port: int = 0, url: str = "", sentinel: str = ""
    ) -> None:
        """`url`: how a client that may write reaches it, where a plain one does not. `sentinel`:
        the path of a configuration makes it a Sentinel."""
        self.port = port or free_port()
        self.url = url or f"redis://127.0.0.1:{self.port}/0"
        directory.mkdir(exist_ok=True)
        command = server_command(directory).command
        command[command.index("--port") + 1] = str(self.port)
        self._command = [*command, *options]
        if sentinel:
            self._command = [command[0], sentinel, "--sentinel", "--port", str(self.port)]
        self._log_file = directory / f"redis-{self.port}.log"
        self.start()

    def start(self) -> None:
        self.child = Child("redis", self._command, self._log_file, lambda name, line: None)
        wait_until(self.answers)

    def client(self) -> Any:
        return connect(self.url, timeout_s=5.0)

    def answers(self) -> bool:
        assert self.child.alive, "\n".join(self.child.last_lines)
        try:
            return bool(self.client().ping())
        except REDIS_ERRORS:
            return False

    def stop(self) -> None:
        self.child.process.kill()
        self.child.wait()


class Following:
    """A follower in a thread of its own, with its index."""

    def __init__(self, redis_url: str, address: str = COORDINATOR) -> None:
        self.index = PrefixIndex()
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._follow(redis_url, address))
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._started.wait()

    def knows(self, node: Node, pages: Iterable[PageHash]) -> bool:
        """Asked in the loop's thread, between two steps of the follower."""
        return self.call(self._knows(node, set(pages)))

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def record(self, node: Node) -> set[PageHash]:
        """What Redis says that the node owns."""
        return set(split_hashes(self.call(self.follower.record.pages(node))))

    async def _knows(self, node: Node, pages: set[PageHash]) -> bool:
        return self.index.num_pages(node) == len(pages) and all(
            self.index.match([page]).get(node) == 1 for page in pages
        )

    def _run(self) -> None:
        self._loop.run_until_complete(self._task)
        self._loop.close()

    async def _follow(self, redis_url: str, address: str) -> None:
        self.follower = OwnershipFollower(redis_url, address, self.index)
        self._started.set()
        try:
            await self.follower.run()
        except asyncio.CancelledError:
            await self.follower.close()


class Publishing:
    def __init__(self, redis_url: str, node: Node, lease_s: float = LEASE_S) -> None:
        self.replaced = threading.Event()
        self.publisher = OwnershipPublisher(redis_url, info_of(node), lease_s, self.replaced.set)
        self.publisher.start()

    def stored(self, *pages: PageHash) -> None:
        self.publisher.publish([CacheChange(removed=[], stored=list(pages))])

    def removed(self, *pages: PageHash) -> None:
        self.publisher.publish([CacheChange(removed=list(pages), stored=[])])


class Writer:
    """Nodes that write their records by hand, one script at a time."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis
        self.sequences: dict[Node, int] = {}

    def stored(self, node: Node, hashes: Sequence[PageHash]) -> None:
        self._change(node, stored=join_hashes(hashes))

    def removed(self, node: Node, hashes: Sequence[PageHash]) -> None:
        self._change(node, removed=join_hashes(hashes))

    def reload(self, node: Node, hashes: Sequence[PageHash]) -> None:
        self.register(node)
        assert self.call(ownership.FILL, node, join_hashes(hashes)) == ownership.APPLIED
        self.sequences[node] += 1
        end = ownership.Change(self.sequences[node], reload=True, stored=b"", removed=b"")
        assert self.call(ownership.COMPLETE, node, *end.args()) == ownership.APPLIED

    def register(self, node: Node) -> None:
        self.sequences.setdefault(node, 0)
        info = msgspec.json.encode(info_of(node))
        assert self.call(ownership.REGISTER, node, info) == ownership.APPLIED
        self.redis.sadd(ownership.NODES_KEY, node.name)

    def forget(self, node: Node) -> None:
        assert self.call(ownership.RELEASE, node) == ownership.APPLIED

    def call(self, script: str, node: Node, *args: int | str | bytes) -> int:
        keys = ownership.NodeKeys.of(node).all()
        return int(self.redis.register_script(script)(keys, [node.incarnation, 60_000, *args]))

    def _change(self, node: Node, stored: bytes = b"", removed: bytes = b"") -> None:
        if node not in self.sequences:
            self.reload(node, [])
        self.sequences[node] += 1
        change = ownership.Change(self.sequences[node], False, stored, removed)
        assert self.call(ownership.APPLY, node, *change.args()) == ownership.APPLIED
