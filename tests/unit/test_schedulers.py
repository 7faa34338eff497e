"""Both schedulers, alone and talking to each other in a world without sockets or tensors."""

from __future__ import annotations

import random
from collections import deque

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes import LAYOUT

from decode.scheduler import DecodeLimits, DecodeScheduler
from engine.cache import PrefixCache
from node.instructions import (
    AbortTransfer,
    Event,
    ExpectPages,
    Instruction,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    Scheduler,
    Send,
    SendPages,
)
from prefill.scheduler import PrefillLimits, PrefillScheduler
from protocol.hashing import PageHasher, token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import (
    Cancel,
    Failed,
    FailureKind,
    Fetch,
    FetchRefused,
    Generate,
    Prefill,
    PrefillDone,
    TokensOut,
)
from protocol.sampling import Sampling

HASHER = PageHasher("model", LAYOUT)
PAGE = LAYOUT.page_size
P0, D0 = Node("p0", 1), Node("d0", 1)
COORDINATOR, PREFILL, DECODE = "coordinator", "prefill", "decode"
STOP = 0


def next_token(tokens: list[int]) -> int:
    """Stands in for the model: decided by everything before."""
    return random.Random(str(tokens)).randrange(1, 100)


def answer_of(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def prefill_scheduler(
    num_pages: int = 64,
    chunk: int = 32,
    waiting: int = 8,
    node: Node = P0,
    address: str = PREFILL,
) -> PrefillScheduler:
    limits = PrefillLimits(chunk_tokens=chunk, max_running=4, max_waiting=waiting)
    return PrefillScheduler(node, (address, address), PrefixCache(num_pages), HASHER, limits)


def decode_scheduler(
    num_pages: int = 64, waiting: int = 8, receive_timeout_s: float = 10.0
) -> DecodeScheduler:
    """One address for control and data keeps the world simple."""
    limits = DecodeLimits(
        chunk_tokens=32,
        max_running=4,
        max_waiting=waiting,
        receive_timeout_s=receive_timeout_s,
    )
    cache = PrefixCache(num_pages)
    return DecodeScheduler(D0, (DECODE, DECODE), cache, HASHER, limits)


def generate(
    name: str,
    prompt: list[int],
    max_new_tokens: int = 4,
    prefill: str = PREFILL,
    number: int = 1,
    fetch: tuple[Node, str, int] = (D0, "", 0),
) -> Generate:
    """`fetch`: owner, its address, pages."""
    return Generate(
        attempt=Attempt(name, number),
        tokens=token_bytes(prompt),
        cache_salt="",
        sampling=Sampling(temperature=0.0),
        max_new_tokens=max_new_tokens,
        stop_token_ids=[STOP],
        prefill_node=P0 if prefill else None,
        prefill_address=prefill,
        reply_address=COORDINATOR,
        fetch_node=fetch[0],
        fetch_address=fetch[1],
        fetch_pages=fetch[2],
    )


class World:
    """Delivers messages and pages, and plays the model; what arrives when is up to `rng`.

    A page is remembered as the tokens whose KV was written to it, so a page that was sent, reused
    or overwritten wrongly gives a wrong token, as it would with a real model. With `lossy`,
    questions to owners and their answers get lost, and time passes whenever all are at rest.
    """

    def __init__(
        self, rng: random.Random, schedulers: dict[str, Scheduler], lossy: bool = False
    ) -> None:
        """`schedulers` by address, control and data being one."""
        self.rng = rng
        self.schedulers = schedulers
        self.lossy = lossy
        self.now = 0.0
        self.pools: dict[str, dict[tuple[int, int], int]] = {name: {} for name in schedulers}
        self.queues: dict[str, deque[Event]] = {name: deque() for name in schedulers}
        self.expected: dict[tuple[str, Attempt], list[int]] = {}
        self.arrived: dict[tuple[str, Attempt], int] = {}
        self.travelling: list[tuple[str, SendPages, list[dict[int, int]]]] = []
        self.tokens: dict[str, list[int]] = {}
        self.fetched: dict[str, int] = {}
        self.ends: dict[str, str] = {}
        self.resting = dict.fromkeys(schedulers, False)
        """Had nothing to compute, and has heard nothing since."""

    def post(self, where: str, event: Event) -> None:
        self.queues[where].append(event)

    def run(self) -> None:
        """Until nothing is left to do; a world that never rests fails."""
        time_has_passed = not self.lossy
        for _ in range(5_000):
            choices = [name for name, queue in self.queues.items() if queue]
            busy = [name for name, resting in self.resting.items() if not resting]
            if self.travelling and self.rng.random() < 0.3:
                self.deliver(self.rng.randrange(len(self.travelling)))
            elif not choices and not busy:
                if self.travelling:
                    continue
                if time_has_passed:
                    return
                self.now += 6.0
                time_has_passed = True
                self.resting = dict.fromkeys(self.schedulers, False)
            else:
                name = self.rng.choice(choices + busy)
                if self.queues[name] and self.rng.random() < 0.6:
                    event = self.queues[name].popleft()
                    self.resting[name] = False
                    self.carry_out(name, self.schedulers[name].handle(event, self.now))
                else:
                    self.step(name)
                    time_has_passed &= self.resting[name] or not self.lossy
        raise AssertionError("the world does not come to rest")

    def step(self, name: str) -> None:
        scheduler, pool = self.schedulers[name], self.pools[name]
        slices, instructions = scheduler.next_batch(self.now)
        self.carry_out(name, instructions)
        sampled: list[int | None] = []
        for part in slices:
            end = part.start + len(part.token_ids)
            for position, token in enumerate(part.token_ids, part.start):
                pool[part.pages[position // PAGE], position % PAGE] = token
            context = [pool.get((part.pages[i // PAGE], i % PAGE), -1) for i in range(end)]
            sampled.append(next_token(context) if part.sampling else None)
        self.resting[name] = not slices
        if slices:
            self.carry_out(name, scheduler.finish(sampled, self.now))

    def carry_out(self, name: str, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, ExpectPages):
                self.expected[name, instruction.transfer] = instruction.pages
                self.arrived[name, instruction.transfer] = 0
            elif isinstance(instruction, AbortTransfer):
                self.expected.pop((name, instruction.transfer), None)
            elif isinstance(instruction, SendPages):
                contents = [
                    {i: t for (p, i), t in self.pools[name].items() if p == page}
                    for page in instruction.pages
                ]
                self.travelling.append((name, instruction, contents))
            elif instruction.address == COORDINATOR:
                self.reply(instruction)
            elif not isinstance(instruction.message, Fetch | FetchRefused) or not self.loses():
                assert not isinstance(instruction.message, TokensOut)
                self.post(instruction.address, instruction.message)  # type: ignore[arg-type]

    def loses(self) -> bool:
        return self.lossy and self.rng.random() < 0.2

    def deliver(self, number: int) -> None:
        name, work, contents = self.travelling.pop(number)
        if work.is_fetch and self.loses():
            self.post(name, PagesSent(work.transfer, "peer lost", is_fetch=True))
            key = (work.data_address, work.transfer)
            if self.rng.random() < 0.5 and self.expected.pop(key, None) is not None:
                self.post(work.data_address, ReceiveFailed(work.transfer, "peer lost"))
            return
        self.write(work.data_address, work.transfer, work.offset, contents)
        self.post(name, PagesSent(work.transfer, is_fetch=work.is_fetch))

    def write(
        self, name: str, transfer: Attempt, offset: int, contents: list[dict[int, int]]
    ) -> None:
        pages = self.expected.get((name, transfer))
        if pages is None:
            return
        for page, content in zip(pages[offset:], contents, strict=False):
            for slot in range(PAGE):
                self.pools[name].pop((page, slot), None)
            for slot, token in content.items():
                self.pools[name][page, slot] = token
        self.arrived[name, transfer] += len(contents)
        if self.arrived[name, transfer] == len(pages):
            del self.expected[name, transfer]
            self.post(name, PagesReceived(transfer))

    def reply(self, send: Send) -> None:
        message = send.message
        if isinstance(message, Failed):
            name = message.attempt.request_id
            assert name not in self.ends
            self.ends[name] = message.reason
            return
        assert isinstance(message, TokensOut)
        for out in message.outs:
            name = out.attempt.request_id
            assert name not in self.ends, "tokens after the end"
            self.tokens.setdefault(name, []).extend(out.tokens)
            self.fetched[name] = out.fetched_tokens
            assert out.fetched_tokens <= out.cached_tokens
            if out.finish:
                self.ends[name] = out.finish


prompts = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 120), st.integers(1, 40)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(prompts, st.randoms(use_true_random=False), st.booleans())
def test_every_answer_is_the_models(
    asked: list[tuple[str, int, int]], rng: random.Random, disaggregated: bool
) -> None:
    """Shared prefixes, chunks, small pools that evict, any order: tokens never change."""
    texts = {"a": [rng.randrange(1, 50) for _ in range(200)], "b": list(range(1, 201))}
    prefill, decode = prefill_scheduler(num_pages=16), decode_scheduler(num_pages=20)
    world = World(rng, {PREFILL: prefill, DECODE: decode})
    for number, (text, length, count) in enumerate(asked):
        address = PREFILL if disaggregated else ""
        world.post(DECODE, generate(f"r{number}", texts[text][:length], count, address))
    world.run()
    for number, (text, length, count) in enumerate(asked):
        assert world.ends[f"r{number}"] == "length"
        assert world.tokens[f"r{number}"] == answer_of(texts[text][:length], count)
    assert prefill.load().held_pages == decode.load().held_pages == 0


@settings(max_examples=100, deadline=None)
@given(prompts, st.randoms(use_true_random=False))
def test_cancelled_requests_leave_no_page_and_harm_nobody(
    asked: list[tuple[str, int, int]], rng: random.Random
) -> None:
    text = list(range(1, 201))
    prefill, decode = prefill_scheduler(num_pages=16), decode_scheduler(num_pages=20)
    world = World(rng, {PREFILL: prefill, DECODE: decode})
    events: list[Event] = []
    cancelled = set()
    for number, (_, length, count) in enumerate(asked):
        events.append(generate(f"r{number}", text[:length], count))
        if rng.random() < 0.5:
            cancelled.add(number)
    for event in events:
        world.post(DECODE, event)
    for number in cancelled:
        world.queues[DECODE].insert(
            rng.randrange(number + 1, len(world.queues[DECODE]) + 1),
            Cancel(Attempt(f"r{number}", 1)),
        )
    world.run()
    for number, (_, length, count) in enumerate(asked):
        if number not in cancelled:
            assert world.tokens[f"r{number}"] == answer_of(text[:length], count)
    assert prefill.load().held_pages == decode.load().held_pages == 0
    assert prefill.next_batch(0.0) == decode.next_batch(0.0) == ([], [])


def test_decode_reserves_first_and_asks_only_for_what_it_lacks() -> None:
    rng = random.Random(1)
    decode = decode_scheduler()
    world = World(rng, {PREFILL: prefill_scheduler(), DECODE: decode})
    prompt = list(range(1, 101))  # 6 full pages and a part
    world.post(DECODE, generate("r", prompt))
    world.run()
    decode.handle(generate("s", prompt + [7] * 20), 0.0)
    _, (expect, send) = decode.next_batch(0.0)
    assert isinstance(expect, ExpectPages) and isinstance(send, Send)
    assert isinstance(send.message, Prefill)
    assert send.message.skip_pages == 6
    assert len(expect.pages) == 2  # of the 8 pages of 120 tokens


def test_prefill_sends_after_each_chunk_and_nothing_twice() -> None:
    scheduler = prefill_scheduler(chunk=32)
    attempt = Attempt("r", 1)
    prompt = list(range(1, 101))
    request = Prefill(attempt, token_bytes(prompt), "", Sampling(), 1, "reply", "data")
    assert scheduler.handle(request, 0.0) == []
    offsets, token = [], None
    while slices := scheduler.next_batch(0.0)[0]:
        assert sum(len(part.token_ids) for part in slices) <= 32
        token = 7 if slices[0].sampling else None
        for instruction in scheduler.finish([token], 0.0):
            if isinstance(instruction, SendPages):
                offsets += range(instruction.offset, instruction.offset + len(instruction.pages))
            else:
                assert isinstance(instruction, Send)
                assert isinstance(instruction.message, PrefillDone)
                assert instruction.message.first_token == 7
    assert offsets == list(range(6))  # 7 pages, of which decode has the first


def test_prompts_that_begin_alike_compute_their_common_pages_once() -> None:
    """Three at once on one prefill node; a fourth that shares nothing does not wait for them."""
    rng = random.Random(1)
    prefill, decode = prefill_scheduler(chunk=2 * PAGE), decode_scheduler()
    world = World(rng, {PREFILL: prefill, DECODE: decode})
    common = list(range(1, 4 * PAGE + 1))
    prompts = {f"r{i}": [*common, *range(50 + i, 60 + i)] for i in range(3)}
    prompts["other"] = list(range(7, 7 + PAGE))
    for name, prompt in prompts.items():
        world.post(DECODE, generate(name, prompt))
    world.run()
    for name, prompt in prompts.items():
        assert world.tokens[name] == answer_of(prompt, 4)
    own = sum(len(prompt) - len(common) for name, prompt in prompts.items() if name != "other")
    computed = prefill.load().computed_tokens_total
    assert computed == len(common) + own + len(prompts["other"])


def test_a_decode_node_computes_common_pages_once() -> None:
    decode = decode_scheduler()
    world = World(random.Random(1), {DECODE: decode})
    prompt = list(range(1, 5 * PAGE + 4))
    for i in range(3):
        world.post(DECODE, generate(f"r{i}", prompt, prefill=""))
    world.run()
    assert {tuple(tokens) for tokens in world.tokens.values()} == {tuple(answer_of(prompt, 4))}
    assert decode.load().computed_tokens_total == len(prompt) + 2 * 3, "all, then the last page"


def test_a_prompt_that_waited_for_one_that_was_given_up_computes_all() -> None:
    prefill = prefill_scheduler(chunk=PAGE)
    prompt = list(range(1, 4 * PAGE + 4))
    for name in ("first", "second"):
        request = generate(name, prompt)
        prefill.handle(
            Prefill(request.attempt, request.tokens, "", request.sampling, 0, DECODE, DECODE), 0.0
        )
    slices, _ = prefill.next_batch(0.0)
    assert len(slices) == 1, "the second one waits"
    prefill.finish([None], 0.0)
    prefill.handle(Cancel(Attempt("first", 1)), 0.0)
    slices, _ = prefill.next_batch(0.0)
    assert len(slices) == 1
    assert slices[0].start == PAGE, "one page was done"


def test_what_can_never_fit_is_refused_for_good() -> None:
    decode = decode_scheduler(num_pages=4)
    (send,) = decode.handle(generate("r", [1] * 60, max_new_tokens=10), 0.0)
    assert isinstance(send, Send) and isinstance(send.message, Failed)
    assert send.message.kind == "request"
    assert "5 pages" in send.message.reason and "has 4" in send.message.reason


@pytest.mark.parametrize("kind", [PREFILL, DECODE])
def test_queues_are_bounded(kind: str) -> None:
    decode = decode_scheduler(waiting=2)
    prefill = prefill_scheduler(waiting=2)
    replies: list[Instruction] = []
    for number in range(3):
        attempt = Attempt(f"r{number}", 1)
        if kind == DECODE:
            replies += decode.handle(generate(f"r{number}", [1] * 20), 0.0)
        else:
            request = Prefill(attempt, token_bytes([1] * 20), "", Sampling(), 0, "me", "data")
            replies += prefill.handle(request, 0.0)
    (send,) = replies
    assert isinstance(send, Send) and isinstance(send.message, Failed)
    assert send.message.kind == "busy"
    assert "2 " in send.message.reason


def test_a_request_waits_while_pages_are_held_and_runs_when_they_come_back() -> None:
    decode = decode_scheduler(num_pages=8)
    decode.handle(generate("a", [1] * 90, 10, prefill=""), 0.0)  # 7 pages
    decode.handle(generate("b", [2] * 30, 10, prefill=""), 0.0)  # 3 pages
    slices, _ = decode.next_batch(0.0)
    assert [part.token_ids[0] for part in slices] == [1]
    assert decode.load().num_waiting == 1
    decode.finish([None], 0.0)
    decode.handle(Cancel(Attempt("a", 1)), 0.0)
    slices, _ = decode.next_batch(0.0)
    assert [part.token_ids[0] for part in slices] == [2]


def test_a_prefill_that_never_comes_fails_in_time_and_is_aborted_before_its_pages_go() -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40), 0.0)
    decode.next_batch(0.0)
    assert decode.next_batch(9.9) == ([], [])
    _, instructions = decode.next_batch(10.0)
    assert isinstance(instructions[0], AbortTransfer)
    failures = [i.message for i in instructions if isinstance(i, Send)]
    assert any(isinstance(m, Failed) and "10 s" in m.reason for m in failures)
    assert decode.load().held_pages == 0


def test_a_broken_receive_fails_the_attempt() -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40), 0.0)
    decode.next_batch(0.0)
    instructions = decode.handle(ReceiveFailed(Attempt("r", 1), "peer lost"), 0.0)
    failed = [i.message for i in instructions if isinstance(i, Send)][-1]
    assert isinstance(failed, Failed) and failed.reason == "peer lost"
    assert (failed.kind, failed.node) == ("node", P0), "the sender is to be avoided"
    assert decode.load().held_pages == 0


@pytest.mark.parametrize("kind", ["node", "busy"])
def test_what_prefill_says_of_itself_reaches_the_coordinator(kind: FailureKind) -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40), 0.0)
    decode.next_batch(0.0)
    failed = Failed(Attempt("r", 1), "no room", kind, P0)
    assert Send(COORDINATOR, failed) in decode.handle(failed, 0.0)
    assert decode.load().held_pages == 0


