"""A running cluster of CPU nodes as its clients and its operator see it, for benchmarks."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx

from benchmarks.engines.random_model import MAX_TOKENS, Prompts
from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port
from node.shell.shell import IDLE_WAIT_S
from protocol.layout import KVLayout

HOST = "127.0.0.1"
POOL_TOKENS = 2 * MAX_TOKENS
START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 300.0
NEWS_TIMEOUT_S = 60.0
POLL_S = 0.02
WARM_UP_TOKENS = 512
ANSWER_TOKENS = 1

Nodes = dict[str, dict[str, Any]]
"""What /admin/nodes says of each node, by the node's name."""
T = TypeVar("T")


class Surprise(Exception):
    """The cluster did something else than what is to be measured, so there is no figure."""


@dataclass(frozen=True)
class Cold:
    """What one cold prompt took. A prompt is cold if no page of it is cached anywhere."""

    exposed_s: float
    """Seconds for which the decode node waited for pages after the first token had come."""
    prefill_s: float
    """Seconds that the prefill node spent in model steps."""
    first_token_s: float
    """Seconds from the request to the first token, at the client."""

    @property
    def share(self) -> float:
        """The time exposed as a share of the prefill."""
        return self.exposed_s / self.prefill_s

    @property
    def share_at_most(self) -> float:
        """All time to the first token that is not prefill, as a share of the prefill."""
        return self.first_token_s / self.prefill_s - 1


