"""What a process believes of the messages that others send it."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from protocol.hashing import token_bytes
from protocol.ids import Node
from protocol.messages import (
    AnyMessage,
    AuditReply,
    CoordinatorAlive,
    Goodbye,
    Heartbeat,
    encode,
)
from protocol.sampling import Sampling
from protocol.trust.checks import MAX_AHEAD_NS, read_message
from tests.support.coordinator.nodes import LAYOUT
from tests.support.node.honest_messages import (
    BEAT,
    DONE,
    FETCH,
    GENERATE,
    GOOD,
    LOGPROBS,
    NODE,
    NOW_NS,
    PREFILL,
    TOKENS,
)


def but(message: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(message, **changes)


def of_load(**changes: Any) -> Heartbeat:
    return but(BEAT, load=but(BEAT.load, **changes))


def of_info(**changes: Any) -> Heartbeat:
    return but(BEAT, info=but(BEAT.info, **changes))


BAD: dict[str, AnyMessage] = {
    "three bytes of tokens": but(GENERATE, tokens=b"abc"),
    "no tokens": but(GENERATE, tokens=b""),
    "a negative token": but(GENERATE, tokens=token_bytes([1, -1])),
    "a negative end": but(GENERATE, end_token_ids=[-1]),
    "a negative length": but(GENERATE, max_new_tokens=-1),
    "an address without a node": but(GENERATE, prefill_address="p:1"),
    "a node without an address": but(GENERATE, prefill_node=NODE),
    "a client that sent more than the prompt": but(GENERATE, sampling=Sampling(prompt_length=3)),
    "a seed beyond 64 bits": but(GENERATE, sampling=Sampling(seed=1 << 63)),
    "a temperature that is no number": but(GENERATE, sampling=Sampling(temperature=math.nan)),
    "an infinite bias": but(GENERATE, sampling=Sampling(logit_bias=((1, math.inf),))),
    "three bytes for prefill": but(PREFILL, tokens=b"abc"),
    "pages before the first": but(PREFILL, skip_pages=-1),
    "pages for nobody": but(PREFILL, data_addresses=()),
    "pages for thousands": but(PREFILL, data_addresses=("d:1",) * 1000),
    "fifteen bytes of hashes": but(FETCH, hashes=b"h" * 15),
    "fetched pages for nobody": but(FETCH, data_addresses=()),
    "fifteen bytes of an audit": AuditReply(NODE, "a", b"h" * 15),
    "a lease that is no number": but(BEAT, lease_s=math.nan),
    "a lease for ever": but(BEAT, lease_s=math.inf),
    "a lease of no time": but(BEAT, lease_s=0.0),
    "a coordinator's lease that is no number": CoordinatorAlive("c:1", math.nan),
    "the last incarnation of all": of_info(node=Node("d0", (1 << 63) - 1)),
    "an incarnation of tomorrow": of_info(node=Node("d0", NOW_NS + 24 * MAX_AHEAD_NS)),
    "a goodbye of tomorrow": Goodbye(Node("d0", NOW_NS + 24 * MAX_AHEAD_NS)),
    "a node without a name": of_info(node=Node("", NOW_NS)),
    "pages without tokens": of_info(layout=but(LAYOUT, page_size=0)),
    "an unknown dtype": of_info(layout=but(LAYOUT, dtype="float7")),
    "no pages": of_info(num_pages=0),
    "no place for a request": of_info(max_running_requests=0),
    "a rate that is no number": of_load(prefill_tokens_per_s=math.nan),
    "an infinite step": of_load(step_s=math.inf),
    "fewer than no requests": of_load(num_running=-1),
    "an unknown role": of_load(role="thief"),
    "fewer logprobs than told": but(DONE, prompt_logprobs=but(LOGPROBS, num_positions=3)),
    "a first token that is none": but(DONE, first_tokens=[1 << 40]),
    "an unknown end": but(TOKENS, outs=[but(TOKENS.outs[0], finish="because")]),
    "tokens from the future": but(TOKENS, outs=[but(TOKENS.outs[0], start=-1)]),
    "tokens with too few logprobs": but(
        TOKENS, outs=[but(TOKENS.outs[0], prompt_logprobs=but(LOGPROBS, num_top=2))]
    ),
}


@pytest.mark.parametrize("message", GOOD, ids=lambda m: type(m).__name__)
def test_what_honest_processes_say_is_believed(message: AnyMessage) -> None:
    assert read_message(encode(message), NOW_NS) == message


@pytest.mark.parametrize("what", BAD)
def test_what_would_break_its_receiver_is_not(what: str) -> None:
    with pytest.raises(ValueError):
        read_message(encode(BAD[what]), NOW_NS)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 10,
        encode(GENERATE)[:-1],
        encode(GENERATE) + b"\x00",
        b"\x93" + encode(Goodbye(NODE))[1:] + b"\x91" * 100_000 + b"\xc0",
        b"\x93" + encode(TOKENS)[1:11] + b"\xdd\xff\xff\xff\xff",
    ],
    ids=["nothing", "garbage", "cut", "too long", "nested", "a list without end"],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        read_message(raw, NOW_NS)


def test_the_clocks_of_hosts_may_differ_a_little() -> None:
    ahead = of_info(node=Node("d0", NOW_NS + MAX_AHEAD_NS))
    assert read_message(encode(ahead), NOW_NS) == ahead
