"""Planted bugs that the simulator has to find: `python -m tests.sim.mutants` (`make sim-mutants`).

Each is a small change of the product, made for some lives and taken back. It is found when a life
breaks a promise that it keeps without the change. Ends with one JSON line.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import msgspec

import node.core.prompts
from coordinator.admission.fair_shares import FairShares
from coordinator.core.core import CoordinatorCore
from coordinator.core.errors import TooBusy
from coordinator.core.tracked_request import TrackedRequest
from coordinator.core.tracker import Tracker
from coordinator.leaving.taking_over import AnsweredBefore
from coordinator.ownership.index import PrefixIndex
from coordinator.ownership.mirror import OwnershipMirror
from coordinator.routing.registry import Registry
from decode.answers import Answers
from decode.receiving import Receiving
from engine.batches.sequence import Sequence
from engine.cache.page_pool import PagePool
from engine.cache.prefix_cache import HeldPages, PrefixCache
from engine.cache.radix import RadixNode
from node.core.coordinator_leases import CoordinatorLeases
from node.core.expected_transfers import ExpectedTransfers
from node.core.fetching import Fetching
from node.core.instructions import AbortTransfer
from node.core.job import Job
from node.core.leaving import Leaving
from node.core.prompts import Prompts
from node.core.scheduler import Scheduler
from node.load.rates import Rates
from node.ownership.ownership_writer import OwnershipWriter
from node.shell.steps import Steps
from prefill.sending import PagesBeingSent
from protocol.ids import Attempt
from protocol.messages import Generate, TokensOut
from protocol.redis.ownership import Change
from protocol.sampling import Sampling
from tests.sim.life import live, plan_of
from tests.sim.shrink import failure_of

MAX_LIVES = 2_000
"""A planted bug that so many lives do not show is not found."""


@dataclass(frozen=True)
class Mutant:
    """One planted bug: `method` of `owner`, or a function of a module, made wrong by
    `wrong(right)`."""

    name: str
    owner: type | ModuleType
    method: str
    wrong: Callable[[Any], Any]

    @contextmanager
    def planted(self) -> Iterator[None]:
        right = self.owner.__dict__[self.method]
        function = right.fget if isinstance(right, property) else right
        wrong = self.wrong(function)
        setattr(self.owner, self.method, property(wrong) if isinstance(right, property) else wrong)
        try:
            yield
        finally:
            setattr(self.owner, self.method, right)


def _stale_incarnation(right: Any) -> Any:
    def heartbeat(self: Registry, message: Any, now: float) -> Any:
        """An older incarnation that is still talking takes the place of the newer one."""
        self._newest.pop(message.info.node.name, None)
        return right(self, message, now)

    return heartbeat


def _leak_on_no_room(right: Any) -> Any:
    def acquire(self: PrefixCache, hashes: Any, *rest: Any, **named: Any) -> Any:
        """The cached pages of a request that finds no room stay locked."""
        held = right(self, hashes, *rest, **named)
        if held is None:
            _, node = self._tree.match(hashes, None)
            self._tree.lock(node)
        return held

    return acquire


def _leak_on_cancel(right: Any) -> Any:
    def left(self: Answers, job: Any, held: Any) -> Any:
        """An answer that is cancelled while its pages are received keeps them."""
        if self._receiving.get(job.attempt) is not None:
            return self._receiving.give_up(job)
        return right(self, job, held)

    return left


def _repeats_when_taken_over(right: Any) -> Any:
    def take_over(self: Tracker, answer: Any, before: AnsweredBefore, now: float) -> Any:
        """The first token of an answer that nodes have kept comes twice."""
        tokens = before.tokens[:1] + before.tokens
        return right(self, answer, AnsweredBefore(tokens, before.finish), now)

    return take_over


def _stale_attempt(right: Any) -> Any:
    def tokens(self: Tracker, message: Any, now: float) -> Any:
        """What an older attempt still says is appended to the answer."""
        instructions = []
        for out in message.outs:
            tracked = self._requests.get(out.attempt.request_id)
            is_stale = tracked is not None and out.attempt.number < tracked.attempt_number
            if is_stale and tracked is not None and tracked.route is not None:
                instructions += self._take(tracked, tracked.route, out, now)
            else:
                instructions += right(self, TokensOut([out], message.node), now)
        return instructions

    return tokens


def _gap_in_tokens(right: Any) -> Any:
    def problem_with(self: TrackedRequest, out: Any) -> str:
        """Nobody looks whether tokens are missing."""
        return ""

    return problem_with


def _late_write(right: Any) -> Any:
    def give_up(self: Receiving, job: Any) -> Any:
        """The transport goes on writing into pages that were given back."""
        return [i for i in right(self, job) if not isinstance(i, AbortTransfer)]

    return give_up


def _late_fetch(right: Any) -> Any:
    def give_up(self: Fetching, attempt: Attempt, now: float) -> Any:
        """The transport goes on writing what was fetched into pages that are computed now."""
        return [i for i in right(self, attempt, now) if not isinstance(i, AbortTransfer)]

    return give_up


def _abort_too_late(right: Any) -> Any:
    def noted(self: ExpectedTransfers, instructions: Any) -> Any:
        """Pages are given back first, and may be expected again before the abort of the old."""
        aborts = [i for i in instructions if isinstance(i, AbortTransfer)]
        late, self._late = getattr(self, "_late", []), aborts  # type: ignore[attr-defined]
        return right(self, [*(i for i in instructions if i not in aborts), *late])

    return noted


def _lost_event(right: Any) -> Any:
    def publish(self: OwnershipWriter, changes: Any) -> None:
        """Every fifth change of the cache is never told."""
        told = []
        for change in changes:
            self._count = getattr(self, "_count", 0) + 1  # type: ignore[attr-defined]
            if self._count % 5:  # type: ignore[attr-defined]
                told.append(change)
        right(self, told)

    return publish


def _double_retry(right: Any) -> Any:
    def lost_its_node(self: Tracker, tracked: TrackedRequest, now: float) -> Any:
        """A request that lost its node is queued twice."""
        instructions = right(self, tracked, now)
        if tracked.routed is not None and tracked.route is None:
            self._enqueue(tracked, tracked.routed.demand, now)
        return instructions

    return lost_its_node


def _repeated_token(right: Any) -> Any:
    def tokens(self: TrackedRequest) -> list[int]:
        """The next attempt computes the newest token of the answer once more."""
        return right(self)[:-1] if self.answered else right(self)

    return tokens


def _gap_not_noticed(right: Any) -> Any:
    def apply(self: OwnershipMirror, node: Any, stream_id: bytes, change: Change) -> bool:
        """A change that does not follow the last one is applied all the same."""
        if not change.reload:
            self._positions[node].sequence = change.sequence - 1
        return bool(right(self, node, stream_id, change))

    return apply


def _orphan(right: Any) -> Any:
    def take_silent(self: CoordinatorLeases, now: float) -> list[str]:
        """Requests of a dead coordinator are answered to their end, for nobody."""
        return []

    return take_silent


def _two_owners(right: Any) -> Any:
    def allocate(self: PagePool, count: int) -> Any:
        """The last page of every allocation is given out again."""
        pages = right(self, count)
        if pages and count > 1:
            self._is_free[pages[-1]] = 1
            self._free.append(pages[-1])
        return pages

    return allocate


def _evicts_locked(right: Any) -> Any:
    def is_evictable(self: RadixNode) -> bool:
        """Pages that a request hits may be evicted under it."""
        return not self.children

    return is_evictable


def _forgotten_node(right: Any) -> Any:
    def forget(self: PrefixIndex, *nodes: Any) -> None:
        """What a node owned whose lease has ended is still believed to be there."""

    return forget


def _released_while_sent(right: Any) -> Any:
    def leave(self: PagesBeingSent, attempt: Attempt, held: Any) -> None:
        """Pages are given back while they are still being sent."""
        self._cache.release(held)

    return leave


def _state_remembered(right: Any) -> Any:
    def end_sequence(self: Steps, sequence_id: int) -> None:
        """The runner remembers every sequence that ever was."""

    return end_sequence


def _ahead_sample(right: Any) -> Any:
    def samples_next(self: Sequence, part: Any) -> bool:
        """What a step sampled that was started too early is taken for the next token."""
        return True

    return samples_next


def _hashes_too_far(right: Any) -> Any:
    def commit(self: Prompts, job: Any, now: float) -> None:
        """A page becomes findable that is not quite computed."""
        sequence = job.sequence
        size = self._hasher.page_size
        if sequence.num_computed % size and sequence.num_computed // size < len(job.hashes):
            num_pages = sequence.num_computed // size + 1
            self._cache.commit(sequence.held, job.hashes[:num_pages], now)
            return
        right(self, job, now)

    return commit


def _copies_too_much(right: Any) -> Any:
    def closest(self: PrefixCache, *arguments: Any) -> Any:
        """One token more is taken over than begins alike."""
        beginning = right(self, *arguments)
        return beginning and replace(beginning, num_tokens=beginning.num_tokens + 1)

    return closest


def _tail_not_computed(right: Any) -> Any:
    def keep_tail(self: PrefixCache, held: Any, num_tokens: int, now: float) -> None:
        """A tail is said to hold the next token, which no step has computed."""
        size = self._page_size
        is_longer = bool(num_tokens % size and (num_tokens + 1) % size)
        right(self, held, min(num_tokens + is_longer, len(held.tokens)), now)

    return keep_tail


def _mixes_tenants(right: Any) -> Any:
    def key(self: PrefixCache, held: Any, number: int, *rest: Any) -> bytes:
        """First pages are copied from whatever namespace has them."""
        of_all = HeldPages([], 0, held.node, set(), tokens=held.tokens)
        return bytes(right(self, of_all, number, *rest))

    return key


def _late_copy(right: Any) -> Any:
    def copy_pages(self: Steps, *pages: Any) -> None:
        """Pages are copied when the next ones are to be, so behind the step that needs them."""
        late, self._late_copy = getattr(self, "_late_copy", None), pages  # type: ignore[attr-defined]
        if late is not None:
            right(self, *late)

    return copy_pages


def _booked_through_a_pause(right: Any) -> Any:
    def pause(self: Tracker, now: float) -> Any:
        """Work that is taken back from nodes counts as theirs for ever."""
        for tracked in self._requests.values():
            if tracked.route is not None:
                tracked.routed = None
        return right(self, now)

    return pause


def _forgotten_by_a_pause(right: Any) -> Any:
    def pause(self: Tracker, now: float) -> Any:
        """What was answered before a pause is not part of the prompt after it."""
        for tracked in self._requests.values():
            tracked.answered = []
        return right(self, now)

    return pause


def _cache_spoils_logprobs(right: Any) -> Any:
    def num_reusable(self: Job[Any]) -> int:
        """Pages are reused although logprobs of their tokens are wanted."""
        return len(self.tokens) - 1

    return num_reusable


def _logprob_lost_between_chunks(right: Any) -> Any:
    def scored(self: Sequence, start: int, stop: int) -> Any:
        """The last row of a chunk says nothing of the first token of the next one."""
        return right(self, start, stop - 1)

    return scored


def _grammar_begins_anew(right: Any) -> Any:
    def sampling(self: TrackedRequest) -> Sampling:
        """The next attempt takes the answer so far for a part of the prompt, so that the grammar
        begins again behind it."""
        return msgspec.structs.replace(right(self), prompt_length=len(self.tokens))

    return sampling


def _replays_a_chunk(right: Any) -> Any:
    def next_slice(self: Sequence, *arguments: Any) -> Any:
        """The state of a sequence is given the tokens of the last chunk alone."""
        part = right(self, *arguments)
        return msgspec.structs.replace(part, replay=part.replay[-len(part.token_ids) :])

    return next_slice


def _chunk_not_cut(right: Any) -> Any:
    def chunk_tokens(self: Scheduler, rates: Any) -> int:
        """A chunk is as long beside answers as alone."""
        return self._limits.chunk_tokens

    return chunk_tokens


def _oldest_left_out(right: Any) -> Any:
    def sizes(rests: Any, max_tokens: int) -> list[int]:
        """The shortest prompts have all of a step, whoever waits."""
        backwards = right([*rests, 0][::-1], max_tokens)
        return list(backwards[1:][::-1])

    return sizes


def _half_of_a_chunk(right: Any) -> Any:
    def observe(self: Rates, slices: Any, seconds: float) -> None:
        """A chunk counts for half of the time that it adds to a step."""
        right(self, slices, seconds)
        lengths = [len(part.token_ids) for part in slices if len(part.token_ids) > 1]
        if 0 < len(lengths) < len(slices):
            self._prompt_s *= 0.5

    return observe


def _role_is_a_wall(right: Any) -> Any:
    def handle(self: Scheduler, event: Any, now: float) -> Any:
        """A prefill node does not answer, whoever asks."""
        is_answer = isinstance(event, Generate) and self.role == "prefill"
        return [] if is_answer else right(self, event, now)

    return handle


def _leaks_a_place(right: Any) -> Any:
    def submit(self: CoordinatorCore, request: Any, now: float, *rest: Any) -> Any:
        """A request that gets a 429 keeps its place in its tenant's share."""
        try:
            return right(self, request, now, *rest)
        except TooBusy:
            self.turns.joined(request.tenant, request.priority, len(request.tokens), 1, now)
            raise

    return submit


