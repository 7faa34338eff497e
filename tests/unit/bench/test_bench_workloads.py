"""What is asked: lengths, shared beginnings, and files that are none."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from kvrelay.bench.workloads.arrivals import at_own_times
from kvrelay.bench.workloads.dialogue import Dialogue, Passage, UserTurn, token_ids, words
from kvrelay.bench.workloads.sharegpt import sharegpt_dialogues
from kvrelay.bench.workloads.synthetic import Synthetic, synthetic_dialogues
from kvrelay.bench.workloads.trace import BLOCK_TOKENS, BadTrace, read_trace, trace_dialogues

VOCABULARY = range(32, 2048)
OPEN_TRACE = Path(__file__).resolve().parents[3] / "benchmarks/data/conversation_trace.jsonl.gz"


def ids_of(turn: UserTurn) -> list[int]:
    assert not isinstance(turn.content, str)
    return token_ids(turn.content, VOCABULARY)


def common(first: list[int], second: list[int]) -> int:
    """Returns the length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def test_prompts_of_the_open_trace_have_its_lengths_and_share_its_blocks() -> None:
    requests = read_trace(OPEN_TRACE, 1.0)[:300]
    dialogues = trace_dialogues(requests, 0)
    prompts = [ids_of(dialogue.turns[0]) for dialogue in dialogues]
    assert [len(prompt) for prompt in prompts] == [one.num_tokens for one in requests]
    assert [d.turns[0].num_output_tokens for d in dialogues] == [
        one.num_output_tokens for one in requests
    ]
    chance = random.Random(1)
    for _ in range(300):
        i, j = chance.randrange(300), chance.randrange(300)
        blocks = zip(requests[i].hashes, requests[j].hashes, strict=False)
        num_equal = next((n for n, (a, b) in enumerate(blocks) if a != b), 0)
        if num_equal:
            shared = common(prompts[i], prompts[j])
            assert num_equal * BLOCK_TOKENS <= shared < num_equal * BLOCK_TOKENS + 8


def test_a_trace_is_sent_from_its_first_request_on_and_faster_by_the_speedup() -> None:
    turn = UserTurn("a", 1)
    found = at_own_times([Dialogue((turn,), 10.0), Dialogue((turn,), 14.0)], speedup=2.0)
    assert [dialogue.arrival_s for dialogue in found] == [0.0, 2.0]


def test_synthetic_dialogues_share_prefixes_in_turn() -> None:
    sizes = Synthetic(10, 5, num_prefix_tokens=30, num_prefixes=2, num_turns=2, seed=4)
    dialogues = synthetic_dialogues(sizes, 7)
    assert [len(dialogue.turns) for dialogue in dialogues] == [2, 2, 2, 1], "7 requests in all"
    first = [ids_of(dialogue.turns[0]) for dialogue in dialogues]
    assert {len(prompt) for prompt in first} == {40}
    assert len(ids_of(dialogues[0].turns[1])) == 10, "later turns have no prefix"
    assert 30 <= common(first[0], first[2]) < 40
    assert common(first[0], first[1]) < 10
    assert dialogues == synthetic_dialogues(sizes, 7)


def test_made_up_text_has_a_word_for_each_token() -> None:
    text = words([Passage("a", 7), Passage("b", 5)])
    assert len(text.split()) == 12
    assert words([Passage("a", 9)]).startswith(words([Passage("a", 7)]))


def chat(*texts: str, system: bool = False) -> dict[str, list[dict[str, str]]]:
    messages = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": [{"from": "system", "value": "s"}] * system + messages}


def test_chats_are_cut_to_their_answered_turns(tmp_path: Path) -> None:
    path = tmp_path / "chats.json"
    chats = [chat("q1", "a" * 40, "q2", "b" * 8, "q3"), chat("alone"), chat("q", "a", system=True)]
    path.write_text(json.dumps(chats))
    assert sharegpt_dialogues(path, 5, 0) == [
        Dialogue((UserTurn("q1", 10), UserTurn("q2", 2))),
        Dialogue((UserTurn("q", 1),)),
    ]
    assert [len(d.turns) for d in sharegpt_dialogues(path, 1, 0)] == [1, 1]
    assert sharegpt_dialogues(path, 1, 6)[0].turns[0].num_output_tokens == 6


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[3]", '[{"conversations": [{}, {}]}]', "[]"])
def test_a_file_that_has_no_chats_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "chats.json"
    path.write_text(text)
    with pytest.raises(BadTrace, match=r"chats\.json"):
        sharegpt_dialogues(path, 1, 0)
    with pytest.raises(BadTrace, match="--dataset"):
        sharegpt_dialogues(tmp_path / "none", 1, 0)
