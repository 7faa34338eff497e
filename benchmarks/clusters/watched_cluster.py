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
"""What /admin/nodes says, by name."""
T = TypeVar("T")


class Surprise(Exception):
    """The cluster did something else than what is to be measured."""


@dataclass(frozen=True)
class Cold:
    """What one cold prompt took, in seconds."""

    exposed_s: float
    prefill_s: float
    first_token_s: float

    @property
    def share(self) -> float:
        return self.exposed_s / self.prefill_s

    @property
    def share_at_most(self) -> float:
        return self.first_token_s / self.prefill_s - 1


class Stream:
    """One streamed answer and when its events came; times are `time.monotonic`."""

    def __init__(self) -> None:
        self.sent_at = 0.0
        self.times: list[float] = []
        self.meta: dict[str, Any] = {}
        """meta_info of the last event, when all are here."""

    @property
    def first_token_s(self) -> float:
        return self.times[0] - self.sent_at

    async def run(self, http: httpx.AsyncClient, prompt: Sequence[int], num_tokens: int) -> None:
        """Raises Surprise if there is no whole answer."""
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
        """Some tokens for `prompt`; returns when all are here."""
        stream = Stream()
        await asyncio.wait_for(stream.run(self.http, prompt, ANSWER_TOKENS), ANSWER_TIMEOUT_S)
        return stream

    async def cold(self, prompt: Sequence[int]) -> Cold:
        """Of the one prefill node. Raises Surprise unless all pages of the prompt move."""
        before = await self.news(at_rest=True)
        stream = await self.answer(prompt)
        after = await self.news(at_rest=True)

        def growth(field: str) -> float:
            return sum(received(after, field).values()) - sum(received(before, field).values())

        num_bytes = prompt_bytes(after, prompt)
        if growth("bytes") != num_bytes:
            raise Surprise(f"{growth('bytes')} bytes moved of a cold prompt of {num_bytes}")
        prefill_s = busy_s(after, "p0") - busy_s(before, "p0")
        exposed_s = round(growth("exposed_s"), 4)  # as nodes are shown with it
        return Cold(exposed_s, prefill_s, stream.first_token_s)

    async def nodes(self) -> Nodes:
        response = await self.http.get("/admin/nodes")
        response.raise_for_status()
        return {node["name"]: node for node in response.json()}

    async def news(self, at_rest: bool = False) -> Nodes:
        """The nodes by heartbeats that know of everything until now; `at_rest`: and nothing runs.

        A heartbeat tells of the last turn of a node's loop, of which an idle one takes IDLE_WAIT_S.
        """
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
        """The node that has sent so much since `before`, if any has."""
        then, now = received(before, "bytes"), received(await self.nodes(), "bytes")
        return next((p for p in now if now[p] - then.get(p, 0.0) >= num_bytes), None)

    async def is_new(self, name: str, before: Nodes) -> bool:
        """The node has another incarnation than `before`."""
        now = (await self.nodes()).get(name)
        return now is not None and now["incarnation"] != before[name]["incarnation"]


@asynccontextmanager
async def watching(cluster: LocalCluster) -> AsyncIterator[Watched]:
    """Warmed up: every prefill node has had a prompt, and a link."""
    token = {"Authorization": f"Bearer {cluster.admin_token}"} if cluster.admin_token else {}
    async with httpx.AsyncClient(
        base_url=cluster.url, timeout=ANSWER_TIMEOUT_S, headers=token
    ) as http:
        watched, prompts = Watched(http), Prompts(0)
        num_prompts = max(1, cluster.plan.num_prefill)  # at once: each goes to another node
        warm_up = [watched.answer(prompts.new(WARM_UP_TOKENS)) for _ in range(num_prompts)]
        await asyncio.gather(*warm_up)
        yield watched


@contextmanager
def running(
    model: Path, num_prefill: int, node_flags: Mapping[str, str] | None = None
) -> Iterator[LocalCluster]:
    """A cluster with one decode node, d0, that leaves all prompts to prefill nodes if it has any;
    gone afterwards. What its processes said last is shown when something fails."""
    plan = ClusterPlan(
        num_prefill=num_prefill,
        num_decode=1,
        host=HOST,
        port=free_port(),
        coordinator_flags={
            "model_path": str(model),
            "local_prefill_max_tokens": "0",
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
    """Polls until `condition()` is true; its value. Raises Surprise after a minute."""
    deadline = time.monotonic() + NEWS_TIMEOUT_S
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise Surprise(f"no {what} within {NEWS_TIMEOUT_S:g} s")
        await asyncio.sleep(POLL_S)
    return value


def received(nodes: Nodes, field: str) -> dict[str, float]:
    """A counter of the decode node's incoming links, by peer."""
    links = nodes["d0"]["links"]
    return {link["peer"]: link[field] for link in links if link["direction"] == "in"}


def busy_s(nodes: Nodes, name: str) -> float:
    return float(nodes[name]["load"]["counters"]["busy_s"])


def any_work(nodes: Nodes) -> bool:
    counters = ("num_running", "num_waiting", "held_pages")
    return any(node["load"][counter] for node in nodes.values() for counter in counters)


def layout_of(nodes: Nodes) -> KVLayout:
    return KVLayout(**nodes["d0"]["layout"])


def prompt_bytes(nodes: Nodes, prompt: Sequence[int]) -> int:
    layout = layout_of(nodes)
    return layout.num_pages(len(prompt)) * layout.page_bytes


def gaps_within(times: Sequence[float], start: float, end: float) -> list[float]:
    """Those of which a part is in the window, from token to token; what `end` cuts off is not
    counted.

        times    |    |      |  |
        window      [           ...]       4 gaps, the last one up to `end`
    """
    seen = [*(at for at in times if at < end), end]
    return [after - before for before, after in pairwise(seen) if after > start]