def _forgives_debts(right: Any) -> Any:
    def served(self: FairShares, name: str, priority: int, num_tokens: int) -> None:
        """A tenant owes nothing for what it was served."""
        right(self, name, priority, num_tokens)
        self._tenants[name].counter -= num_tokens

    return served


def _waits_for_ever(right: Any) -> Any:
    def has_waited_too_long(self: Tracker, tracked: TrackedRequest, now: float) -> bool:
        """Waiting has no deadline."""
        return False

    return has_waited_too_long


def _leaves_at_once(right: Any) -> Any:
    def is_over(self: Leaving, is_idle: bool, now: float) -> bool:
        """A node that was told to leave does not finish what it has."""
        return right(self, True, now)

    return is_over


def _leaves_unmarked(right: Any) -> Any:
    def mark_draining(self: OwnershipWriter, on_done: Callable[[bool], None]) -> None:
        """Nobody but the node knows that it drains."""
        on_done(True)

    return mark_draining


def _pages_on_their_way_forgotten(right: Any) -> Any:
    def is_idle(self: Scheduler) -> bool:
        """A node leaves while pages are on their way from it."""
        return self._prompts.num_running + self._prompts.num_waiting == 0

    return is_idle


MUTANTS = (
    Mutant("leaves before it has finished", Leaving, "is_over", _leaves_at_once),
    Mutant("leaves without a mark", OwnershipWriter, "mark_draining", _leaves_unmarked),
    Mutant("leaves while it sends", Scheduler, "is_idle", _pages_on_their_way_forgotten),
    Mutant("429 that leaks a slot", CoordinatorCore, "submit", _leaks_a_place),
    Mutant("tenant's debt forgotten", FairShares, "served", _forgives_debts),
    Mutant("waiting without a deadline", Tracker, "_has_waited_too_long", _waits_for_ever),
    Mutant("stale incarnation believed", Registry, "heartbeat", _stale_incarnation),
    Mutant("leak on refusal", PrefixCache, "acquire", _leak_on_no_room),
    Mutant("leak on cancel", Answers, "left", _leak_on_cancel),
    Mutant("stale attempt accepted", Tracker, "tokens", _stale_attempt),
    Mutant("lost tokens not noticed", TrackedRequest, "problem_with", _gap_in_tokens),
    Mutant("late write into freed pages", Receiving, "give_up", _late_write),
    Mutant("late write of a fetch", Fetching, "give_up", _late_fetch),
    Mutant("receive not aborted before release", ExpectedTransfers, "noted", _abort_too_late),
    Mutant("lost ownership event", OwnershipWriter, "publish", _lost_event),
    Mutant("double retry", Tracker, "_lost_its_node", _double_retry),
    Mutant("token repeated after a resume", TrackedRequest, "tokens", _repeated_token),
    Mutant("token repeated by a take-over", Tracker, "take_over", _repeats_when_taken_over),
    Mutant("gap not noticed", OwnershipMirror, "_apply", _gap_not_noticed),
    Mutant("orphan never cancelled", CoordinatorLeases, "take_silent", _orphan),
    Mutant("two owners of one page", PagePool, "allocate", _two_owners),
    Mutant("pages evicted under a request", RadixNode, "is_evictable", _evicts_locked),
    Mutant("dead node's pages believed", PrefixIndex, "forget", _forgotten_node),
    Mutant("pages released while they are sent", PagesBeingSent, "leave", _released_while_sent),
    Mutant("state of ended sequences kept", Steps, "end_sequence", _state_remembered),
    Mutant("sample of a premature step taken", Sequence, "samples_next", _ahead_sample),
    Mutant("page findable before it is computed", Prompts, "commit", _hashes_too_far),
    Mutant("copy takes one token too many", PrefixCache, "closest", _copies_too_much),
    Mutant("tail ends behind what is computed", PrefixCache, "keep_tail", _tail_not_computed),
    Mutant("copy from another tenant", PrefixCache, "_key", _mixes_tenants),
    Mutant("copy made too late", Steps, "copy_pages", _late_copy),
    Mutant("work taken back by a pause stays booked", Tracker, "pause", _booked_through_a_pause),
    Mutant("answer forgotten by a pause", Tracker, "pause", _forgotten_by_a_pause),
    Mutant("cache spoils logprobs", Job, "num_reusable", _cache_spoils_logprobs),
    Mutant("logprob lost between chunks", Sequence, "_scored", _logprob_lost_between_chunks),
    Mutant("grammar begins anew after a resume", TrackedRequest, "sampling", _grammar_begins_anew),
    Mutant("chunk beside answers not cut", Scheduler, "_chunk_tokens", _chunk_not_cut),
    Mutant("oldest prompt left out", node.core.prompts, "chunk_sizes", _oldest_left_out),
    Mutant("chunk counts for half of its time", Rates, "observe", _half_of_a_chunk),
    Mutant("role is a wall", Scheduler, "handle", _role_is_a_wall),
    Mutant("state begins with the last chunk", Sequence, "next_slice", _replays_a_chunk),
)


def first_failure(mutant: Mutant, max_lives: int = MAX_LIVES) -> tuple[int, str] | None:
    """Returns the first seed whose life the planted bug breaks, and how; None: none does."""
    with mutant.planted():
        for seed in range(max_lives):
            if failure := failure_of(plan_of(seed)):
                # What the planted code itself does wrong shows nothing.
                assert not failure.startswith(("TypeError", "AttributeError", "NameError")), failure
                return seed, failure
    return None


def main() -> int:
    logging.disable(logging.CRITICAL)
    found: dict[str, int] = {}
    missed: list[str] = []
    for mutant in MUTANTS:
        result = first_failure(mutant)
        if result is None:
            missed.append(mutant.name)
            print(f"{mutant.name:40} NOT FOUND in {MAX_LIVES} lives")
            continue
        found[mutant.name] = result[0]
        print(f"{mutant.name:40} seed {result[0]:4}: {result[1][:110]}")
    live(plan_of(0))  # everything was taken back
    print(json.dumps({"mutants": len(MUTANTS), "found": found, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