@pytest.mark.parametrize("max_new_tokens", [0, 1])
def test_a_stop_token_ends_only_an_answer_that_may_have_tokens(max_new_tokens: int) -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40, max_new_tokens, prefill=""), 0.0)
    while slices := decode.next_batch(0.0)[0]:
        (out,) = decode.finish([STOP if slices[0].sampling else None], 0.0) or [None]
    assert isinstance(out, Send) and isinstance(out.message, TokensOut)
    (token,) = out.message.outs
    assert (token.tokens, token.finish) == (([STOP], "stop") if max_new_tokens else ([], "length"))


def test_a_step_that_failed_costs_its_requests_their_attempt_and_no_page() -> None:
    decode, prefill = decode_scheduler(), prefill_scheduler()
    decode.handle(generate("r", [1] * 40, prefill=""), 0.0)
    prefill.handle(Prefill(Attempt("s", 1), token_bytes([1] * 40), "", Sampling(), 0, "d", "x"), 0)
    for scheduler, address, node in ((decode, COORDINATOR, Node("d0", 1)), (prefill, "d", P0)):
        assert scheduler.next_batch(0.0)[0]
        name = "r" if scheduler is decode else "s"
        failed = Failed(Attempt(name, 1), "no memory", "node", node)
        assert scheduler.abandon({0}, "no memory", 0.0) == [Send(address, failed)]
        assert scheduler.finish([], 0.0) == []
        assert scheduler.next_batch(0.0) == ([], [])
        assert scheduler.load().held_pages == 0


