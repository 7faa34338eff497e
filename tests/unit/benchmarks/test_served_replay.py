"""The replay with decode steps, on requests few enough to reckon with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.replaying import mixed
from benchmarks.replaying.serving import (
    HANDOVER_S,
    PROMPT_TOKENS_PER_S,
    STEP_ANSWER_S,
    STEP_BASE_S,
    Served,
    Serving,
    ServingPlan,
    Workload,
)
from kvrelay.bench.workloads.trace import TraceRequest
from protocol.hashing import PAGE_HASH_BYTES

ALONE_S = STEP_BASE_S + STEP_ANSWER_S


def asked(at: float, num_tokens: int, num_output_tokens: int, name: int = 0) -> TraceRequest:
    hashes = [((name << 8) + i).to_bytes(PAGE_HASH_BYTES, "little") for i in range(20)]
    return TraceRequest(at, num_tokens, num_output_tokens, hashes[: -(-num_tokens // 512)])


def serve(plan: ServingPlan, *requests: TraceRequest) -> Served:
    return Serving(Workload(requests), plan).run()


def test_one_request_on_a_pair() -> None:
    served = serve(ServingPlan(mixed.PAIR, "disaggregate"), asked(0.0, 2000, 5))
    assert served.first_token_s == [pytest.approx(2000 / PROMPT_TOKENS_PER_S + HANDOVER_S)]
    assert served.gaps_s == [pytest.approx(ALONE_S)] * 4 and served.num_mixed == 0


def test_a_prompt_that_was_computed_before_costs_its_end() -> None:
    plan = ServingPlan(mixed.REPLICAS, "cost")
    served = serve(plan, asked(0.0, 2048 + 100, 2), asked(1.0, 2048 + 100, 2))
    assert served.first_token_s[1] == pytest.approx(STEP_BASE_S)


def test_a_chunk_beside_an_answer_makes_one_gap_longer_or_several_a_little() -> None:
    one_node = ("decode",)
    requests = asked(0.0, 100, 200, name=1), asked(0.1, 2000, 1, name=2)
    whole = serve(ServingPlan(one_node, "cost"), *requests)
    assert max(whole.gaps_s) == pytest.approx(ALONE_S + 2000 / PROMPT_TOKENS_PER_S)
    cut = serve(ServingPlan(one_node, "cost", max_itl_s=0.01), *requests)
    assert max(cut.gaps_s) == pytest.approx(0.01, rel=0.01)
    assert sum(cut.gaps_s) == pytest.approx(sum(whole.gaps_s), rel=0.01)
    assert cut.first_token_s[1] > whole.first_token_s[1]


@pytest.mark.parametrize("name", mixed.PLANS)
def test_every_token_is_counted_once(name: str) -> None:
    for load, rate in (("chats", 14.0), ("turns", 8), ("mixed", 2.0)):
        workload = mixed.workload_of(load, rate, 60, seed=3)
        served = Serving(workload, mixed.PLANS[name]).run()
        assert len(served.others_first_token_s) == len(workload.others)
        num_first = len(served.first_token_s) + len(served.others_first_token_s)
        assert num_first == len(workload.requests)
        num_gaps = sum(request.num_output_tokens - 1 for request in workload.requests)
        assert len(served.gaps_s) == num_gaps


def test_a_short_prompt_passes_a_long_one_in_the_order_of_the_nodes_alone() -> None:
    requests = asked(0.0, 12_000, 1, name=1), asked(0.1, 300, 1, name=2)
    plan = ServingPlan(("decode",), "cost")
    short_s, long_s = serve(plan, *requests).first_token_s
    by_arrival = replace(plan, in_order_of_arrival=True)
    first_s, second_s = serve(by_arrival, *requests).first_token_s
    assert short_s < 0.1 < 0.2 < second_s
    assert first_s < long_s < first_s + 600 / PROMPT_TOKENS_PER_S


def test_a_turn_follows_the_answer_before_it_and_finds_its_pages() -> None:
    second = asked(0.5, 2048 + 600 + 100, 1)
    first = TraceRequest(0.0, 2048, 600, second.hashes)
    workload = Workload((first, second), {1: 0}, hashes_answers=True)
    plan = ServingPlan(("decode",), "cost")
    served = Serving(workload, plan).run()
    assert served.duration_s > 0.5 + sum(served.gaps_s)
    num_left = 2048 + 600 + 100 - 5 * 512
    assert served.first_token_s[1] == pytest.approx(
        max(STEP_BASE_S, num_left / PROMPT_TOKENS_PER_S), rel=0.01
    )


def test_mixed_work_gives_first_tokens_near_replicas_and_gaps_within_the_bound() -> None:
    workload = mixed.workload_of("random", 14.0, 200, seed=0)
    outcomes = {n: mixed.figures(Serving(workload, p).run()) for n, p in mixed.PLANS.items()}
    apart, replicas, cost = (outcomes[n] for n in ("disaggregate", "replicas", "cost 10"))
    assert replicas["ttft_mean_ms"] < cost["ttft_mean_ms"] < 0.85 * apart["ttft_mean_ms"]
    assert cost["itl_p99_ms"] < 12 < 0.3 * replicas["itl_p99_ms"]
    assert 0.0 < cost["computed_where_answered"] < 1.0 == replicas["computed_where_answered"]


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed.main(["--requests", "5", "--out", str(tmp_path / "out.json")])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "out.json").read_text())
    points = [(load, rate) for load, rates in mixed.LOADS.items() for rate in rates]
    assert [(row["load"], row["rate"]) for row in report["rows"]] == points
    assert all(row.keys() >= mixed.PLANS.keys() for row in report["rows"])
    by_arrival = {f"{name}, by arrival" for name in mixed.BY_ARRIVAL}
    assert all(row.keys() >= by_arrival for row in report["rows"])
