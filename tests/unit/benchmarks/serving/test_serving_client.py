"""What the client sends to each system and makes of its answers, and the figures that follow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.serving.client import TIMEOUT_S, LoadClient, RowRecord, Seen
from benchmarks.serving.figures import figures_by_row, ratios
from benchmarks.serving.loads import Ask, User
from benchmarks.serving.measuring import Measured, shown
from benchmarks.serving.pairs import (
    PairFiles,
    file_name,
    pair_of,
    read_pairs,
    save_pair,
    summary_of,
)
from benchmarks.serving.pauses import Pauses, pauses_of
from benchmarks.serving.picture import lead_of, picture_of
from benchmarks.serving.systems.asking import Kvrelay, System
from benchmarks.serving.systems.peer_commands import PeerServer
from benchmarks.serving.systems.peer_names import Peer
from benchmarks.serving.systems.peers import PeerPlan
from benchmarks.serving.table import table_of
from kvrelay.bench.workloads.dialogue import Passage
from tests.support.bench.played_peers import (
    ADDRESS,
    NUM_TOKENS,
    Json,
    PlayedServer,
    Reply,
    sglang_reply,
    vllm_reply,
)
from tests.support.bench.records import answered, failed

VOCABULARY = range(10, 1000)
ANSWER = NUM_TOKENS
ROOM = ("bootstrap_host", "bootstrap_port", "bootstrap_room")


def kvrelay_reply(path: str, body: Json) -> Reply:
    """Each event has the whole answer so far."""
    assert path == "/generate"
    return [
        {
            "text": "w" * count,
            "output_ids": list(range(100, 100 + count)),
            "meta_info": {
                "completion_tokens": count,
                "prompt_tokens": len(body["input_ids"]),
                "cached_tokens": 2,
                "finish_reason": {"type": "length", "length": ANSWER} if count == ANSWER else None,
            },
        }
        for count in range(1, ANSWER + 1)
    ]


def kvrelay(urls: Sequence[str]) -> System:
    return Kvrelay(urls[0])


def peer(name: str) -> Callable[[Sequence[str]], System]:
    """The system of a peer whose servers, or whose router, are at the URLs."""

    def system(urls: Sequence[str]) -> System:
        parsed = Peer.parse(name, max(2, len(urls)))
        ports = [int(url.rpartition(":")[2]) for url in urls]
        listening = tuple(PeerServer(f"s{p}", p, (), {}, bootstrap_port=p + 1) for p in ports)
        if parsed.has_router:
            return PeerPlan(parsed, (), listening[0]).system()
        return PeerPlan(parsed, listening).system()

    return system


def seen_of(
    make: Callable[[Sequence[str]], System],
    reply: Callable[[str, Json], Reply],
    users: Sequence[User],
    num_servers: int = 2,
) -> tuple[Seen, list[list[Json]]]:
    """What the client has seen, and what each server was asked."""

    async def run() -> tuple[Seen, list[list[Json]]]:
        async with AsyncExitStack() as stack:
            servers = [
                await stack.enter_async_context(PlayedServer(reply)) for _ in range(num_servers)
            ]
            client = LoadClient(make([server.url for server in servers]), VOCABULARY)
            seen = await client.run(users)
            return seen, [server.bodies for server in servers]

    return asyncio.run(run())


def asks(count: int, row: str = "row") -> list[Ask]:
    return [Ask(row, (Passage(f"own {i}", 5),), ANSWER) for i in range(count)]


SYSTEMS = {
    "kvrelay": (kvrelay, kvrelay_reply),
    "sglang-dp": (peer("sglang-dp"), sglang_reply),
    "sglang-pd": (peer("sglang-pd"), sglang_reply),
    "vllm-dp": (peer("vllm-dp"), vllm_reply),
    "vllm-pd": (peer("vllm-pd"), vllm_reply),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_dialogue_goes_on_with_the_ids_of_its_answers(name: str) -> None:
    make, reply = SYSTEMS[name]
    seen, asked = seen_of(make, reply, [User(1, asks(2), is_dialogue=True)])
    first, second = (record.answer for record in seen.records)
    assert (first.failure, second.failure) == ("", "")
    assert (first.num_tokens, len(first.gaps_s)) == (ANSWER, ANSWER - 1)
    assert (first.num_prompt_tokens, second.num_prompt_tokens) == (5, 5 + ANSWER + 5)
    assert second.num_cached_tokens == 2
    key = "input_ids" if "input_ids" in max(asked, key=len)[0] else "prompt"
    for bodies in filter(None, asked):
        prompts = [body[key] for body in bodies]
        assert prompts[1][:8] == [*prompts[0], 100, 101, 102]
    is_pair = name.endswith("-pd")
    one_server = [0, 2] if name.endswith("-dp") else [2, 0]
    assert [len(bodies) for bodies in asked] == ([2, 2] if is_pair else one_server)


def test_both_servers_of_a_pair_are_told_of_each_other() -> None:
    _, (prefill, decode) = seen_of(*SYSTEMS["sglang-pd"], [User(0, asks(2))])
    rooms = [[body[name] for name in ROOM] for body in prefill]
    assert rooms == [[body[name] for name in ROOM] for body in decode]
    assert rooms[0][2] != rooms[1][2]
    _, (prefill, decode) = seen_of(*SYSTEMS["vllm-pd"], [User(0, asks(1))])
    assert prefill[0]["kv_transfer_params"]["do_remote_decode"] is True
    assert decode[0]["kv_transfer_params"] == ADDRESS and decode[0]["max_tokens"] == ANSWER


@pytest.mark.parametrize("name", ["sglang-dp", "sglang-pd", "vllm-tp2", "vllm-1p1d"])
def test_a_router_is_asked_as_one_server_and_told_no_more_than_it_needs(name: str) -> None:
    """Where SGLang's disaggregates, it reads no token ids, and is told whose prompts they are."""

    async def run() -> PlayedServer:
        reply = sglang_reply if name.startswith("sglang") else vllm_reply
        async with PlayedServer(reply) as router:
            client = LoadClient(peer(f"{name}-router")([router.url]), VOCABULARY)
            seen = await client.run([User(7, asks(2))])
            assert [record.answer.failure for record in seen.records] == ["", ""]
            return router

    router = asyncio.run(run())
    assert not any(part in body for body in router.bodies for part in (*ROOM, "kv_transfer_params"))
    keys = [head for head in router.heads if "X-SMG-Routing-Key: 7\r\n" in head]
    assert len(keys) == (2 if name == "sglang-pd" else 0) and len(router.heads) == 2


