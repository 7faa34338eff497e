"""Answers that take more pages than there are give way, go on later, and are the same; also where
steps are started before the tokens of those before them are known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batches.sequence import Slice
from node.core.instructions import AbortTransfer, Instruction, SendMessage
from node.core.scheduler import Scheduler
from protocol.admission import admission_tokens, most_tokens
from protocol.messages import Cancel, Fetch, TokensOut
from protocol.sampling import Sampling
from tests.support.device import Device
from tests.support.world import (
    DECODE,
    GREEDY,
    HASHER,
    P0,
    PAGE,
    PREFILL,
    World,
    answer_of,
    decode_scheduler,
    generate,
    prefill_scheduler,
)

POOL = 13
"""Pages of the decode node: one long answer fits, and a page."""

long_answers = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 70), st.integers(0, 130)),
    min_size=2,
    max_size=8,
)


@given(
    long_answers,
    st.integers(0, 1 << 30),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_whatever_happens_every_request_ends_once_with_the_models_tokens(
    asked: list[tuple[str, int, int]],
    seed: int,
    ahead: bool,
    lossy: bool,
    breaking: bool,
    most_tokens: int,
) -> None:
    """Cancelled at any moment, stopped early, with penalties, from a prefill node that fails or
    none: with a pool that all answers exceed together, steps that run ahead, and steps that sample
    several tokens."""
    rng = random.Random(seed)
    texts = {"a": [rng.randrange(1, 50) for _ in range(200)], "b": list(range(1, 201))}
    prefill = prefill_scheduler(num_pages=16)
    decode = decode_scheduler(num_pages=rng.randint(POOL, 2 * POOL), running=8)
    world = World(rng, {PREFILL: prefill, DECODE: decode}, lossy, breaking, ahead, most_tokens)
    stops = range(1, rng.choice([1, 3]))
    penalty = Sampling(temperature=0.0, frequency_penalty=0.5)
    cancelled = set()
    for number, (text, length, count) in enumerate(asked):
        address = PREFILL if rng.random() < 0.5 else ""
        fetch = (P0, PREFILL, length // PAGE) if rng.random() < 0.3 else (P0, "", 0)
        sampling = penalty if rng.random() < 0.2 else GREEDY
        request = generate(
            f"r{number}",
            texts[text][:length],
            count,
            address,
            fetch=fetch,
            stops=stops,
            sampling=sampling,
        )
        world.post(DECODE, request)
        if rng.random() < 0.2:
            cancelled.add(f"r{number}")
            world.post_later(DECODE, Cancel(request.attempt))
    world.run()
    for number, (text, length, count) in enumerate(asked):
        name = f"r{number}"
        expected = answer_of(texts[text][:length], count, stops)
        if name in cancelled and name not in world.ends:
            tokens = world.tokens.get(name, [])
            assert tokens == expected[: len(tokens)]
        elif world.ends[name] in ("length", "stop"):
            assert world.tokens[name] == expected
        else:
            assert breaking and name not in world.tokens
    assert prefill.load().held_pages == decode.load().held_pages == 0
    assert not world.expected
    assert not any(node.device.states for node in world.nodes.values()), "a state is left"
    assert prefill.next_batch(world.now) == decode.next_batch(world.now) == ([], [])


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("prefill", [PREFILL, ""])
def test_answers_that_exceed_the_pool_together_are_all_given(prefill: str, ahead: bool) -> None:
    decode = decode_scheduler(num_pages=POOL)
    schedulers = {PREFILL: prefill_scheduler(), DECODE: decode}
    world = World(random.Random(3), schedulers, ahead=ahead)
    prompts = {f"r{i}": [i + 1] * 20 for i in range(4)}
    for name, prompt in prompts.items():
        world.post(DECODE, generate(name, prompt, 100, prefill))
    world.run()
    for name, prompt in prompts.items():
        assert world.tokens[name] == answer_of(prompt, 100)
        assert world.reused[name] == (0, 2 if prefill else 0, 0), "as when it was admitted first"
    load = decode.load()
    assert 0 < load.counters.preemptions < 20, "some give way, and not again and again"
    assert load.counters.requests == 4 and load.counters.generated_tokens == 400
    assert load.held_pages == 0


class Node:
    """A decode node of few pages, step by step."""

    def __init__(self, decode: Scheduler) -> None:
        self.decode = decode
        self.device = Device(PAGE)
        self.num_tokens: dict[str, int] = {}

    def step(self) -> tuple[list[Slice], list[Instruction]]:
        slices, instructions = self.decode.next_batch(0.0)
        if slices:
            self.device.start(slices)
            self.tell(self.decode.finish(self.device.finish(), 0.0))
        return slices, instructions

    def run(self) -> list[Instruction]:
        """To the end; returns what it wants done."""
        wanted: list[Instruction] = []
        while True:
            slices, instructions = self.step()
            wanted += instructions
            if not slices:
                return wanted

    def tell(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, SendMessage) and isinstance(instruction.message, TokensOut):
                for out in instruction.message.outs:
                    name = out.attempt.request_id
                    self.num_tokens[name] = self.num_tokens.get(name, 0) + len(out.tokens)


def test_the_youngest_gives_way_and_finds_its_pages_again() -> None:
    """Of twelve pages each takes six; then the old one wants a seventh for its last tokens."""
    node = Node(decode_scheduler(num_pages=12))
    node.decode.handle(generate("old", [1] * 20, 80, prefill=""), 0.0)
    node.decode.handle(generate("young", [2] * 20, 100, prefill=""), 0.0)
    for _ in range(90):
        node.step()
        if node.decode.load().counters.preemptions:
            break
    assert node.decode.load().num_waiting == node.decode.load().num_running == 1
    computed, before = node.decode.load().counters.computed_tokens, dict(node.num_tokens)
    while node.decode.load().num_waiting:
        (part,) = node.step()[0]
    assert node.num_tokens["old"] == 80
    assert (part.start, len(part.token_ids)) == (5 * PAGE, 20 + before["young"] - 5 * PAGE)
    assert part.sampling is not None
    assert node.decode.load().counters.computed_tokens - computed == len(part.token_ids)


def test_nobody_is_admitted_who_would_soon_give_way() -> None:
    """Two pages each are enough to begin; six are for the next 64 tokens."""
    for num_pages, num_admitted in ((11, 1), (12, 2)):
        node = Node(decode_scheduler(num_pages))
        for name in ("a", "b"):
            node.decode.handle(generate(name, [ord(name)] * 20, 100, prefill=""), 0.0)
        node.step()
        assert node.decode.load().num_running == num_admitted


@given(
    running=st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 200), st.integers(0, 20)), max_size=5
    ),
    length=st.integers(1, 100),
    count=st.integers(1, 100),
)
def test_a_node_admits_what_it_says_that_it_has_room_for(
    running: list[tuple[int, int, int]], length: int, count: int
) -> None:
    """Whatever runs or waits, and has grown: so who counts on the room sends nobody to wait."""
    node = Node(decode_scheduler(num_pages=40, running=8))
    for i, (prompt_length, max_new_tokens, num_steps) in enumerate(running):
        node.decode.handle(generate(str(i), [i] * prompt_length, max_new_tokens, prefill=""), 0.0)
        for _ in range(num_steps):
            node.step()
    before = node.decode.load()
    num_pages = HASHER.num_pages(admission_tokens(length, most_tokens(length, count)))
    node.decode.handle(generate("new", [99] * length, count, prefill=""), 0.0)
    waiting = node.decode.load()
    assert waiting.room_pages == before.room_pages - num_pages, "those who wait count at once"
    node.decode.next_batch(0.0)
    if num_pages <= before.room_pages:
        assert node.decode.load().num_waiting == 0
    elif not before.num_waiting:
        assert node.decode.load().num_waiting == 1


def test_a_fetch_ends_before_its_pages_go_to_an_older_answer_and_is_not_asked_for_again() -> None:
    """Late pages of the first one would come in the place of others."""
    node = Node(decode_scheduler(num_pages=14))
    young = generate("young", [2] * 100, 1, prefill="", fetch=(P0, PREFILL, 6))
    node.decode.handle(generate("old", [1] * 20, 160, prefill=""), 0.0)
    node.decode.handle(young, 0.0)
    asked = [i for i in node.step()[1] if isinstance(i, SendMessage)]
    assert [type(send.message) for send in asked] == [Fetch]
    instructions = [i for _ in range(130) for i in node.step()[1]]
    assert instructions == [AbortTransfer(young.attempt)]
    assert node.decode.load().counters.preemptions == 1
    assert node.run() == []
    assert node.num_tokens == {"old": 160, "young": 1}
