"""A prompt that begins like a cached page takes its first tokens from there."""

from __future__ import annotations

import msgspec
import pytest

from engine.batches.sequence import Sampled, Slice
from node.core.instructions import CopyPages, ExpectPages, Instruction, SendMessage
from node.core.scheduler import Scheduler
from protocol.hashing import token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import Cancel, FetchRefused, Generate, Prefill, PrefillDone, TokensOut
from protocol.namespace import Namespace
from protocol.sampling import Sampling
from tests.support.node.schedulers import PAGE, decode_scheduler, generate, prefill_scheduler

FIRST = [7, 8, 9, 10, 11, 12]
SECOND = [7, 8, 9, 10, 30, 31, 32]
NUM_COMMON = 4
WHOLE = list(range(100, 100 + PAGE))


def run(scheduler: Scheduler, request: Generate | Prefill) -> tuple[list[Slice], list[Instruction]]:
    """Computes a request to its end; every sample is the token 5."""
    instructions = scheduler.handle(request, 0.0)
    computed: list[Slice] = []
    while True:
        slices, planned = scheduler.next_batch(0.0)
        instructions += planned
        if not slices:
            return computed, instructions
        computed += slices
        sampled = [Sampled((5,)) if part.sampling else None for part in slices]
        instructions += scheduler.finish(sampled, 0.0)


def copies_in(instructions: list[Instruction]) -> list[CopyPages]:
    return [i for i in instructions if isinstance(i, CopyPages)]


def cached_tokens_in(instructions: list[Instruction]) -> int:
    """What the last message of tokens, or of a handed over prompt, says."""
    told = []
    for instruction in instructions:
        if isinstance(instruction, SendMessage):
            if isinstance(instruction.message, TokensOut):
                told += [out.cached_tokens for out in instruction.message.outs]
            elif isinstance(instruction.message, PrefillDone):
                told.append(instruction.message.cached_tokens)
    return told[-1]


def prefill(name: str, prompt: list[int], **fetch: object) -> Prefill:
    request = Prefill(
        Attempt(name, 1), token_bytes(prompt), Namespace(), Sampling(), 0, "d", ("d",)
    )
    return msgspec.structs.replace(request, **fetch)


@pytest.mark.parametrize("num_answered", [1, PAGE + 3], ids=["a tail", "a whole page"])
def test_a_question_that_begins_like_another(num_answered: int) -> None:
    """The first one's page is full only if its answer is long enough."""
    scheduler = decode_scheduler()
    run(scheduler, generate("first", FIRST, num_answered, prefill=""))
    slices, instructions = run(scheduler, generate("second", SECOND, 1, prefill=""))
    assert [(part.start, len(part.token_ids)) for part in slices] == [(NUM_COMMON, 3)]
    (copy,) = copies_in(instructions)
    assert copy.destinations == [slices[0].pages[0]] and copy.sources != copy.destinations
    assert cached_tokens_in(instructions) == NUM_COMMON
    counters = scheduler.load().counters
    assert (counters.requests, counters.requests_hit) == (2, 1)
    assert counters.reused_tokens == NUM_COMMON


def test_the_last_token_of_a_prompt_is_computed() -> None:
    scheduler = decode_scheduler()
    run(scheduler, generate("first", WHOLE, 1, prefill=""))
    slices, instructions = run(scheduler, generate("again", WHOLE, 1, prefill=""))
    assert [(part.start, len(part.token_ids)) for part in slices] == [(PAGE - 1, 1)]
    assert cached_tokens_in(instructions) == PAGE - 1


def test_behind_whole_pages_the_rest_of_a_turn_is_found() -> None:
    scheduler = decode_scheduler()
    run(scheduler, generate("first", WHOLE + FIRST, 4, prefill=""))
    prompt = WHOLE + FIRST + [5, 5, 5, 5, 40, 41]
    slices, instructions = run(scheduler, generate("next", prompt, 1, prefill=""))
    num_with_kv = PAGE + len(FIRST) + 3  # nobody computed that of the last token
    assert slices[0].start == num_with_kv == cached_tokens_in(instructions)


def test_the_longest_common_beginning_is_taken() -> None:
    scheduler = decode_scheduler()
    for name, prompt in (("a", SECOND[:2]), ("b", [*SECOND[:5], 60]), ("c", [*SECOND[:3], 99])):
        run(scheduler, generate(name, prompt, 1, prefill=""))
    slices, _ = run(scheduler, generate("second", SECOND, 1, prefill=""))
    assert slices[0].start == 5