def test_a_key_always_meets_the_same_server() -> None:
    users = [User(key, asks(1)) for key in (0, 1, 2, 3, 1, 3)]
    _, asked = seen_of(*SYSTEMS["vllm-dp"], users)
    assert [len(bodies) for bodies in asked] == [2, 4]


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (lambda path, body: 503, "status 503"),
        (lambda path, body: [{"error": {"message": "lost"}}], "stream error"),
        (lambda path, body: kvrelay_reply(path, body)[:2], "wrong length"),  # type: ignore[index]
        (lambda path, body: [], "no token"),
    ],
)
def test_whatever_is_no_whole_answer_has_failed(
    reply: Callable[[str, Json], Reply], failure: str
) -> None:
    """A dialogue ends with it; another user goes on."""
    users = [User(0, asks(2), is_dialogue=True), User(1, asks(2))]
    seen, _ = seen_of(kvrelay, reply, users)
    assert [record.answer.failure for record in seen.records] == [failure] * 3


def test_a_pair_fails_with_its_prefill_server() -> None:
    def reply(path: str, body: Json) -> Reply:
        return vllm_reply(path, body) if body["stream"] else 500

    seen, _ = seen_of(peer("vllm-pd"), reply, [User(0, asks(1))])
    assert [record.answer.failure for record in seen.records] == ["status 500"]


