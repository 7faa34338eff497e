"""A node takes any message that decodes: it answers, ignores or refuses it, and goes on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from decode.answers import Answers
from engine.batches.sequence import Sampled
from engine.cache.prefix_cache import PrefixCache
from node.core.core import NodeCore
from node.core.scheduler import SchedulerLimits
from prefill.handovers import Handovers
from protocol.hashing import token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import (
    AnyMessage,
    AuditPages,
    Cancel,
    CoordinatorAlive,
    Failed,
    Fetch,
    FetchRefused,
    FlushCache,
    Generate,
    Prefill,
    PrefillDone,
    encode,
)
from protocol.namespace import Namespace
from protocol.sampling import Sampling
from protocol.trust.checks import read_message
from tests.support.node.schedulers import PAGE, scheduler_of

VOCABULARY = 100
NUM_PAGES = 16
NODES = st.sampled_from([Node("d0", 1), Node("p0", 1), Node("p0", 2)])
ATTEMPTS = st.builds(Attempt, st.sampled_from(["a", "b"]), st.integers(0, 3))
ADDRESSES = st.sampled_from(["", "p:1", "d:1", "nonsense"])
TOKENS = st.lists(st.integers(0, VOCABULARY + 1), min_size=1, max_size=4 * PAGE)
TOKEN_BYTES = TOKENS.map(token_bytes) | st.binary(max_size=9)
SMALL = st.integers(0, 20) | st.just((1 << 63) - 1)
SALTS = st.builds(Namespace, st.sampled_from(["", "tenant"]))
SAMPLINGS = st.builds(
    Sampling,
    prompt_length=SMALL,
    min_new_tokens=SMALL,
    num_top_logprobs=st.integers(-1, 2),
    logprob_token_ids=st.lists(st.integers(0, VOCABULARY), max_size=2).map(tuple),
)
FETCHES = {"fetch_node": st.none() | NODES, "fetch_address": ADDRESSES, "fetch_pages": SMALL}
MESSAGES: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(
        Generate,
        attempt=ATTEMPTS,
        tokens=TOKEN_BYTES,
        namespace=SALTS,
        sampling=SAMPLINGS,
        max_new_tokens=SMALL,
        end_token_ids=st.lists(st.integers(0, VOCABULARY), max_size=2),
        prefill_node=st.none() | NODES,
        prefill_address=ADDRESSES,
        reply_address=ADDRESSES,
        **FETCHES,
    ),
    st.builds(
        Prefill,
        attempt=ATTEMPTS,
        tokens=TOKEN_BYTES,
        namespace=SALTS,
        sampling=SAMPLINGS,
        skip_pages=SMALL,
        reply_address=ADDRESSES,
        data_addresses=st.sampled_from([(), ("x",), ("d:1", "nonsense")]),
        **FETCHES,
    ),
    st.builds(Fetch, ATTEMPTS, st.binary(max_size=64), SMALL, ADDRESSES, st.just(("x",))),
    st.builds(FetchRefused, ATTEMPTS, st.text(max_size=3), NODES),
    st.builds(PrefillDone, ATTEMPTS, st.lists(SMALL, max_size=3), SMALL, NODES),
    st.builds(Failed, ATTEMPTS, st.text(max_size=3), st.sampled_from(["node", "busy"]), NODES),
    st.builds(Cancel, ATTEMPTS),
    st.builds(FlushCache, ADDRESSES, st.just("f"), st.none() | st.just("tenant")),
    st.builds(AuditPages, ADDRESSES, st.just("q")),
    st.builds(CoordinatorAlive, ADDRESSES, st.floats(allow_nan=True)),
)


def believed(message: AnyMessage) -> list[AnyMessage]:
    """What a channel gives to the core: nothing, if it refuses the message."""
    try:
        return [read_message(encode(message), now_ns=10)]
    except ValueError:
        return []


@given(st.binary(max_size=200) | st.tuples(MESSAGES.map(encode), st.binary()).map(b"".join))
def test_whatever_bytes_come_are_a_message_or_refused(raw: bytes) -> None:
    try:
        read_message(raw, now_ns=10)
    except ValueError:
        pass


@given(st.lists(MESSAGES, max_size=12))
def test_no_message_ends_a_node(messages: list[AnyMessage]) -> None:
    cache = PrefixCache(NUM_PAGES, PAGE)
    limits = SchedulerLimits(
        chunk_tokens=32, max_running=4, max_waiting=8, vocab_size=VOCABULARY, receive_timeout_s=5.0
    )
    node = Node("d0", 1)
    core = NodeCore(
        node, cache, scheduler_of("decode", node, "d", limits, cache, [Answers, Handovers])
    )
    now = 0.0
    for message in messages:
        for taken in believed(message):
            core.handle(taken, now)
        slices, _ = core.next_batch(now)
        assert all(max(part.token_ids) < VOCABULARY for part in slices)
        if slices:
            core.finish([Sampled((7,)) if part.sampling else None for part in slices], now)
        now += 0.5
    load = core.load()
    assert load.free_pages + load.cached_pages + load.held_pages == NUM_PAGES