def test_tenants_copy_nothing_from_each_other() -> None:
    scheduler = decode_scheduler()
    for tenant in ("", "acme", "other"):
        request = generate(f"of {tenant}", SECOND, 1, prefill="")
        request = msgspec.structs.replace(request, namespace=Namespace(tenant))
        slices, instructions = run(scheduler, request)
        assert slices[0].start == 0 and not copies_in(instructions)


def test_a_handed_over_prompt_says_it_to_the_token() -> None:
    """The page that was copied is completed, and sent as a whole."""
    scheduler = prefill_scheduler()
    run(scheduler, prefill("first", WHOLE))
    prompt = [*WHOLE[:10], *FIRST, *FIRST]
    slices, instructions = run(scheduler, prefill("second", prompt))
    assert slices[0].start == 10 == cached_tokens_in(instructions)
    (copy,) = copies_in(instructions)
    sent = [page for i in instructions for page in getattr(i, "pages", [])]
    assert sent == list(slices[0].pages) and copy.destinations == [sent[0]]


def test_what_is_fetched_is_never_copied_over() -> None:
    """The copy waits for the end of the fetch, and is of the page behind what it brought."""
    scheduler = prefill_scheduler()
    run(scheduler, prefill("first", WHOLE))
    prompt = [*WHOLE[:10], *FIRST, *FIRST]
    owner = Node("p7", 1)
    request = prefill("r", prompt, fetch_node=owner, fetch_address="p7", fetch_pages=1)
    scheduler.handle(request, 0.0)
    slices, instructions = scheduler.next_batch(0.0)
    assert not slices and not copies_in(instructions)
    (expected,) = [i for i in instructions if isinstance(i, ExpectPages)]
    scheduler.handle(FetchRefused(Attempt("r", 1), "gone", owner), 0.0)
    (part,), instructions = scheduler.next_batch(0.0)
    (copy,) = copies_in(instructions)
    assert copy.destinations == expected.pages and part.start == 10


def test_an_answer_that_gave_way_counts_nothing_of_what_it_finds_again() -> None:
    """What it had when it gave way is no hit of the prompt."""
    scheduler, num_answered = decode_scheduler(num_pages=13), 120
    for first in (20, 40):
        prompt = [first, 3, 4]
        scheduler.handle(generate(str(first), prompt, num_answered, prefill=""), 0.0)
    instructions: list[Instruction] = []
    while parts := scheduler.next_batch(0.0):
        slices, planned = parts
        if not slices:
            break
        sampled = [Sampled((5,)) if part.sampling else None for part in slices]
        instructions += [*planned, *scheduler.finish(sampled, 0.0)]
    counters = scheduler.load().counters
    assert counters.preemptions > 0 and counters.generated_tokens == 2 * num_answered
    assert counters.requests_hit == counters.reused_tokens == cached_tokens_in(instructions) == 0


def test_a_tail_is_evicted_as_any_page_and_never_owned() -> None:
    scheduler = decode_scheduler(num_pages=4)
    run(scheduler, generate("first", FIRST, 1, prefill=""))
    assert scheduler.load().cached_pages == 1
    assert scheduler._cache.hashes() == [] == scheduler._cache.take_changes()
    scheduler.handle(generate("large", WHOLE * 3, PAGE, prefill=""), 0.0)
    run(scheduler, generate("large", WHOLE * 3, PAGE, prefill="", number=2))
    run(scheduler, generate("second", [*WHOLE * 3, 1], 1, prefill=""))
    load = scheduler.load()
    assert load.free_pages + load.cached_pages == 4
    slices, _ = run(scheduler, generate("again", FIRST, 1, prefill=""))
    assert slices[0].start == 0


def test_what_was_cancelled_leaves_only_what_was_computed() -> None:
    scheduler = decode_scheduler()
    scheduler.handle(generate("first", SECOND, 4, prefill=""), 0.0)
    scheduler.next_batch(0.0)
    scheduler.handle(Cancel(Attempt("first", 1)), 0.0)
    assert scheduler.load().cached_pages == 0
    scheduler.finish([Sampled((5,))], 0.0)
    slices, _ = run(scheduler, generate("second", SECOND, 1, prefill=""))
    assert slices[0].start == 0