def test_a_newer_attempt_replaces_the_older_one() -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40), 0.0)
    decode.next_batch(0.0)
    instructions = decode.handle(generate("r", [1] * 40, number=2), 0.0)
    assert instructions[0] == AbortTransfer(Attempt("r", 1))
    late = PrefillDone(Attempt("r", 1), 9, 0, Node("p0", 1))
    assert decode.handle(late, 0.0) == []
    assert decode.handle(PagesReceived(Attempt("r", 1)), 0.0) == []


@pytest.mark.parametrize("kind", [PREFILL, DECODE])
def test_pages_belong_to_the_tenant_who_asked(kind: str) -> None:
    scheduler: PrefillScheduler | DecodeScheduler
    if kind == PREFILL:
        scheduler = prefill_scheduler()
        scheduler.handle(
            Prefill(Attempt("r", 1), token_bytes([1] * 40), "acme", Sampling(), 0, "d", "d"), 0.0
        )
    else:
        scheduler = decode_scheduler()
        request = generate("r", [1] * 40, 1, prefill="")
        scheduler.handle(msgspec.structs.replace(request, cache_salt="acme"), 0.0)
    while slices := scheduler.next_batch(0.0)[0]:
        scheduler.finish([7 if part.sampling else None for part in slices], 0.0)
    assert scheduler._cache.flush("") == 0
    assert scheduler._cache.flush("acme") == 2
