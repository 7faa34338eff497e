"""Measures what moving pages costs requests, on real clusters of CPU nodes with random weights.

Physics: a token costs 2 x 23.6 M weights = 47 MFLOP, and 16 kFLOP per token that it attends to; its
KV is 16 KiB, a page of 16 tokens 256 KiB. So prompts of 512, 2048 and 8192 tokens are 0.03, 0.13
and 0.94 TFLOP, some 0.3, 1.6 and 12 s of a core at 80 GFLOP/s, and 8, 32 and 128 MiB of pages, some
5, 20 and 80 ms at 1.6 GB/s. Sent when all is computed that is 1 to 2 % of the prefill; streamed,
only the last layer of the last chunk is left, 1 MiB or less than a millisecond, and it travels
while the first token is chosen and told. (Llama-3-8B: 16 GFLOP and 128 KiB per token; on a GPU of
400 TFLOP/s and links of 50 GB/s the bytes take 6 % of the time of the FLOPs.)

exposed      growth of `exposed_s` of decode's links: from the first token's arrival at the decode
             node to that of the last page
prefill      growth of `busy_s_total` of the prefill node: its time in model steps
first token  at the client, from the request to the first event; what of it is not prefill is the
             most that can be exposed, HTTP and control messages included
one node     the same prompts on a decode node without a prefill node, in turns with the pair
gap          between two events of a stream, at the client, beside a cold prompt: in a window from
             when a share of its pages is there, its prefill node is killed then, or nobody is

Every prompt has new random ids, and figures are medians over several prompts. The first request of
a cluster, which makes links and buffers, is not counted.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.clusters.watched_cluster import (
    Cold,
    Stream,
    Surprise,
    Watched,
    gaps_within,
    layout_of,
    prompt_bytes,
    received,
    running,
    until,
    watching,
)
from benchmarks.engines.random_model import Prompts, save_random_model
from infra.cluster import LocalCluster

TRANSPORTS = ("shm", "tcp")
"""The first one is what nodes of one host choose."""
WARM_SHARE = 0.9
"""The share of a prompt's pages that the decode node already has in `measure_warm`."""
STREAM_PROMPT_TOKENS = 64
STREAM_TOKENS = 4096
"""The length of streams that are watched: they must not end before their client leaves."""
FIRST_TOKENS = 8
"""Streams count as under way when each has had this many tokens."""
ONE_CHUNK = {"chunked_prefill_size": "8192"}
MODES: Mapping[str, Mapping[str, str]] = {
    "streamed": {},
    "one chunk": ONE_CHUNK,
    "unstreamed": ONE_CHUNK | {"kv_min_send_bytes": str(1 << 40)},
}
"""By the name of a mode: the flags of its nodes. In `unstreamed` everything is sent when everything
is computed, since no layers ever have as many bytes as a send must have."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    repeats: Mapping[int, int]
    """How many prompts of each length; lengths are in tokens."""
    warm_tokens: int
    """The length of the prompt of which the decode node has most pages."""
    killed_tokens: int
    """The length of the prompt whose prefill node is killed."""
    kill_at: tuple[float, ...]
    """The shares of that prompt's pages that are there when its prefill node is killed."""
    num_streams: int
    """How many streams run beside that prompt."""
    window_s: float
    """For how long the gaps of those streams are watched."""


FULL = Scale({512: 7, 2048: 5, 8192: 3}, 2040, 8192, (0.1, 0.5, 0.9), 4, 6.0)
QUICK = Scale({256: 3, 1024: 1}, 504, 4096, (0.5,), 2, 2.0)


@dataclass(frozen=True)
class Exposed:
    """Cold prompts of one length, over one transport in one mode."""

    transport: str
    mode: str
    num_tokens: int
    prompts: tuple[Cold, ...]

    def of(self, name: str) -> float:
        """Returns the median of an attribute of `Cold`."""
        return median(getattr(prompt, name) for prompt in self.prompts)


@dataclass(frozen=True)
class FirstToken:
    """The times to the first token of cold prompts of one length."""

    num_tokens: int
    pair_s: tuple[float, ...]
    """Seconds for each prompt, with a prefill and a decode node."""
    one_node_s: tuple[float, ...]
    """Seconds for each of the same prompts, with a decode node alone."""

    @property
    def ratios(self) -> list[float]:
        """Returns the pair's time over that of one node, for each prompt."""
        return [pair / one for pair, one in zip(self.pair_s, self.one_node_s, strict=True)]


@dataclass(frozen=True)
class Warm:
    """What moved for a prompt of which the decode node had most pages."""

    transport: str
    missing_pages: int
    missing_bytes: int
    """The size of the pages that the decode node lacked."""
    moved_bytes: int

    @property
    def ratio(self) -> float:
        """The bytes moved over those that were missing; 1 is ideal."""
        return self.moved_bytes / self.missing_bytes


@dataclass(frozen=True)
class Gaps:
    """The gaps between the events of streams beside a cold prompt, in a window of time that begins
    when a share of the prompt's pages has arrived."""

    share: float
    worst_s: float
    """The longest gap, in seconds."""
    median_s: float
    """The median gap, in seconds."""
    prompt_s: float
    """Seconds to the first token of the cold prompt."""


