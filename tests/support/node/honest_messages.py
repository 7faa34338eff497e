"""Messages as honest processes send them."""

from __future__ import annotations

from protocol.hashing import token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import (
    AuditReply,
    CoordinatorAlive,
    Fetch,
    Generate,
    Goodbye,
    Heartbeat,
    Load,
    Prefill,
    PrefillDone,
    TokenOut,
    TokensOut,
)
from protocol.namespace import SHARED
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import Sampling
from tests.support.coordinator.nodes import info_of

NOW_NS = 1_900_000_000 * 10**9
NODE, ATTEMPT = Node("d0", NOW_NS), Attempt("r", 1)
GENERATE = Generate(ATTEMPT, token_bytes([1, 2]), SHARED, Sampling(), 4, [0], None, "", "c:1")
PREFILL = Prefill(ATTEMPT, token_bytes([1, 2]), SHARED, Sampling(), 0, "d:1", ("d:2",))
FETCH = Fetch(ATTEMPT, b"h" * 32, 0, "d:1", ("d:2",))
BEAT = Heartbeat(info_of(Node("d0", NOW_NS)), Load(role="decode"), 3.0)
LOGPROBS = PromptLogprobs(1, 2, 1, 0, b"l" * 16, b"i" * 8)
DONE = PrefillDone(ATTEMPT, [5], 0, NODE, prompt_logprobs=LOGPROBS)
TOKENS = TokensOut([TokenOut(ATTEMPT, 0, [5])], NODE)
GOOD = [
    GENERATE,
    PREFILL,
    FETCH,
    BEAT,
    DONE,
    TOKENS,
    AuditReply(NODE, "a", b"h" * 48),
    Goodbye(NODE),
    CoordinatorAlive("c:1"),
]
