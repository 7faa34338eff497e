"""Every message between processes, as msgspec tagged structs. Pure.

Token ids travel as little-endian int32 bytes (`protocol.hashing.token_bytes`): a list of 4,096
ids costs four times as much to encode. Page hashes travel joined (`join_hashes`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocol.counters import NodeCounters
from protocol.ids import Attempt, Node, Role
from protocol.layout import KVLayout
from protocol.namespace import Namespace
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import Sampling, TokenLogprobs


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all wire messages; the tag is the class name."""


class Generate(Message, frozen=True):
    """Coordinator → decode node: answer this prompt.

    `tokens` is the prompt plus whatever earlier attempts already answered. Without a
    `prefill_node` (then `prefill_address` is "") the decode node prefills for itself. Whoever
    prefills first fetches what it lacks of the leading `fetch_pages` pages from `fetch_node`.
    """

    attempt: Attempt
    tokens: bytes
    namespace: Namespace
    sampling: Sampling
    max_new_tokens: int
    end_token_ids: list[int]
    """Tokens that end the answer: the model's, and those that the client named."""
    prefill_node: Node | None
    prefill_address: str
    reply_address: str
    fetch_node: Node | None = None
    fetch_address: str = ""
    fetch_pages: int = 0


class Prefill(Message, frozen=True):
    """Decode node → prefill node: compute this prompt, send its pages from `skip_pages` on.

    First fetch what is lacking of the leading `fetch_pages` pages from `fetch_node`.
    """

    attempt: Attempt
    tokens: bytes
    namespace: Namespace
    sampling: Sampling
    skip_pages: int
    reply_address: str
    data_addresses: tuple[str, ...]
    """Where all ranks of the decode node receive pages, in order."""
    fetch_node: Node | None = None
    fetch_address: str = ""
    fetch_pages: int = 0


class Fetch(Message, frozen=True):
    """Any node → an owner of any role: send the pages of this chain from `skip_pages` on.

    `hashes` (joined) begin at the first page of the prompt. The pages come, as pages 0 … of the
    transfer `attempt`, or a `FetchRefused`, or (the owner is lost) only some of them or nothing.
    """

    attempt: Attempt
    hashes: bytes
    skip_pages: int
    reply_address: str
    data_addresses: tuple[str, ...]


class FetchRefused(Message, frozen=True):
    """Owner (`node`) → asker: these pages are not all here (any more); compute them."""

    attempt: Attempt
    reason: str
    node: Node


class PrefillDone(Message, frozen=True):
    """Prefill node → decode node: all pages are on their way; these are the first tokens.

    `cached_tokens` of the prompt were not computed; of these, `fetched_tokens` were fetched.
    """

    attempt: Attempt
    first_tokens: list[int]
    """One, or several where the first one forces what follows."""
    cached_tokens: int
    node: Node
    fetched_tokens: int = 0
    first_logprobs: list[TokenLogprobs] = []
    """One for each of `first_tokens`; empty if none were asked for."""
    prompt_logprobs: PromptLogprobs | None = None
    """All that were asked for; None if none were."""