def test_users_ask_when_they_are_due_and_not_after_their_end() -> None:
    late = User(0, asks(1, "late"), begins_s=0.2)
    never = User(0, asks(1, "never"), begins_s=0.5, ends_s=0.3)
    endless = User(0, (ask for ask in asks(10_000, "endless")), ends_s=0.1)
    seen, _ = seen_of(kvrelay, kvrelay_reply, [late, never, endless])
    (of_late,) = (record.answer for record in seen.records if record.row == "late")
    assert of_late.sent_s >= 0.2
    assert 1 <= sum(record.row == "endless" for record in seen.records) < 10_000
    assert {record.row for record in seen.records} == {"late", "endless"}


def rows_of(*answers: Any) -> dict[str, Any]:
    return figures_by_row([RowRecord("row", answer) for answer in answers])


def test_a_failure_is_a_miss_and_makes_nobody_faster() -> None:
    well = [answered(0.0, 0.1, (0.01, 0.03), prompt=100, cached=50) for _ in range(9)]
    figures = rows_of(*well)["row"]
    assert (figures["errors"], figures["ttft_mean_ms"], figures["itl_max_ms"]) == (0, 100.0, 30.0)
    assert figures["hit_rate"] == 0.5 and figures["tokens_per_s"] == pytest.approx(27 / 0.14, 0.01)
    missed = rows_of(*well, failed(0.0, 0.01, "status 503"))["row"]
    assert missed["errors"] == 1 and missed["first_error"].startswith("status 503")
    assert missed["ttft_p99_ms"] > TIMEOUT_S * 900
    assert missed["ttft_mean_ms"] == pytest.approx((9 * 100 + TIMEOUT_S * 1e3) / 10)
    nothing = rows_of(failed(0.0, 0.01, "cut"))["row"]
    assert nothing["itl_p99_ms"] is None and nothing["hit_rate"] is None
    assert "1 errors (cut" in shown(nothing)


def test_a_retried_request_is_counted_and_an_error_tells_what_it_says() -> None:
    """Another node hides that one fails: nothing but the number of attempts tells of it."""

    def reply(path: str, body: Json) -> Reply:
        events = kvrelay_reply(path, body)
        assert isinstance(events, list)
        for event in events[1:]:
            event["meta_info"]["attempts"] = 2
        return events

    (record,) = seen_of(kvrelay, reply, [User(0, asks(1))])[0].records
    assert not record.answer.failure and rows_of(record.answer)["row"]["retried"] == 1
    (record,) = seen_of(kvrelay, kvrelay_reply, [User(0, asks(1))])[0].records
    assert rows_of(record.answer)["row"]["retried"] == 0
    error = {"error": {"code": 503, "message": "p0 broke"}}
    lost = seen_of(kvrelay, lambda *_: [error], [User(0, asks(1))])
    figures = rows_of(lost[0].records[0].answer)["row"]
    assert figures["first_error"] == "stream error 503: p0 broke"


def test_long_gaps_tell_whether_they_were_common() -> None:
    """A node that stands still holds up all its answers; a transfer delays one second token."""
    steady = (0.006,) * 20
    streams = [answered(0.0, 0.1, (*steady, 0.07, *steady)) for _ in range(5)]
    late_second = answered(0.0, 0.5, (0.07, *steady))
    beside = [answered(0.0, 0.1, (0.006,) * 100) for _ in range(5)]
    assert pauses_of([*streams, late_second, *beside]) == Pauses(1, 5, 5)
    apart = [answered(0.0, 0.1 + i, (*steady, 0.07, *steady)) for i in range(5)]
    long_ones = [answered(0.0, 0.1, (0.006,) * 1000) for _ in range(2)]
    assert pauses_of([*apart, *long_ones]) == Pauses(0, 5, 0)
    assert pauses_of([failed(0.0, 0.1, "cut"), answered(0.0, 0.1, ())]) == Pauses(0, 0, 0)


