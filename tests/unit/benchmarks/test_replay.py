"""The replay's model on traces small enough to reckon with, and what the benchmark prints."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import route
from benchmarks.replaying.replay import REPLAYED, Outcome, Replay, Settings
from kvrelay.bench.workloads.trace import BLOCK_TOKENS, BadTrace, TraceRequest, bound, read_trace
from tests.support.coordinator.traces import BASE_S, request

BLOCK_S = BLOCK_TOKENS / 40_000


def replay(trace: list[TraceRequest], policy: str = "disaggregate", **other: float) -> Outcome:
    values = {"nodes": 1, "pages_per_node": 0} | other
    return Replay(trace, Settings(policy=policy, **values)).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", REPLAYED)
def test_one_node_computes_one_after_another(policy: str) -> None:
    outcome = replay([request(0.0, "a"), request(0.0, "b"), request(0.0, "c")], policy)
    one_s = BASE_S + BLOCK_S
    assert outcome.first_token_s == pytest.approx([one_s, 2 * one_s, 3 * one_s])
    assert outcome.busy_s == pytest.approx([3 * one_s])
    assert outcome.duration_s == pytest.approx(3 * one_s)
    assert outcome.utilisation == pytest.approx(1.0) and outcome.imbalance == 1.0
    assert outcome.mean_s == pytest.approx(2 * one_s)
    assert outcome.quantile_s(0.5) == pytest.approx(2 * one_s)
    assert outcome.hit == outcome.hit_fetched == 0.0


@pytest.mark.parametrize("policy", REPLAYED)
def test_blocks_that_are_there_are_not_computed_again(policy: str) -> None:
    outcome = replay([request(0.0, "aaaa"), request(5.0, "aaaabb"), request(10.0, "aaaa")], policy)
    assert outcome.first_token_s == pytest.approx(
        [BASE_S + 4 * BLOCK_S, BASE_S + 2 * BLOCK_S, BASE_S + 1 / 40_000]
    )
    assert (outcome.hit_blocks, outcome.num_blocks) == (8, 14)
    assert outcome.hit == outcome.hit_fetched == 8 / 14


def test_idle_nodes_share_a_burst() -> None:
    outcome = replay([request(0.0, "a"), request(0.0, "b")], nodes=2)
    assert outcome.first_token_s == pytest.approx([BASE_S + BLOCK_S] * 2)
    assert outcome.imbalance == 1.0
    alone = replay([request(0.0, "a")], nodes=2)
    assert alone.imbalance == 2.0 and alone.utilisation == pytest.approx(0.5)


def test_a_prefix_is_fetched_rather_than_waited_for_or_computed_again() -> None:
    """40 blocks are on one node. Of two prompts that continue them, that node computes one."""
    shared, rest_s = "s" * 40, BASE_S + 40 * BLOCK_S
    trace = [request(0.0, shared)]
    trace += [request(10.0, shared + letter * 40) for letter in "ab"]
    outcome = replay(trace, nodes=2)
    fetch_s = 0.002 + 40 * BLOCK_TOKENS / 200_000
    assert outcome.first_token_s == pytest.approx([rest_s, rest_s, fetch_s + rest_s])
    assert (outcome.hit_blocks, outcome.fetched_blocks, outcome.num_blocks) == (40, 40, 200)
    assert outcome.hit_fetched == 0.4


def test_what_is_stored_becomes_known_when_events_say_so() -> None:
    """The prompt comes again when no claim is left; unknown, it goes to the node that did less."""
    trace = [request(0.0, "aaaa"), request(100.0, "aaaa")]
    assert replay(trace, nodes=2, event_lag_s=50.0).hit_blocks == 4
    assert replay(trace, nodes=2, event_lag_s=200.0).hit_blocks == 0


def test_a_claim_bridges_the_lag_of_events() -> None:
    trace = [request(0.0, "aaaa"), request(1.0, "aaaabb")]
    assert replay(trace, nodes=4, event_lag_s=200.0).hit_blocks == 4


def test_a_full_cache_forgets_what_was_used_longest_ago() -> None:
    trace = [request(float(i), path) for i, path in enumerate(["aa", "bb", "aa", "cc", "aa", "bb"])]
    assert replay(trace, pages_per_node=2).hit_blocks == 0
    assert replay(trace, pages_per_node=4).hit_blocks == 4, "a stays, b is gone"
    assert replay(trace, pages_per_node=6).hit_blocks == 6


# Files


def row(timestamp: float, *blocks: int) -> str:
    return json.dumps({"timestamp": timestamp, "input_length": 700, "hash_ids": blocks})


def test_requests_of_one_timestamp_are_spread_up_to_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    stamps = [0, 0, 1000, 3000, 1000, 1000, 3000]
    path.write_text("\n".join(row(stamp, i) for i, stamp in enumerate(stamps)))
    times = [0.0, 0.5, 1.0, 1 + 2 / 3, 1 + 4 / 3, 3.0, 4.0]
    trace = read_trace(path, speedup=1.0)
    assert [one.arrival_s for one in trace] == pytest.approx(times)
    blocks = [int.from_bytes(one.hashes[0], "little") for one in trace]
    assert blocks == [0, 1, 2, 4, 5, 3, 6], "by arrival, else as in the file"
    assert all(one.num_tokens == 700 and one.num_output_tokens == 1 for one in trace)
    fast = read_trace(path, speedup=10.0)
    assert [one.arrival_s for one in fast] == pytest.approx([at / 10 for at in times])


def test_a_compressed_trace_reads_the_same(tmp_path: Path) -> None:
    plain, packed = tmp_path / "trace.jsonl", tmp_path / "trace.jsonl.gz"
    plain.write_text(row(0, 1, 2))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_trace(plain, 1.0) == read_trace(packed, 1.0)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1, 2]",
        "7",
        '{"timestamp": 1, "input_length": 2}',
        '{"timestamp": null, "input_length": 2, "hash_ids": [1]}',
        '{"timestamp": "1", "input_length": 2, "hash_ids": [1]}',
        '{"timestamp": 1, "input_length": 2, "hash_ids": 3}',
        '{"timestamp": 1, "input_length": 2, "hash_ids": [-1]}',
        '{"timestamp": 1, "input_length": 2, "hash_ids": ["x"]}',
        '{"timestamp": 1, "hash_ids": [1]}',
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{row(0, 1)}\n{line}\n{row(1, 1)}\n")
    with pytest.raises(BadTrace, match=r"trace\.jsonl, line 2: no request of a trace"):
        read_trace(path, 1.0)


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    empty, binary, torn = tmp_path / "empty", tmp_path / "binary", tmp_path / "torn.gz"
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe")
    torn.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(BadTrace, match="has no requests"):
        read_trace(empty, 1.0)
    for path in (binary, torn, tmp_path / "missing", tmp_path):
        with pytest.raises(BadTrace, match="cannot read the trace"):
            read_trace(path, 1.0)


def test_the_bound_is_the_share_of_blocks_that_were_asked_for_before() -> None:
    assert bound([request(0.0, "aab"), request(1.0, "aac"), request(2.0, "aab")]) == 5 / 9


# The benchmark


def test_the_last_line_is_the_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "route.json"
    route.main(["--requests", "200", "--policies", "least-loaded,disaggregate", "--out", str(out)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads(out.read_text())
    assert report["bench"] == "route"
    assert report["trace"] == "conversation_trace.jsonl.gz"
    assert (report["nodes"], report["pages_per_node"], report["speedup"]) == (8, 5000, 8.71)
    assert 0.0 < report["bound"] < 1.0
    assert list(report["policies"]) == ["least-loaded", "disaggregate"]
    for figures in report["policies"].values():
        assert 0.0 < figures["hit"] <= figures["hit_fetched"] <= report["bound"]
        assert 0.0 < figures["ttft_mean_s"] <= figures["ttft_p99_s"]
        assert figures["imbalance"] >= 1.0 and figures["us_per_decision"] > 0.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policies", "disaggregate,best"], "unknown policies ['best']"),
        (["--trace", "nowhere.jsonl"], "cannot read the trace nowhere.jsonl"),
    ],
)
def test_a_wrong_argument_is_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit, match="1"):
        route.main(arguments)
    assert capsys.readouterr().err.startswith(f"bench-route: {sentence}")