@dataclass(frozen=True)
class Figures:
    """Everything that is measured."""

    exposed: list[Exposed]
    first_token: list[FirstToken]
    warm: list[Warm]
    undisturbed: list[Gaps]
    """Gaps while nobody is killed."""
    killed: list[Gaps]
    """Gaps after the prefill node of the cold prompt was killed."""


def measure(scale: Scale) -> Figures:
    """Measures everything, which takes some ten minutes at full scale."""
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory)
        save_random_model(model)
        return asyncio.run(_measure(model, scale))


async def _measure(model: Path, scale: Scale) -> Figures:
    exposed = [
        row
        for transport in TRANSPORTS
        for mode in MODES
        for row in await measure_exposed(model, transport, mode, scale.repeats)
    ]
    first_token = await measure_first_token(model, scale.repeats)
    warm = [await measure_warm(model, name, scale.warm_tokens) for name in TRANSPORTS]
    undisturbed, killed = await measure_gaps(model, scale)
    return Figures(exposed, first_token, warm, undisturbed, killed)


async def measure_exposed(
    model: Path, transport: str, mode: str, repeats: Mapping[int, int]
) -> list[Exposed]:
    """Measures cold prompts of every length over one transport in one mode."""
    prompts, rows = Prompts(1), []
    flags = {"kv_backend": transport, **MODES[mode]}
    with running(model, 1, flags) as cluster:
        async with watching(cluster) as watched:
            for num_tokens, repeat in repeats.items():
                colds = [await watched.cold(prompts.new(num_tokens)) for _ in range(repeat)]
                rows.append(Exposed(transport, mode, num_tokens, tuple(colds)))
    return rows


async def measure_first_token(model: Path, repeats: Mapping[int, int]) -> list[FirstToken]:
    """Measures the same prompts on a pair of nodes and on one node alone.

    Both clusters are up all the time, one of them idle, and they take turns in who is first, so
    that whatever else the machine does hits both alike.
    """
    prompts, rows = Prompts(2), []
    with running(model, 1) as pair, running(model, 0) as one_node:
        async with watching(pair) as watched_pair, watching(one_node) as watched_node:
            order = [watched_pair, watched_node]
            for num_tokens, repeat in repeats.items():
                seconds: dict[Watched, list[float]] = {watched: [] for watched in order}
                for _ in range(repeat):
                    prompt = prompts.new(num_tokens)
                    for watched in order:
                        seconds[watched].append((await watched.answer(prompt)).first_token_s)
                    order.reverse()
                pair_s, one_node_s = seconds[watched_pair], seconds[watched_node]
                rows.append(FirstToken(num_tokens, tuple(pair_s), tuple(one_node_s)))
    return rows


async def measure_warm(model: Path, transport: str, num_tokens: int) -> Warm:
    """Has the decode node compute or receive most of a prompt first, then measures what moves for
    the whole prompt."""
    prompt = Prompts(3).new(num_tokens)
    with running(model, 1, {"kv_backend": transport}) as cluster:
        async with watching(cluster) as watched:
            before = await watched.news(at_rest=True)
            layout = layout_of(before)
            num_pages = layout.num_pages(num_tokens)
            held_pages = int(num_pages * WARM_SHARE)
            await watched.answer(prompt[: held_pages * layout.page_size])
            before = await watched.news(at_rest=True)
            await watched.answer(prompt)
            after = await watched.news(at_rest=True)
    missing_pages = num_pages - held_pages
    moved_bytes = sum(received(after, "bytes").values()) - sum(received(before, "bytes").values())
    return Warm(transport, missing_pages, missing_pages * layout.page_bytes, int(moved_bytes))


async def measure_gaps(model: Path, scale: Scale) -> tuple[list[Gaps], list[Gaps]]:
    """Measures the gaps of streams beside a cold prompt: first while nobody is killed, then while
    the prompt's prefill node is killed as it sends, so that another one takes over."""
    prompts = Prompts(4)
    undisturbed, killed = [], []
    with running(model, 2) as cluster:
        async with watching(cluster) as watched:
            for share in scale.kill_at:
                undisturbed.append(await _gaps(watched, prompts, scale, share, None))
                killed.append(await _gaps(watched, prompts, scale, share, cluster))
    return undisturbed, killed


