"""The measuring of transfers: what is counted, when a cluster is at rest, what is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from benchmarks.clusters.transfer_cluster import (
    MODES,
    TRANSPORTS,
    Exposed,
    Figures,
    FirstToken,
    Gaps,
    Warm,
    as_json,
    tables,
)
from benchmarks.clusters.watched_cluster import Cold, Stream, Surprise, Watched, gaps_within
from benchmarks.engines.random_model import END, VOCABULARY, Prompts, save_random_model
from engine.build import load_model_runner
from engine.options import EngineOptions
from protocol.layout import KVLayout

LAYOUT = {"page_size": 16, "num_layers": 1, "num_kv_heads": 1, "head_dim": 8, "dtype": "float32"}
PAGE_BYTES = KVLayout(**LAYOUT).page_bytes
PROMPT = list(range(3, 43))  # 3 pages


class FakeCluster:
    """A coordinator of p0 and d0: each prompt moves `num_pages`, computes 2 s, exposes 0.5 s.

    Its nodes work on after an answer, for `num_late` heartbeats.
    """

    def __init__(self, num_pages: int = 3, num_late: int = 0, heartbeat_age_s: float = 0.0) -> None:
        self.num_pages = num_pages
        self.num_late = num_late
        self.heartbeat_age_s = heartbeat_age_s
        self.num_prompts = 0
        self.num_asked = 0
        self.incarnation = 1
        self.event: dict[str, Any] = {"meta_info": {"attempts": 1}}

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/generate":
            self.num_prompts += 1
            self.num_asked = 0
            text = f"data: {json.dumps({'text': ''})}\n\ndata: {json.dumps(self.event)}\n\n"
            return httpx.Response(200, text=text + "data: [DONE]\n\n")
        self.num_asked += 1
        is_late = self.num_prompts > 0 and self.num_asked <= self.num_late
        num_ended = self.num_prompts - is_late
        link = {"peer": "p0", "direction": "in", "bytes": num_ended * self.num_pages * PAGE_BYTES}
        out = link | {"direction": "out", "bytes": 1, "exposed_s": 0.0}
        links = {"d0": [link | {"exposed_s": 0.5 * num_ended}, out], "p0": []}
        nodes = [
            {
                "name": name,
                "incarnation": self.incarnation,
                "layout": LAYOUT,
                "last_heartbeat_s_ago": self.heartbeat_age_s,
                "links": links[name],
                "load": {
                    "counters": {"busy_s": 2.0 * num_ended},
                    "num_running": 0,
                    "num_waiting": 0,
                    "held_pages": int(is_late),
                },
            }
            for name in ("p0", "d0")
        ]
        return httpx.Response(200, json=nodes)

    def run(self, work: Callable[[Watched], Any]) -> Any:
        async def do() -> Any:
            transport = httpx.MockTransport(self.handle)
            async with httpx.AsyncClient(transport=transport, base_url="http://fake") as http:
                return await asyncio.wait_for(work(Watched(http)), 10.0)

        return asyncio.run(do())


def test_a_cold_prompt_is_charged_what_the_counters_grew_by() -> None:
    cold = FakeCluster().run(lambda watched: watched.cold(PROMPT))
    assert (cold.exposed_s, cold.prefill_s, cold.share) == (0.5, 2.0, 0.25)
    assert cold.share_at_most == cold.first_token_s / 2.0 - 1


def test_counters_are_read_when_the_nodes_are_at_rest() -> None:
    assert FakeCluster(num_late=20).run(lambda watched: watched.cold(PROMPT)).exposed_s == 0.5


@pytest.mark.parametrize("num_pages", [2, 4])
def test_other_bytes_than_those_of_the_prompt_are_no_measurement(num_pages: int) -> None:
    with pytest.raises(Surprise, match=f"{num_pages * PAGE_BYTES} bytes moved"):
        FakeCluster(num_pages).run(lambda watched: watched.cold(PROMPT))


def test_an_old_heartbeat_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.clusters.watched_cluster.NEWS_TIMEOUT_S", 0.3)
    with pytest.raises(Surprise, match="heartbeats"):
        FakeCluster(heartbeat_age_s=1.0).run(lambda watched: watched.news())


@pytest.mark.parametrize("event", [{"error": {"message": "no"}, "meta_info": {}}, {"text": "cut"}])
def test_an_answer_that_is_not_whole_is_no_measurement(event: dict[str, Any]) -> None:
    fake = FakeCluster()
    fake.event = event
    with pytest.raises(Surprise, match="last event"):
        fake.run(lambda watched: watched.answer(PROMPT))


def test_a_stream_knows_when_its_events_came() -> None:
    stream: Stream = FakeCluster().run(lambda watched: watched.answer(PROMPT))
    assert len(stream.times) == 2 and stream.sent_at <= stream.times[0] <= stream.times[1]
    assert stream.meta == {"attempts": 1}


def test_the_sender_is_who_sent_so_much_since() -> None:
    fake = FakeCluster()
    before = fake.run(lambda watched: watched.nodes())
    fake.num_prompts = 1
    for num_pages, sender in ((0.5, "p0"), (3, "p0"), (3.1, None)):
        found = fake.run(lambda watched, n=num_pages: watched.sender_of(n * PAGE_BYTES, before))
        assert found == sender


def test_a_node_is_new_by_its_incarnation() -> None:
    fake = FakeCluster()
    before = fake.run(lambda watched: watched.nodes())
    assert not fake.run(lambda watched: watched.is_new("p0", before))
    fake.incarnation = 2
    assert fake.run(lambda watched: watched.is_new("p0", before))
    assert not fake.run(lambda watched: watched.is_new("p1", before))  # not there yet


@pytest.mark.parametrize(
    ("times", "gaps"),
    [
        ([1, 2, 4, 7, 11], [2, 3, 3]),  # one reaches into the window, one is cut by its end
        ([1, 2], [8]),  # no token in the window: the stream has stalled
        ([5], [5]),
        ([2, 3, 10, 12], [1, 7]),
    ],
)
def test_gaps_that_reach_into_a_window_count_whole_up_to_its_end(
    times: list[float], gaps: list[float]
) -> None:
    assert gaps_within(times, start=2.5, end=10.0) == gaps


def test_no_two_prompts_share_a_page_or_end_an_answer() -> None:
    prompts = Prompts(1)
    many = [prompts.new(64) for _ in range(100)]
    assert len({tuple(prompt[:16]) for prompt in many}) == 100
    assert all(END < token < VOCABULARY for prompt in many for token in prompt)


def test_the_model_is_what_the_physics_say(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    runner = load_model_runner(tmp_path, EngineOptions(), lambda layout: 1, torch.device("cpu"))
    assert runner.layout.page_bytes == 256 << 10
    num_weights = sum(p.numel() for layer in runner.model.layers for p in layer.parameters())
    assert round(num_weights / 1e6, 1) == 23.6


def test_json_has_the_shares_of_each_length_and_transport() -> None:
    exposed = [
        Exposed(transport, mode, 512, (Cold(seconds, 1.0, 1.5), Cold(0.0, 1.0, 1.5)))
        for transport in TRANSPORTS
        for mode, seconds in zip(MODES, (0.02, 0.04, 0.2), strict=True)
    ]
    warm = [Warm(transport, 2, 200, 100 * i) for i, transport in enumerate(TRANSPORTS, 2)]
    first_token = [FirstToken(512, (2.0, 3.0, 9.0), (1.0, 2.0, 9.0))]
    undisturbed, killed = (
        [Gaps(share, worst_s, 0.01, 3.0) for share, worst_s in ((0.1, worst), (0.9, worst / 2))]
        for worst in (0.1, 0.3)
    )
    figures = Figures(exposed, first_token, warm, undisturbed, killed)
    report = as_json(figures)
    assert report["exposed_share"] == report["tcp"]["exposed_share"] == {"512": 0.01}
    assert report["exposed_share_at_most"] == {"512": 0.5}
    assert report["exposed_share_one_chunk"] == {"512": 0.02}
    assert report["exposed_share_unstreamed"] == {"512": 0.1}
    assert report["ttft_vs_one_node"] == {"512": 1.5}
    assert (report["warm_bytes_ratio"], report["tcp"]["warm_bytes_ratio"]) == (1.0, 1.5)
    assert (report["worst_gap_s"], report["worst_gap_undisturbed_s"]) == (0.3, 0.1)
    assert len(tables(figures)) == 4