class TokenOut(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one request. `finish` is "" while it runs, else "stop" or "length"."""

    attempt: Attempt
    start: int
    """Tokens of this attempt that went before: a gap shows that a message was lost."""
    tokens: list[int]
    finish: str = ""
    cached_tokens: int = 0
    transferred_pages: int = 0
    fetched_tokens: int = 0
    """How many of `cached_tokens` have pages that were fetched from another node."""
    logprobs: list[TokenLogprobs] = []
    """One for each of `tokens`; empty if none were asked for."""
    prompt_logprobs: PromptLogprobs | None = None
    """All that the attempt was asked for, with its first tokens; None otherwise."""


class TokensOut(Message, frozen=True):
    """Decode node → coordinator: what one step produced, for all requests of that coordinator."""

    outs: list[TokenOut]
    node: Node


FailureKind = Literal["node", "busy", "request"]
"""`node`: this node could not, another may. `busy`: its queue is full. `request`: no node can."""


class Failed(Message, frozen=True):
    """This attempt ended without an answer; `node` is to blame, which need not be the sender."""

    attempt: Attempt
    reason: str
    kind: FailureKind
    node: Node


class Cancel(Message, frozen=True):
    """Give up this attempt and every older one of the same request; no reply is wanted."""

    attempt: Attempt


class FlushCache(Message, frozen=True):
    """Coordinator → node: forget every cached page that no request holds.

    With a `cache_salt` only the pages of that tenant; "" is the tenant without a salt.
    """

    reply_address: str
    flush_id: str
    cache_salt: str | None = None


class CacheFlushed(Message, frozen=True):
    """Node → coordinator: the answer to `FlushCache`."""

    node: Node
    flush_id: str
    num_pages: int


class AuditPages(Message, frozen=True):
    """Coordinator → node: say which pages are cached, to compare with what Redis says."""

    reply_address: str
    audit_id: str


class AuditReply(Message, frozen=True):
    """Node → coordinator: the answer to `AuditPages`; all page hashes, joined, in no order."""

    node: Node
    audit_id: str
    hashes: bytes


class Republish(Message, frozen=True):
    """Coordinator → node: write your whole ownership record to Redis again."""


class NodeInfo(msgspec.Struct, frozen=True):
    """What does not change during one incarnation of a node."""

    node: Node
    control_address: str
    data_addresses: tuple[str, ...]
    """Where all ranks of the node receive pages, in order."""
    layout: KVLayout
    model_fingerprint: str
    num_pages: int
    max_running_requests: int
    max_queued_requests: int
    device: str
    context_length: int = 0
    """Tokens of the longest sequence that it serves; 0: the model's own limit."""


MAX_LINKS = 64
"""So many links of a node are told in a heartbeat."""


class LinkLoad(msgspec.Struct, frozen=True, array_like=True):
    """What went to or came from one peer, as this end of the link saw it."""

    peer: str
    """Its node name; its address until it was reached once."""
    direction: Literal["out", "in"]
    transport: str = ""
    """How bytes travelled last: gloo, nccl, shm, …"""
    is_open: bool = False
    bytes_total: int = 0
    pages_total: int = 0
    busy_s_total: float = 0.0
    """Time with bytes under way."""
    exposed_s_total: float = 0.0
    """For "in": time for which requests waited for pages while nothing was computed for them."""
    failures_total: int = 0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a node at one moment."""

    role: Role
    """What the node prefers to do; it may change during an incarnation."""
    num_running: int = 0
    """Requests that have pages: their prompts are computed or received, or they are answered."""
    num_waiting: int = 0
    """Requests that wait for pages."""
    queued_tokens: int = 0
    """Prompt tokens that are accepted and not yet computed."""
    free_pages: int = 0
    cached_pages: int = 0
    held_pages: int = 0
    promised_pages: int = 0
    """How many of the free and cached pages are spoken for: by answers that grow a little, and by
    requests that wait to be admitted."""
    prefill_tokens_per_s: float = 0.0
    """Measured; 0 until a prompt was computed."""
    step_s: float = 0.0
    """Measured duration of a step that generates; 0 until one ran."""
    link_bytes_per_s: float = 0.0
    """Measured on long sends; 0 until there was one."""
    rss_bytes: int = 0
    """Resident memory of the node's process."""
    links: tuple[LinkLoad, ...] = ()
    """At most MAX_LINKS: open ones first, then those that moved most."""
    counters: NodeCounters = msgspec.field(default_factory=NodeCounters)

    @property
    def room_pages(self) -> int:
        """Pages for requests to come; negative where more is promised than there is."""
        return self.free_pages + self.cached_pages - self.promised_pages


class Heartbeat(Message, frozen=True):
    """Node → every coordinator, several times within a lease."""

    info: NodeInfo
    load: Load
    lease_s: float


class Goodbye(Message, frozen=True):
    """Node → every coordinator: it stops now; nothing needs to wait for its lease to end."""

    node: Node


COORDINATOR_LEASE_S = 3.0
"""A node works for a coordinator so long after it has last heard of it."""


class CoordinatorAlive(Message, frozen=True):
    """Coordinator → every live node, several times within `lease_s`: it still waits for answers.

    A node that has not heard of a coordinator for the lease drops that coordinator's requests, so
    that no request outlives its coordinator for longer. A `Generate` counts as such a sign too.
    """

    address: str
    """Where the coordinator receives; the `reply_address` of its requests."""
    lease_s: float = COORDINATOR_LEASE_S


AnyMessage = (
    Generate
    | Prefill
    | Fetch
    | FetchRefused
    | PrefillDone
    | TokensOut
    | Failed
    | Cancel
    | FlushCache
    | CacheFlushed
    | AuditPages
    | AuditReply
    | Republish
    | Heartbeat
    | Goodbye
    | CoordinatorAlive
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(raw: bytes) -> AnyMessage:
    """Raises msgspec.DecodeError (a ValueError) on anything that is no message."""
    return _decoder.decode(raw)