async def _gaps(
    watched: Watched, prompts: Prompts, scale: Scale, share: float, cluster: LocalCluster | None
) -> Gaps:
    """Measures the gaps of streams from when `share` of a cold prompt's pages has arrived.

    If `cluster` is given, the prompt's prefill node is killed at that moment and started again in
    the end. Raises Surprise if the prompt takes another number of attempts than that needs.
    """
    long_prompt = prompts.new(scale.killed_tokens)
    async with _streams(watched, prompts, scale.num_streams) as streams:
        before = await watched.news()
        num_bytes = share * prompt_bytes(before, long_prompt)
        answer = asyncio.create_task(watched.answer(long_prompt))
        sender = await until(lambda: watched.sender_of(num_bytes, before), "pages on their way")
        if cluster is not None:
            cluster.children[sender].process.kill()
        start = time.monotonic()
        await asyncio.sleep(scale.window_s)
        end = time.monotonic()
        gaps = [gap for stream in streams for gap in gaps_within(stream.times, start, end)]
    prompt = await answer
    if prompt.meta["attempts"] != (1 if cluster is None else 2):
        raise Surprise(f"the prompt was answered in {prompt.meta['attempts']} attempts")
    if cluster is not None:
        cluster.start_node("prefill", sender)
        await until(lambda: watched.is_new(sender, before), f"{sender} started again")
    return Gaps(share, max(gaps), median(gaps), prompt.first_token_s)


@asynccontextmanager
async def _streams(watched: Watched, prompts: Prompts, num: int) -> AsyncIterator[list[Stream]]:
    """Runs `num` streams; yields them when all are under way, and leaves them in the end. Raises
    Surprise if one ends by itself."""
    streams = [Stream() for _ in range(num)]
    tasks = [
        asyncio.create_task(
            stream.run(watched.http, prompts.new(STREAM_PROMPT_TOKENS), STREAM_TOKENS)
        )
        for stream in streams
    ]

    async def under_way() -> bool:
        for task in tasks:
            if task.done():
                task.result()  # raises what ended it
        return all(len(stream.times) >= FIRST_TOKENS for stream in streams)

    try:
        await until(under_way, "streams under way")
        yield streams
        if any(task.done() for task in tasks):
            raise Surprise("a stream ended while it was watched")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def as_json(figures: Figures) -> dict[str, Any]:
    """Returns the figures that the aims are about: those of the first transport at the top, those
    of the others under their names."""
    first, *others = (_transport_json(figures, transport) for transport in TRANSPORTS)
    return {
        **first,
        "ttft_vs_one_node": {
            str(row.num_tokens): round(median(row.ratios), 4) for row in figures.first_token
        },
        "worst_gap_s": round(max(gaps.worst_s for gaps in figures.killed), 4),
        "worst_gap_undisturbed_s": round(max(gaps.worst_s for gaps in figures.undisturbed), 4),
        **dict(zip(TRANSPORTS[1:], others, strict=True)),
    }


def _transport_json(figures: Figures, transport: str) -> dict[str, Any]:
    """Returns the shares of exposed time and the ratio of warm bytes, of one transport."""

    def shares(mode: str, name: str = "share") -> dict[str, float]:
        return {
            str(row.num_tokens): round(row.of(name), 5)
            for row in figures.exposed
            if (row.transport, row.mode) == (transport, mode)
        }

    (warm,) = [row for row in figures.warm if row.transport == transport]
    return {
        "exposed_share": shares("streamed"),
        "exposed_share_at_most": shares("streamed", "share_at_most"),
        "exposed_share_one_chunk": shares("one chunk"),
        "exposed_share_unstreamed": shares("unstreamed"),
        "exposed_share_unstreamed_at_most": shares("unstreamed", "share_at_most"),
        "warm_bytes_ratio": warm.ratio,
    }


def tables(figures: Figures) -> list[Table]:
    """Returns all figures as tables for people."""
    headings = ("tokens", "prefill s", "first token s", "exposed ms", "/ prefill", "at most")
    exposed = _table("cold prompts", "transport", "mode", *headings)
    for row in figures.exposed:
        exposed.add_row(
            row.transport,
            row.mode,
            str(row.num_tokens),
            f"{row.of('prefill_s'):.3f}",
            f"{row.of('first_token_s'):.3f}",
            f"{row.of('exposed_s') * 1e3:.1f}",
            f"{row.of('share'):.2%}",
            f"{row.of('share_at_most'):.2%}",
        )
    first = _table("first token, cold", "tokens", "pair s", "one node s", "ratio", "least", "most")
    for pair in figures.first_token:
        ratios = sorted(pair.ratios)
        values = (
            median(pair.pair_s),
            median(pair.one_node_s),
            median(ratios),
            ratios[0],
            ratios[-1],
        )
        first.add_row(str(pair.num_tokens), *(f"{value:.3f}" for value in values))
    warm = _table("90 % on decode", "transport", "pages missing", "MB missing", "moved / missing")
    for held in figures.warm:
        megabytes = f"{held.missing_bytes / 1e6:.1f}"
        warm.add_row(held.transport, str(held.missing_pages), megabytes, f"{held.ratio:.4f}")
    gaps = _table(
        "other streams", "", "from", "worst gap ms", "median ms", "prompt's first token s"
    )
    for name, rows in (("nobody killed", figures.undisturbed), ("killed", figures.killed)):
        for beside in rows:
            milliseconds = (f"{s * 1e3:.0f}" for s in (beside.worst_s, beside.median_s))
            gaps.add_row(name, f"{beside.share:.0%}", *milliseconds, f"{beside.prompt_s:.2f}")
    return [exposed, first, warm, gaps]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
