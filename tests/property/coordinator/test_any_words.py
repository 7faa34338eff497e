"""A coordinator takes any message that is believed, and goes on, whatever its numbers are."""

from __future__ import annotations

from contextlib import suppress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.answers.request import Request
from coordinator.core.errors import RequestRefused
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout
from protocol.messages import (
    AbortRequest,
    AnyMessage,
    AskCounts,
    Failed,
    Goodbye,
    Heartbeat,
    Load,
    SetPause,
    TokenOut,
    TokensOut,
    encode,
)
from protocol.sampling import Sampling
from protocol.trust.checks import read_message
from tests.support.coordinator.cores import core_of
from tests.support.coordinator.nodes import LAYOUT, info_of

NODES = st.builds(Node, st.sampled_from(["p0", "d0", "x"]), st.integers(0, 3))
ATTEMPTS = st.builds(Attempt, st.sampled_from(["1", "2"]), st.integers(0, 3))
# All of it is believed: what is not, is refused before a core sees it.
COUNTS = st.integers(0, 9) | st.just((1 << 63) - 1)
SIZES = st.integers(1, 64) | st.just(1 << 20)
SECONDS = st.sampled_from([0.0, 1e-300, 0.1, 1e9])
LAYOUTS = st.just(LAYOUT) | st.builds(KVLayout, SIZES, SIZES, SIZES, SIZES, st.just("float32"))


@st.composite
def heartbeats(draw: st.DrawFn) -> Heartbeat:
    load = Load(
        role=draw(st.sampled_from(["prefill", "decode"])),
        num_running=draw(COUNTS),
        num_waiting=draw(COUNTS),
        queued_tokens=draw(COUNTS),
        free_pages=draw(COUNTS),
        promised_pages=draw(COUNTS),
        prefill_tokens_per_s=draw(SECONDS),
        step_s=draw(SECONDS),
        link_bytes_per_s=draw(SECONDS),
    )
    info = msgspec.structs.replace(
        info_of(draw(NODES)),
        layout=draw(LAYOUTS),
        num_pages=draw(COUNTS.filter(bool)),
        max_running_requests=draw(COUNTS.filter(bool)),
        max_queued_requests=draw(COUNTS),
        context_length=draw(COUNTS),
        max_itl_s=draw(SECONDS),
    )
    return Heartbeat(info, load, draw(st.sampled_from([1e-300, 3.0, 1e6])))


TOKEN_OUTS = st.builds(
    TokenOut,
    ATTEMPTS,
    COUNTS,
    st.lists(st.integers(0, 2000), max_size=3),
    st.sampled_from(["", "stop", "length"]),
    COUNTS,
    COUNTS,
)
MESSAGES: st.SearchStrategy[AnyMessage] = st.one_of(
    heartbeats(),
    heartbeats(),
    st.builds(TokensOut, st.lists(TOKEN_OUTS, max_size=3), NODES),
    st.builds(
        Failed, ATTEMPTS, st.just("why"), st.sampled_from(["node", "busy", "request"]), NODES
    ),
    st.builds(Goodbye, NODES),
    st.builds(AbortRequest, st.sampled_from(["", "r"]), st.booleans()),
    st.builds(
        SetPause,
        COUNTS,
        st.none() | st.sampled_from(["abort", "retract"]),
        st.just("x"),
        st.just("q"),
    ),
    st.builds(AskCounts, st.just("x"), st.just("q")),
)


@given(st.lists(st.none() | MESSAGES, max_size=16))
def test_no_message_ends_a_coordinator(events: list[AnyMessage | None]) -> None:
    """None stands for a request of a client."""
    core, now = core_of("p0", "d0", policy="cost"), 0.0
    for event in events:
        if event is None:
            with suppress(RequestRefused):
                core.submit(Request(list(range(1, 80)), Sampling(), 8, end_token_ids=[0]), now)
        else:
            core.handle(read_message(encode(event), now_ns=10), now)
        now += 0.06
        core.tick(now)
        core.wake_at(now)
