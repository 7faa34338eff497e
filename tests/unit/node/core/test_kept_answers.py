"""What a node keeps of the answers of a coordinator that dies, and who gets it."""

from __future__ import annotations

import msgspec
import pytest

from engine.batches.sequence import Sampled
from engine.cache.prefix_cache import PrefixCache
from node.core.core import NodeCore
from node.core.instructions import Instruction, SendMessage
from node.core.kept_answers import KEEP_S, KeptAnswers
from protocol.hashing import token_bytes, tokens_from_bytes
from protocol.ids import coordinator_tag
from protocol.messages import (
    COORDINATOR_LEASE_S,
    CoordinatorAlive,
    CoordinatorGoodbye,
    Generate,
    TakenOver,
    TakeOver,
)
from protocol.sampling import Sampling
from tests.support.node.schedulers import COORDINATOR, D0, LAYOUT, decode_scheduler, generate

KEY = "a secret"
PROMPT = [3] * 20
OTHER = "other coordinator"


def core_with(max_new_tokens: int = 50, answered: tuple[int, ...] = ()) -> NodeCore:
    """A node that has a request whose answer may be taken over; `answered` by earlier attempts."""
    core = NodeCore(D0, cache := PrefixCache(64, LAYOUT.page_size), decode_scheduler(cache=cache))
    asked = generate("a", [*PROMPT, *answered], max_new_tokens, prefill="")
    core.handle(with_key(asked), 0.0)
    return core


def with_key(asked: Generate) -> Generate:
    sampling = Sampling(prompt_length=len(PROMPT))
    return msgspec.structs.replace(asked, resume_key=KEY, sampling=sampling)


def compute(core: NodeCore, tokens: list[int], now: float) -> None:
    """One token in each step; those of other answers are dropped."""
    for token in tokens:
        slices, _ = core.next_batch(now)
        core.finish([Sampled((token,))] * len(slices), now)


def ask(core: NodeCore, now: float, key: str = KEY, who: str = OTHER) -> TakenOver:
    core.handle(TakeOver(key, coordinator_tag(COORDINATOR), who, "q"), now)
    replies = _taken(core.next_batch(now)[1], who)
    assert len(replies) == 1
    return replies[0]


def _taken(instructions: list[Instruction], who: str) -> list[TakenOver]:
    sends = [i for i in instructions if isinstance(i, SendMessage)]
    return [s.message for s in sends if isinstance(s.message, TakenOver) and s.address == who]


def test_while_the_owner_lives_nobody_gets_anything() -> None:
    core = core_with()
    compute(core, [5, 6], 0.0)
    reply = ask(core, COORDINATOR_LEASE_S - 0.1)
    assert reply.owner_lives and reply.tokens is None
    assert core.load().held_pages > 0


def test_after_its_lease_pages_are_free_and_tokens_are_handed_over() -> None:
    core = core_with(answered=(7, 8))
    compute(core, [5, 6], 0.0)
    reply = ask(core, COORDINATOR_LEASE_S)
    assert not reply.owner_lives and reply.finish == ""
    assert tokens_from_bytes(reply.tokens or b"") == [7, 8, 5, 6], "from the prompt on"
    assert core.load().held_pages == core.load().num_running == 0


def test_coordinators_that_other_nodes_refuse_do_not_stand_in_each_others_way() -> None:
    """Nodes hear of a death at different moments: what one hands over is in vain while another one
    says that the owner lives. Two coordinators that clients come back to in turn would each own
    the answer at one node, and be refused at the other."""
    core = core_with()
    compute(core, [5, 6], 0.0)
    askers = (OTHER, "third", OTHER)
    replies = [ask(core, COORDINATOR_LEASE_S + 0.2 * i, who=who) for i, who in enumerate(askers)]
    assert replies == [replies[0]] * 3
    assert tokens_from_bytes(replies[0].tokens or b"") == [5, 6]


def test_a_wrong_key_gets_nothing() -> None:
    core = core_with()
    compute(core, [5, 6], 0.0)
    assert ask(core, COORDINATOR_LEASE_S, key="a guess").tokens is None


def test_an_answer_that_has_ended_is_kept_for_who_takes_it_over() -> None:
    core = core_with(max_new_tokens=2)
    compute(core, [5, 6], 0.0)
    assert ask(core, 0.0).owner_lives
    reply = ask(core, COORDINATOR_LEASE_S)
    assert tokens_from_bytes(reply.tokens or b"") == [5, 6] and reply.finish == "length"
    assert ask(core, KEEP_S).tokens is None, "but not for ever"


def test_a_goodbye_ends_the_lease_at_once() -> None:
    core = core_with()
    compute(core, [5], 0.0)
    core.handle(CoordinatorAlive(OTHER), 0.1)
    core.handle(CoordinatorGoodbye(COORDINATOR), 0.1)
    assert tokens_from_bytes(ask(core, 0.1).tokens or b"") == [5]


def test_a_request_without_a_key_leaves_nothing() -> None:
    core = NodeCore(D0, cache := PrefixCache(64, 16), decode_scheduler(cache=cache))
    core.handle(generate("a", PROMPT, 50, prefill=""), 0.0)
    compute(core, [5], 0.0)
    assert ask(core, COORDINATOR_LEASE_S, key="").tokens is None


@pytest.mark.parametrize("num_answers", [10, 1000])
def test_what_is_kept_is_bounded(num_answers: int) -> None:
    kept = KeptAnswers(max_bytes=4000)
    for number in range(num_answers):
        kept.keep(str(number), "c0", token_bytes(range(10)), "", 0, now=0.0)
    assert len(kept) == min(num_answers, 100)
    assert kept.get(str(num_answers - 1), 0.0) is not None
    kept.keep(str(num_answers - 1), "c0", b"", "", 0, now=1.0)
    assert kept.get(str(num_answers - 1), 1.0 + KEEP_S) is None and len(kept) == 0