def figures(ttft_ms: float, tokens_per_s: float, errors: int = 0) -> dict[str, Any]:
    row = rows_of(answered(0.0, ttft_ms / 1e3, (0.01,), 10, 0))["row"]
    return row | {"tokens_per_s": tokens_per_s, "errors": errors}


def measured(name: str, *repeats: dict[str, Any]) -> Measured:
    health = {"compiles_while_serving": 1, "failed_steps": 0, "lost_leases": 2, "missing_nodes": []}
    rows = {"row": list(repeats), f"of {name}": list(repeats)}
    return Measured(name, {"version": "9.9"} | health, rows)


CIRCUMSTANCES = {"machine": {"gpus": [], "cpu": "a CPU"}, "model": "m", "seconds": 20.0}


def test_ratios_are_of_medians_and_of_rows_that_both_have() -> None:
    ours = measured("1p1d", figures(100, 50), figures(300, 60), figures(110, 70))
    theirs = measured("vllm-dp", figures(220, 120))
    found = ratios(ours.rows, theirs.rows)
    assert found.keys() == {"row"}
    assert found["row"]["ttft_mean_ms"] == 0.5 and found["row"]["tokens_per_s"] == 0.5
    assert ratios(ours.rows, {"row": [figures(0, 0)]})["row"].get("tokens_per_s") is None


def test_files_of_pairs_are_read_back_as_table_picture_and_line(tmp_path: Path) -> None:
    ours, theirs = measured("1p1d", figures(100, 60, 3)), measured("vllm-dp", figures(200, 30))
    beside = pair_of("1p1d", ours, theirs, CIRCUMSTANCES)
    alone = pair_of("2d", ours, None, CIRCUMSTANCES)
    written = [save_pair(pair, tmp_path).name for pair in (beside, alone)]
    assert written == ["1p1d-vllm-dp.json", "2d.json"]
    assert file_name("tp4+4", "vllm-tp2+4") == "tp4-4-vllm-tp2-4.json"
    assert read_pairs(tmp_path) == json.loads(json.dumps([beside, alone]))
    table = table_of(beside)
    assert "kvrelay 1p1d ÷ vllm-dp" in table and "m on a CPU" in table and "vllm-dp 9.9" in table
    assert "| row | 100 / 200 (**0.50**) |" in table and "| 3 / 0 |" in table
    assert "| row | 100 |" in table_of(alone)
    picture = picture_of([beside, alone])
    assert picture.count("2.00×") == 3, "twice as good in both first tokens and in tokens a second"
    ElementTree.fromstring(picture)  # raises if it is no XML
    assert "2d" not in picture and lead_of("tokens_per_s", 2.0) == 2 == lead_of("ttft_mean_ms", 0.5)
    (line, _) = summary_of([beside, alone])["pairs"]
    assert (line["errors"], line["peer_errors"], line["lost_leases"]) == (6, 0, 2)
    assert line["retried"] == 0
    assert line["compiles_while_serving"] == 1 and line["ratios"]["row"]["itl_p99_ms"] == 1.0


def test_what_is_measured_is_written_at_once_and_a_layout_alone_only_without_peers(
    tmp_path: Path,
) -> None:
    files = PairFiles(CIRCUMSTANCES, tmp_path)
    for layout in ("1p1d", "tp2+2"):
        files.add_layout(layout, measured(layout, figures(100, 60)))
        assert read_pairs(tmp_path) == json.loads(json.dumps(files.pairs))
    for peer_name in ("vllm-dp", "vllm-pd-router"):
        files.add_peer(measured(peer_name, figures(200, 30)))
        assert read_pairs(tmp_path) == json.loads(json.dumps(files.pairs))
    assert [(pair["layout"], pair["peer"]) for pair in files.pairs] == [
        (layout, name) for layout in ("1p1d", "tp2+2") for name in ("vllm-dp", "vllm-pd-router")
    ]
