"""The generator against a server whose answers are scripted."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest

from kvrelay.bench.dialects import DIALECTS, Asking
from kvrelay.bench.http_post import Target
from kvrelay.bench.results.record import AnswerRecord
from kvrelay.bench.runner import LoadOutcome, LoadPlan, LoadRunner
from kvrelay.bench.workloads.dialogue import Dialogue, Passage, UserTurn
from protocol.config import ConfigError
from tests.support.bench.scripted_server import NUM_CACHED, ScriptedServer, scripted_server

NUM_TOKENS = 5


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


def dialogue(name: str, num_turns: int = 1, arrival_s: float | None = None) -> Dialogue:
    turns = [UserTurn((Passage(f"{name}{i}", 12),), NUM_TOKENS) for i in range(num_turns)]
    return Dialogue(tuple(turns), arrival_s)


def run(
    server: ScriptedServer,
    dialogues: list[Dialogue],
    api: str = "generate",
    concurrency: int = 1,
    timeout_s: float = 30.0,
    api_key: str = "",
) -> LoadOutcome:
    asking = Asking("scripted", range(32, 2048), ignore_eos=True)
    told: list[AnswerRecord] = []
    plan = LoadPlan(concurrency, timeout_s, checks_length=True)
    target = Target.parse(server.url, api_key)
    runner = LoadRunner(target, DIALECTS[api](asking), plan, told.append)
    outcome = asyncio.run(runner.run(dialogues))
    assert told == outcome.records, "each record is told as it comes"
    return outcome


@pytest.mark.parametrize("api", DIALECTS)
def test_every_api_is_asked_and_understood(server: ScriptedServer, api: str) -> None:
    outcome = run(server, [dialogue("a"), dialogue("b")], api)
    assert {path for path, _ in server.requests} == {DIALECTS[api].path}  # type: ignore[attr-defined]
    for record in outcome.records:
        assert (record.failure, record.num_tokens) == ("", NUM_TOKENS)
        assert len(record.gaps_s) == NUM_TOKENS - 1
        assert record.first_s is not None and record.sent_s <= record.first_s <= record.ended_s
        assert record.num_cached_tokens == NUM_CACHED and record.num_prompt_tokens


FATES = {
    "429": "status 429",
    "503": "status 503",
    "cut": "connection",
    "short": "wrong length",
    "silent": "timeout",
    "error": "stream error 503",
}


@pytest.mark.parametrize("api", DIALECTS)
@pytest.mark.parametrize("fate", FATES)
def test_every_failure_is_counted_as_what_it_is(
    server: ScriptedServer, api: str, fate: str
) -> None:
    server.fates.append(fate)
    timeout_s = 0.2 if fate == "silent" else 30.0
    outcome = run(server, [dialogue("a"), dialogue("b")], api, timeout_s=timeout_s)
    assert [record.failure for record in outcome.records] == [FATES[fate], ""]


def test_what_the_server_said_of_a_refusal_is_kept(server: ScriptedServer) -> None:
    server.fates.append("429")
    assert "refused with 429" in run(server, [dialogue("a")]).records[0].message


def test_turns_go_on_from_the_answer_before_them(server: ScriptedServer) -> None:
    run(server, [dialogue("a", num_turns=3)])
    prompts = [body["input_ids"] for _, body in server.requests]
    answer = list(range(100, 100 + NUM_TOKENS))
    assert prompts[1][: len(prompts[0]) + NUM_TOKENS] == prompts[0] + answer
    assert prompts[2][: len(prompts[1]) + NUM_TOKENS] == prompts[1] + answer


def test_turns_after_a_failure_fail_too(server: ScriptedServer) -> None:
    """They cannot be asked; left out, they would make the error rate look better."""
    server.fates += ["well", "500"]
    outcome = run(server, [dialogue("a", num_turns=4)])
    failures = [record.failure for record in outcome.records]
    assert failures == ["", "status 500", "not sent", "not sent"]


def test_users_wait_for_their_answers(server: ScriptedServer) -> None:
    outcome = run(server, [dialogue(str(i)) for i in range(6)], concurrency=2)
    changes = [(r.sent_s, 1) for r in outcome.records] + [(r.ended_s, -1) for r in outcome.records]
    running = 0
    for _, change in sorted(changes):
        running += change
        assert running <= 2


def test_arrivals_do_not_wait_for_answers(server: ScriptedServer) -> None:
    """A server that never answers gets every request all the same."""
    server.fates += ["silent"] * 4
    dialogues = [dialogue(str(i), arrival_s=0.01 * i) for i in range(4)]
    outcome = run(server, dialogues, concurrency=0, timeout_s=1.0)
    assert [record.failure for record in outcome.records] == ["timeout"] * 4
    assert len(server.requests) == 4
    assert all(0.01 * i <= r.sent_s for i, r in enumerate(sorted(outcome.records, key=sent_at)))


def sent_at(record: AnswerRecord) -> float:
    return record.sent_s


def test_nobody_listens() -> None:
    nobody = ScriptedServer()
    nobody.port = 1
    assert run(nobody, [dialogue("a")]).records[0].failure == "connection"


def test_the_api_key_is_sent(server: ScriptedServer) -> None:
    run(server, [dialogue("a")], api_key="secret")
    assert b"Authorization: Bearer secret" in server.headers[-1]


def test_a_url_with_or_without_v1() -> None:
    assert Target.parse("http://h:1/v1", "") == Target.parse("http://h:1/", "")
    assert (
        Target.parse("https://h/a", "")
        .request("/generate", b"")
        .startswith(b"POST /a/generate HTTP/1.1\r\nHost: h:443\r\n")
    )
    keyed = dataclasses.replace(Target.parse("http://h:1", ""), headers=("X-Key: 7",))
    assert keyed.request("/", b"").endswith(b"\r\nX-Key: 7\r\n\r\n")
    with pytest.raises(ConfigError, match="http://"):
        Target.parse("h:1", "")
