"""Drawn tokens are the same alone, in company, in chunks, and continued from any of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec
import pytest
import torch

from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from protocol.sampling import Sampling, TokenLogprobs
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences, prompt_of
from tests.support.models.families import save_random_model

VOCAB_SIZE = 199
LENGTH = 32
DRAWN = Sampling(temperature=1.3, seed=77)
ALL_AT_ONCE = Sampling(
    temperature=1.4,
    seed=5,
    top_k=60,
    top_p=0.95,
    min_p=0.01,
    frequency_penalty=1.5,
    presence_penalty=1.0,
    repetition_penalty=1.5,
    logit_bias=((20, 2.0), (21, -2.0)),
    min_new_tokens=12,
    end_token_ids=(30, 31, 32),
    num_top_logprobs=4,
    logprob_token_ids=(7, 8),
)
SAMPLINGS: Mapping[str, Sampling] = {
    "greedy": Sampling(temperature=0.0, repetition_penalty=1.5),
    "drawn": DRAWN,
    "filtered": Sampling(temperature=1.5, seed=9, top_k=12, top_p=0.8, min_p=0.05),
    "penalised": Sampling(seed=3, frequency_penalty=1.5, presence_penalty=-0.5),
    "all at once": ALL_AT_ONCE,
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    torch.set_num_threads(1)
    path: Path = tmp_path_factory.mktemp("model")
    save_random_model("llama3", path)
    return load_model_runner(path, EngineOptions("float32", PAGE_SIZE), lambda _: 200, CPU)


SEQUENCE_IDS = itertools.count()


@dataclass(eq=False)
class Answer:
    """One request on one node. `tokens` may have a part of the answer already."""

    sampling: Sampling
    tokens: list[int]
    end: int
    """Tokens in all."""
    chunk: int = 1000
    computed: int = 0
    sequence_id: int = field(default_factory=SEQUENCE_IDS.__next__)
    is_unsampled: bool = True
    """No slice of it has sampled yet."""
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    def slice(self, pages: Sequence[int]) -> Slice:
        stop = min(len(self.tokens), self.computed + self.chunk)
        is_last = stop == len(self.tokens)
        is_first = self.is_unsampled and is_last
        return Slice(
            self.tokens[self.computed : stop],
            self.computed,
            pages,
            self.sampling if is_last else None,
            sequence_id=self.sequence_id,
            replay=self.tokens[: self.computed] if is_first else (),
        )


def begun(sampling: Sampling, prompt: list[int], chunk: int = 1000) -> Answer:
    with_length = msgspec.structs.replace(sampling, prompt_length=len(prompt))
    return Answer(with_length, list(prompt), len(prompt) + LENGTH, chunk)


def resumed(sampling: Sampling, prompt: list[int], answered: list[int]) -> Answer:
    """Returns the request as another attempt, which is sent the tokens that earlier ones
    answered."""
    answer = begun(sampling, prompt)
    answer.tokens += answered
    return answer


def run(runner: ModelRunner, answers: Sequence[Answer]) -> None:
    """Runs all answers side by side; each joins one step after the one before it."""
    sequences = Sequences(runner)
    pages = [sequences.pages(answer.end) for answer in answers]
    step = 0
    while unfinished := [i for i, a in enumerate(answers) if len(a.tokens) < a.end]:
        part = [i for i in unfinished if i <= step]
        step += 1
        if not part:
            continue
        slices = [answers[i].slice(pages[i]) for i in part]
        for i, one, sampled in zip(part, slices, runner.start(slices).sampled(), strict=True):
            answers[i].computed += len(one.token_ids)
            if sampled is not None:
                answers[i].is_unsampled = False
                answers[i].tokens += sampled.tokens
                answers[i].logprobs.append(sampled.logprobs[0] if sampled.logprobs else None)
    for answer in answers:
        runner.end_sequence(answer.sequence_id)
    assert len(runner.states) == 0


PROMPT = prompt_of(45, VOCAB_SIZE, seed=90)


@pytest.fixture(params=SAMPLINGS)
def sampling(request: pytest.FixtureRequest) -> Sampling:
    return SAMPLINGS[request.param]


@cache
def alone(runner: ModelRunner, sampling: Sampling) -> Answer:
    answer = begun(sampling, PROMPT)
    run(runner, [answer])
    return answer


def test_the_same_in_company_and_in_chunks(runner: ModelRunner, sampling: Sampling) -> None:
    expected = alone(runner, sampling)
    others = [begun(s, prompt_of(9 * n, VOCAB_SIZE)) for n, s in enumerate(SAMPLINGS.values(), 1)]
    answer = begun(sampling, PROMPT, chunk=7)
    run(runner, [*others[:3], answer, *others[3:]])
    assert answer.tokens == expected.tokens
    for here, there in zip(answer.logprobs, expected.logprobs, strict=True):
        assert (here is None) == (there is None) == (not sampling.wants_logprobs)
        if here is not None and there is not None:
            assert here.chosen == pytest.approx(there.chosen, abs=1e-4)
            assert [token for token, _ in here.top] == [token for token, _ in there.top]


@pytest.mark.parametrize("num_answered", [1, 11, 12, LENGTH - 1])
def test_the_same_continued_elsewhere(
    runner: ModelRunner, sampling: Sampling, num_answered: int
) -> None:
    """After a preemption, or on another node, all that is known comes as a prompt."""
    expected = alone(runner, sampling)
    answered = expected.tokens[len(PROMPT) : len(PROMPT) + num_answered]
    answer = resumed(sampling, PROMPT, answered)
    run(runner, [answer, begun(DRAWN, prompt_of(20, VOCAB_SIZE))])
    assert answer.tokens == expected.tokens


def test_other_seeds_and_penalties_give_other_tokens(runner: ModelRunner) -> None:
    """Without a difference the tests above would compare nothing."""
    variants = [
        ALL_AT_ONCE,
        msgspec.structs.replace(ALL_AT_ONCE, seed=6),
        msgspec.structs.replace(ALL_AT_ONCE, frequency_penalty=0.0, presence_penalty=0.0),
        msgspec.structs.replace(ALL_AT_ONCE, repetition_penalty=1.0),
        msgspec.structs.replace(ALL_AT_ONCE, temperature=0.8),
        DRAWN,
    ]
    answers = {tuple(alone(runner, sampling).tokens) for sampling in variants}
    assert len(answers) == len(variants)
    stops = set(ALL_AT_ONCE.end_token_ids)
    assert not stops & set(alone(runner, ALL_AT_ONCE).tokens[len(PROMPT) : len(PROMPT) + 12])
