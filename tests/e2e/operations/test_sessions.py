"""Sessions of a cluster with two coordinators: whichever hears the next turn goes on with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import start_cluster, wait_until
from tests.support.processes.coordinators import Pair

PAGE_SIZE = 16
VOCABULARY = 199


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Pair]:
    """One prefill and one decode node, and two coordinators."""
    cluster = start_cluster(tmp_path_factory, random_model[0], 1, 1, max_total_tokens="32768")
    try:
        yield Pair(cluster, random_model)
    finally:
        cluster.local.stop()


class Conversation:
    """A session, and what its turns ought to be: token lists of their own."""

    def __init__(self, pair: Pair, who: int = 0, capacity: int = 100_000) -> None:
        self.pair = pair
        response = pair.post(who, "/open_session", {"capacity_of_str_len": capacity})
        assert response.status_code == 200, response.text
        self.name: str = response.json()
        self.turns: dict[str, tuple[list[int], list[int]]] = {}
        """Prompt and answer by rid."""

    def ask(
        self,
        who: int,
        new: list[int] | str,
        count: int = 8,
        rid: str | None = None,
        name: str | None = None,
        **params: Any,
    ) -> httpx.Response:
        """The reply of one coordinator to the turn `name` that follows `rid`."""
        body = {
            "rid": name,
            "text" if isinstance(new, str) else "input_ids": new,
            "session_params": {"id": self.name, "rid": rid} | params,
            "sampling_params": {"temperature": 0, "ignore_eos": True, "max_new_tokens": count},
        }
        return self.pair.post(who, "/generate", body)

    def turn(
        self,
        who: int,
        new: list[int],
        expected_prompt: list[int],
        rid: str | None = None,
        **params: Any,
    ) -> dict[str, Any]:
        """A turn that is answered as its whole prompt would be without a session; its meta_info."""
        response = self.ask(who, new, rid=rid, **params)
        assert response.status_code == 200, response.text
        answer = response.json()
        meta = dict(answer["meta_info"])
        assert meta["prompt_tokens"] == len(expected_prompt)
        assert answer["output_ids"] == reference_tokens(self.pair.reference, expected_prompt, 8)
        self.turns[meta["id"]] = expected_prompt, answer["output_ids"]
        return meta

    def whole(self, rid: str) -> list[int]:
        prompt, answer = self.turns[rid]
        return prompt + answer


def new_tokens(seed: int, count: int = 20) -> list[int]:
    return prompt_of(count, VOCABULARY, seed=seed)


def test_a_session_goes_on_at_the_other_coordinator(pair: Pair) -> None:
    talk = Conversation(pair)
    first = new_tokens(1, 40)
    rid = talk.turn(0, first, first)["id"]
    for number in range(2, 5):
        new = new_tokens(number)
        rid = talk.turn(number % 2, new, talk.whole(rid) + new, rid)["id"]


def test_the_next_turn_computes_only_what_is_new(pair: Pair) -> None:
    talk = Conversation(pair)
    first = new_tokens(11, 60)
    rid = talk.turn(0, first, first)["id"]
    for who in (0, 1, 0, 1):
        pair.cluster.settle()
        for admin in pair.admins:
            wait_until(lambda a=admin: a.audit(repair=False)["clean"], "a true index")  # type: ignore[misc]
        former = talk.whole(rid)
        new = new_tokens(20 + len(former))
        meta = talk.turn(who, new, former + new, rid)
        num_with_kv = len(former) - 1  # the last token was never read
        assert meta["cached_tokens"] >= num_with_kv // PAGE_SIZE * PAGE_SIZE
        rid = meta["id"]


def test_forks_rollbacks_and_dropped_answers(pair: Pair) -> None:
    talk = Conversation(pair, who=1)
    first = new_tokens(30, 33)
    root = talk.turn(1, first, first)["id"]
    for who, seed in ((0, 31), (1, 32)):  # two futures of one past
        new = new_tokens(seed)
        fork = talk.turn(who, new, talk.whole(root) + new, root)["id"]
        longer = new_tokens(seed + 10)
        talk.turn(1 - who, longer, talk.whole(fork) + longer, fork)
    new = new_tokens(50)
    talk.turn(0, new, talk.whole(root)[:10] + new, root, offset=10)
    talk.turn(1, new, talk.whole(root)[:-1] + new, root, offset=-1)
    talk.turn(0, new, first + new, root, drop_previous_output=True)
    talk.turn(1, new, first[:5] + new, root, drop_previous_output=True, offset=5)


def test_replacing_turns_forgets_what_followed(pair: Pair) -> None:
    talk = Conversation(pair)
    first, second, third = new_tokens(60, 33), new_tokens(61), new_tokens(62)
    root = talk.turn(0, first, first)["id"]
    child = talk.turn(0, second, talk.whole(root) + second, root)["id"]
    other = talk.turn(1, third, talk.whole(root) + third, root, replace=True)["id"]
    gone = talk.ask(0, third, rid=child)
    assert gone.status_code == 400 and child in gone.json()["error"]["message"]
    talk.turn(0, second, talk.whole(other) + second, other)
    again = talk.turn(1, first, first, replace=True)["id"]
    assert talk.ask(0, third, rid=root).status_code == 400
    assert talk.ask(0, third, rid=again).status_code == 200


def test_what_a_session_refuses(pair: Pair) -> None:
    talk = Conversation(pair, capacity=300)
    twice = pair.post(1, "/open_session", {"capacity_of_str_len": 5, "session_id": talk.name})
    assert twice.status_code == 400 and talk.name in twice.json()["error"]["message"]
    first = new_tokens(70, 10)
    rid = talk.turn(0, first, first)["id"]
    unknown = talk.ask(1, first, rid="nobody")
    assert unknown.status_code == 400 and "nobody" in unknown.json()["error"]["message"]
    too_long = talk.ask(1, "abc def gh " * 50, rid=rid)
    assert too_long.status_code == 400 and " 300" in too_long.json()["error"]["message"]
    refused = talk.ask(0, first, count=10_000, rid=rid, name="again")
    assert refused.status_code == 400 and "10000" in refused.json()["error"]["message"]
    assert talk.ask(1, first, rid=rid, name="again").status_code == 200, "nothing was kept of it"
    used = talk.ask(0, first, rid=rid, name="again")
    assert used.status_code == 400 and "again" in used.json()["error"]["message"]
    several = {"input_ids": [first, first], "session_params": {"id": talk.name}}
    assert pair.post(0, "/generate", several).status_code == 400
    assert pair.post(1, "/close_session", {"session_id": talk.name}).status_code == 200
    assert pair.post(1, "/close_session", {"session_id": talk.name}).status_code == 200
    closed = talk.ask(0, first, rid=rid)
    assert closed.status_code == 400 and talk.name in closed.json()["error"]["message"]


def test_a_turn_that_runs_has_no_successor_until_it_is_aborted(pair: Pair) -> None:
    talk = Conversation(pair)
    first, new = new_tokens(80, 12), new_tokens(81)
    body = {
        "input_ids": first,
        "rid": "slow-turn",
        "stream": True,
        "session_params": {"id": talk.name},
        "sampling_params": {"temperature": 0, "ignore_eos": True, "max_new_tokens": 3000},
    }
    with pair.stream(0, body) as events:
        next(events)
        early = talk.ask(1, new, rid="slow-turn")
        assert early.status_code == 400 and "has not ended" in early.json()["error"]["message"]
        assert pair.post(1, "/abort_request", {"rid": "slow-turn"}).status_code == 200
        last = list(events)[-1]
    assert last["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < len(last["output_ids"]) < 3000
    talk.turn(1, new, first + last["output_ids"] + new, "slow-turn")


@pytest.mark.verify
def test_without_redis_a_session_is_refused_and_everything_else_served(pair: Pair) -> None:
    talk = Conversation(pair)
    first = new_tokens(90, 12)
    rid = talk.turn(0, first, first)["id"]
    redis = pair.cluster.local.children["redis"].process
    redis.send_signal(signal.SIGSTOP)
    try:
        for response in (
            talk.ask(0, first, rid=rid),
            pair.post(1, "/open_session", {"capacity_of_str_len": 10}),
            pair.post(0, "/close_session", {"session_id": talk.name}),
            pair.post(1, "/pause_generation", {}),
        ):
            assert response.status_code == 503, response.text
            assert "Redis" in response.json()["error"]["message"]
        assert pair.generate(0, first)["error"] is None
    finally:
        redis.send_signal(signal.SIGCONT)
    pair.wait_until_connected(True)
    pair.post(0, "/continue_generation", {})  # in case the stopped Redis had heard the pause
    wait_until(lambda: talk.ask(1, first, rid=rid).status_code == 200, "the session again")