class Stream:
    """One streamed answer and when its events came. Times are those of `time.monotonic`."""

    def __init__(self) -> None:
        self.sent_at = 0.0
        self.times: list[float] = []
        self.meta: dict[str, Any] = {}
        """The meta_info of the last event; empty until that is here."""

    @property
    def first_token_s(self) -> float:
        """Seconds from the request to the first event."""
        return self.times[0] - self.sent_at

    async def run(self, http: httpx.AsyncClient, prompt: Sequence[int], num_tokens: int) -> None:
        """Asks for exactly `num_tokens` tokens and reads the answer to its end. Raises Surprise if
        it is not whole."""
        params = {"max_new_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True}
        body = {"input_ids": prompt, "sampling_params": params, "stream": True}
        content, event = json.dumps(body).encode(), "{}"
        self.sent_at = time.monotonic()
        async with http.stream("POST", "/generate", content=content) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    self.times.append(time.monotonic())
                    event = line.removeprefix("data: ")
        update = json.loads(event)
        if response.status_code != 200 or update.get("error") or "meta_info" not in update:
            raise Surprise(f"status {response.status_code}, last event {event[:300]}")
        self.meta = update["meta_info"]


class Watched:
    """A running cluster, as its clients and its operator see it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def answer(self, prompt: Sequence[int]) -> Stream:
        """Returns the answer to `prompt`, of ANSWER_TOKENS tokens, when it is complete."""
        stream = Stream()
        await asyncio.wait_for(stream.run(self.http, prompt, ANSWER_TOKENS), ANSWER_TIMEOUT_S)
        return stream

    async def cold(self, prompt: Sequence[int]) -> Cold:
        """Sends a cold prompt to a cluster with one prefill node and returns what it took. Raises
        Surprise unless exactly the pages of the prompt move."""
        before = await self.news(at_rest=True)
        stream = await self.answer(prompt)
        after = await self.news(at_rest=True)

        def growth(field: str) -> float:
            return sum(received(after, field).values()) - sum(received(before, field).values())

        num_bytes = prompt_bytes(after, prompt)
        if growth("bytes") != num_bytes:
            raise Surprise(f"{growth('bytes')} bytes moved of a cold prompt of {num_bytes}")
        prefill_s = busy_s(after, "p0") - busy_s(before, "p0")
        # /admin/nodes rounds to four decimals, and the difference of two such numbers does not.
        exposed_s = round(growth("exposed_s"), 4)
        return Cold(exposed_s, prefill_s, stream.first_token_s)

    async def nodes(self) -> Nodes:
        """Returns what the coordinator knows of the nodes now."""
        response = await self.http.get("/admin/nodes")
        response.raise_for_status()
        return {node["name"]: node for node in response.json()}

    async def news(self, at_rest: bool = False) -> Nodes:
        """Returns the nodes as soon as their heartbeats tell of everything that happened until now,
        and, with `at_rest`, nothing runs on any of them. Raises Surprise after a minute."""
        # A heartbeat tells of the last turn of a node's loop; an idle one takes IDLE_WAIT_S.
        since = time.monotonic() + IDLE_WAIT_S

        async def told() -> Nodes | None:
            asked_at = time.monotonic()
            nodes = await self.nodes()
            is_news = all(
                asked_at - node["last_heartbeat_s_ago"] > since for node in nodes.values()
            )
            return nodes if is_news and not (at_rest and any_work(nodes)) else None

        return await until(told, "heartbeats of all nodes")

    async def sender_of(self, num_bytes: float, before: Nodes) -> str | None:
        """Returns the name of a node that has sent `num_bytes` or more since `before`, if any."""
        then, now = received(before, "bytes"), received(await self.nodes(), "bytes")
        return next((p for p in now if now[p] - then.get(p, 0.0) >= num_bytes), None)

    async def is_new(self, name: str, before: Nodes) -> bool:
        """Returns True if the node is there and has another incarnation than `before`."""
        now = (await self.nodes()).get(name)
        return now is not None and now["incarnation"] != before[name]["incarnation"]


@asynccontextmanager
async def watching(cluster: LocalCluster) -> AsyncIterator[Watched]:
    """Yields a view of the cluster after every prefill node has had a prompt and made a link."""
    token = {"Authorization": f"Bearer {cluster.admin_token}"} if cluster.admin_token else {}
    async with httpx.AsyncClient(
        base_url=cluster.url, timeout=ANSWER_TIMEOUT_S, headers=token
    ) as http:
        watched, prompts = Watched(http), Prompts(0)
        # Sent at the same time, each prompt goes to another node.
        num_prompts = max(1, cluster.plan.num_prefill)
        warm_up = [watched.answer(prompts.new(WARM_UP_TOKENS)) for _ in range(num_prompts)]
        await asyncio.gather(*warm_up)
        yield watched


@contextmanager
def running(
    model: Path, num_prefill: int, node_flags: Mapping[str, str] | None = None
) -> Iterator[LocalCluster]:
    """Runs a cluster with prefill nodes p0, p1, … and one decode node, d0, which leaves all prompts
    to prefill nodes if there are any. When something fails, prints what its processes said last."""
    plan = ClusterPlan(
        num_prefill=num_prefill,
        num_decode=1,
        host=HOST,
        port=free_port(),
        coordinator_flags={
            "model_path": str(model),
            "policy": "disaggregate",
            "request_timeout_s": str(ANSWER_TIMEOUT_S),
        },
        node_flags={
            "model_path": str(model),
            "device": "cpu",
            "max_total_tokens": str(POOL_TOKENS),
            "receive_timeout_s": str(ANSWER_TIMEOUT_S),
            **(node_flags or {}),
        },
        start_timeout_s=START_TIMEOUT_S,
    )
    with (
        tempfile.TemporaryDirectory() as logs,
        LocalCluster(plan, Path(logs)) as cluster,
    ):
        try:
            yield cluster
        except BaseException:
            for child in cluster.children.values():
                print(f"{child.name}:", *child.last_lines, sep="\n  ", file=sys.stderr)
            raise


async def until(condition: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Polls until `condition()` gives a true value, and returns that. Raises Surprise, which names
    `what`, after a minute."""
    deadline = time.monotonic() + NEWS_TIMEOUT_S
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise Surprise(f"no {what} within {NEWS_TIMEOUT_S:g} s")
        await asyncio.sleep(POLL_S)
    return value


def received(nodes: Nodes, field: str) -> dict[str, float]:
    """Returns a counter of the decode node's incoming links, by the peer's name."""
    links = nodes["d0"]["links"]
    return {link["peer"]: link[field] for link in links if link["direction"] == "in"}


def busy_s(nodes: Nodes, name: str) -> float:
    """Returns how many seconds a node has spent in model steps."""
    return float(nodes[name]["load"]["counters"]["busy_s"])


def any_work(nodes: Nodes) -> bool:
    """Returns True if a request runs or waits on any node, or holds pages."""
    counters = ("num_running", "num_waiting", "held_pages")
    return any(node["load"][counter] for node in nodes.values() for counter in counters)


def layout_of(nodes: Nodes) -> KVLayout:
    """Returns the cluster's KV layout."""
    return KVLayout(**nodes["d0"]["layout"])


def prompt_bytes(nodes: Nodes, prompt: Sequence[int]) -> int:
    """Returns the size of all pages of a prompt, the last one counted as full."""
    layout = layout_of(nodes)
    return layout.num_pages(len(prompt)) * layout.page_bytes


def gaps_within(times: Sequence[float], start: float, end: float) -> list[float]:
    """Returns the gaps between neighbouring times of which a part lies in the window from `start`
    to `end`. The last gap reaches from the last time before `end` to `end` itself.

        times    |    |      |  |
        window      [           ...]       4 gaps, the last one up to `end`
    """
    seen = [*(at for at in times if at < end), end]
    return [after - before for before, after in pairwise(seen) if after > start]
