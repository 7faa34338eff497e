"""Every message between processes, as msgspec tagged structs. Pure.

Token ids travel as little-endian int32 bytes (`protocol.hashing.token_bytes`): a list of 4,096
ids costs four times as much to encode. Page hashes travel joined (`join_hashes`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protocol.counters import NodeCounters, RequestCounters
from protocol.ids import Attempt, Node, Role
from protocol.layout import KVLayout
from protocol.namespace import Namespace
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import Sampling, TokenLogprobs
from protocol.telemetry.metric import Histogram
from protocol.timelines.node_spans import NodeTimes
from protocol.timelines.request_reports import RequestFilter, RequestReport
from protocol.trust.bounds import (
    Address,
    Count,
    DataAddresses,
    Digest,
    Key,
    LeaseSeconds,
    Name,
    PositiveCount,
    Rate,
    Seconds,
    TokenId,
)
from protocol.trust.versions import Versions


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The base of all messages on the wire. The tag that tells them apart is the class name."""


class Generate(Message, frozen=True):
    """Coordinator → decode node: asks for the answer to a prompt.

    `tokens` are the prompt and whatever earlier attempts have answered. Without a `prefill_node`
    (then `prefill_address` is "") the decode node computes the prompt itself. Whoever computes it
    first fetches, of the leading `fetch_pages` pages, those that it lacks from `fetch_node`.
    """

    attempt: Attempt
    tokens: bytes
    namespace: Namespace
    sampling: Sampling
    max_new_tokens: Count
    end_token_ids: list[TokenId]
    """Ids of the tokens that end the answer: the model's, and those that the client named."""
    prefill_node: Node | None
    prefill_address: Address
    reply_address: Address
    fetch_node: Node | None = None
    fetch_address: Address = ""
    fetch_pages: Count = 0
    x_request_id: Key = ""
    """The X-Request-Id of the HTTP request, for the logs of nodes; "" without one."""
    resume_key: Key = ""
    """The secret by which another coordinator may take the answer over when this one is gone; ""
    if none may."""


class Prefill(Message, frozen=True):
    """Decode node → prefill node: asks to compute a prompt and to send its pages from number
    `skip_pages` on.

    The prefill node first fetches, of the leading `fetch_pages` pages, those that it lacks from
    `fetch_node`.
    """

    attempt: Attempt
    tokens: bytes
    namespace: Namespace
    sampling: Sampling
    skip_pages: Count
    reply_address: Address
    data_addresses: DataAddresses
    """Where the ranks of the decode node receive pages, in the order of ranks."""
    fetch_node: Node | None = None
    fetch_address: Address = ""
    fetch_pages: Count = 0
    answer_address: Address = ""
    """Where the first token may be sent besides, so that it need not wait for pages to arrive and
    for a step of the decode node; "" if the coordinator wants it from the decode node alone."""
    asker_times: NodeTimes | None = None
    """Where the time of the decode node went until now; it goes on with that first token."""
    x_request_id: Key = ""
    """The X-Request-Id of the HTTP request, for the log; "" without one."""


class Fetch(Message, frozen=True):
    """Any node → an owner, whatever its role: asks for the pages of a chain from number
    `skip_pages` on.

    `hashes` are joined and begin with the first page of the prompt. The reply is either the pages,
    as pages 0 … of the transfer `attempt`, or a `FetchRefused`. If the owner is lost, only some of
    the pages come, or none, and the asker must have a deadline.
    """

    attempt: Attempt
    hashes: bytes
    skip_pages: Count
    reply_address: Address
    data_addresses: DataAddresses


class FetchRefused(Message, frozen=True):
    """Owner (`node`) → asker: says that not all of the pages are here; the asker must compute
    them."""

    attempt: Attempt
    reason: str
    node: Node


class PrefillDone(Message, frozen=True):
    """Prefill node → decode node: says that all pages are on their way, and brings the first
    tokens.

    `cached_tokens` of the prompt were not computed; `fetched_tokens` of these were fetched.
    """

    attempt: Attempt
    first_tokens: list[TokenId]
    """One token, or several where the first one forces what follows."""
    cached_tokens: Count
    node: Node
    fetched_tokens: Count = 0
    first_logprobs: list[TokenLogprobs] = []
    """The logprobs of each of `first_tokens`; empty if none were asked for."""
    prompt_logprobs: PromptLogprobs | None = None
    """All that were asked for; None if none were."""
    times: NodeTimes | None = None
    """Where the time of the prefill node went."""


Finish = Literal["", "stop", "length"]


class TokenOut(msgspec.Struct, frozen=True, array_like=True):
    """The new tokens of one request. `finish` is "" while it goes on, else "stop" or "length"."""

    attempt: Attempt
    start: Count
    """How many tokens of this attempt were sent before. A gap shows that a message was lost."""
    tokens: list[TokenId]
    finish: Finish = ""
    cached_tokens: Count = 0
    transferred_pages: Count = 0
    fetched_tokens: Count = 0
    """How many of `cached_tokens` have pages that were fetched from another node."""
    logprobs: list[TokenLogprobs] = []
    """The logprobs of each of `tokens`; empty if none were asked for."""
    prompt_logprobs: PromptLogprobs | None = None
    """All that the attempt was asked for, with its first tokens; None otherwise."""
    times: NodeTimes | None = None
    """Where the time of this node went, with the first tokens of an attempt and with the first ones
    after the answer gave way; None otherwise."""
    prefill_times: NodeTimes | None = None
    """The same of the node that computed the prompt for this one, with the first tokens."""


class TokensOut(Message, frozen=True):
    """Decode node → coordinator: brings what one step produced, for all requests of the
    coordinator. The first token of a request may come from its prefill node too, and sooner."""

    outs: list[TokenOut]
    node: Node


FailureKind = Literal["node", "busy", "request"]
"""Who may still do it: for `node` another node; for `busy` (its queue is full) another node, or
this one later; for `request` nobody."""


class Failed(Message, frozen=True):
    """Node → whoever asked: says that an attempt has ended without an answer.

    `node` is the one to blame, which need not be the sender.
    """

    attempt: Attempt
    reason: str
    kind: FailureKind
    node: Node


class Cancel(Message, frozen=True):
    """Gives up an attempt and every older one of the same request. No reply is wanted."""

    attempt: Attempt


class FlushCache(Message, frozen=True):
    """Coordinator → node: asks to forget every cached page that no request holds.

    With a `cache_salt` only the pages of that tenant are meant; "" is the tenant without a salt.
    """

    reply_address: Address
    flush_id: Name
    cache_salt: str | None = None


class CacheFlushed(Message, frozen=True):
    """Node → coordinator: answers `FlushCache` with the number of pages that were forgotten."""

    node: Node
    flush_id: Name
    num_pages: Count


class AuditPages(Message, frozen=True):
    """Coordinator → node: asks which pages are cached, to compare them with the record in Redis."""

    reply_address: Address
    audit_id: Name


class AuditReply(Message, frozen=True):
    """Node → coordinator: answers `AuditPages` with all page hashes, joined, in no order."""

    node: Node
    audit_id: Name
    hashes: bytes


class Republish(Message, frozen=True):
    """Coordinator → node: asks to write the node's whole ownership record to Redis again."""


class AbortRequest(Message, frozen=True):
    """Coordinator → every other coordinator: asks to end the requests that their clients named
    `rid`, as soon as possible, with what they have answered so far; or all of them."""

    rid: str
    abort_all: bool = False


PauseMode = Literal["abort", "retract", "in_place"]
"""What becomes of running requests when generation is paused: `abort` ends them, the others go on
after the pause with the very same tokens."""


class SetPause(Message, frozen=True):
    """Coordinator → every other coordinator: says that generation is paused, or goes on (`mode` is
    None then).

    Redis has counted the state as `number`; an older one than that which is known changes nothing.
    """

    number: Count
    mode: PauseMode | None
    reply_address: Address
    question_id: Name


class PauseSeen(Message, frozen=True):
    """Coordinator (at `address`) → coordinator: answers `SetPause` once it is obeyed."""

    question_id: Name
    address: Address


class RefuseContent(Message, frozen=True):
    """Coordinator → every other coordinator: says that requests of this content end nodes, and are
    to be refused for some time."""

    digest: Digest


class AskCounts(Message, frozen=True):
    """Coordinator → every other coordinator: asks what it has counted."""

    reply_address: Address
    question_id: Name


class CountsReply(Message, frozen=True):
    """Coordinator (at `address`) → coordinator: answers `AskCounts`."""

    question_id: Name
    address: Address
    lifetime: RequestCounters
    """Sums over the requests that have ended since its start."""
    recent: RequestCounters
    """The same of the last five minutes."""
    num_running: Count
    num_waiting: Count


class AskRequests(Message, frozen=True):
    """Coordinator → every other coordinator: asks what it knows of its requests."""

    reply_address: Address
    question_id: Name
    wanted: RequestFilter


class RequestsReply(Message, frozen=True):
    """Coordinator (at `address`) → coordinator: answers `AskRequests`."""

    question_id: Name
    address: Address
    requests: list[RequestReport]


class NodeInfo(msgspec.Struct, frozen=True):
    """What a node tells of itself that does not change during an incarnation."""

    node: Node
    control_address: Address
    data_addresses: DataAddresses
    """Where the ranks of the node receive pages, in the order of ranks."""
    layout: KVLayout
    model_fingerprint: str
    num_pages: PositiveCount
    max_running_requests: PositiveCount
    max_queued_requests: Count
    device: str
    context_length: Count = 0
    """The most tokens, prompt and answer together, that a sequence may have here; 0 stands for the
    model's own limit."""
    health_address: Address = ""
    """Where GET /live and GET /ready are answered, even while the node's main loop is busy."""
    max_itl_s: Seconds = 0.0
    """How long a step may take that computes prompts beside answers; 0: as long as its chunk
    needs."""
    chunk_tokens: Count = 0
    """The most prompt tokens of a step. Between two steps a prompt with a shorter rest passes those
    with longer ones, as `chunk_sizes` says. 0: each prompt is computed whole, in the order of
    arrival."""
    versions: Versions = Versions()
    """What the node speaks."""


Condition = Literal["starting", "alive", "stuck", "stopped"]
"""starting: the main loop has not begun. stuck: its turn takes longer than the node allows.
stopped: the system does not let the process run, as after SIGSTOP."""


class Health(msgspec.Struct, frozen=True):
    """How a node does: the body of GET /live and GET /ready at its health port, as JSON."""

    node: str
    incarnation: int
    condition: Condition
    turn_s: Seconds
    """For how long the main loop has not come round."""
    is_draining: bool = False
    """The node was told to stop: it finishes what it does, and others still count on it."""

    @property
    def is_live(self) -> bool:
        """True unless nobody should count on this node any more."""
        return self.condition in ("starting", "alive")

    @property
    def is_ready(self) -> bool:
        """True once the node serves, and until it is told to stop."""
        return self.keeps_lease and not self.is_draining

    @property
    def keeps_lease(self) -> bool:
        """True while the node sends heartbeats, and its pages count as owned."""
        return self.condition == "alive"


MAX_LINKS = 64
"""The most links that a heartbeat tells of."""


class LinkLoad(msgspec.Struct, frozen=True, array_like=True):
    """What has gone to one peer, or come from it, as this end of the link counts it."""

    peer: Address
    """The peer's node name; its address as long as it was never reached."""
    direction: Literal["out", "in"]
    transport: str = ""
    """The backend that the bytes travelled over last: gloo, nccl, shm, …"""
    is_open: bool = False
    bytes_total: Count = 0
    pages_total: Count = 0
    busy_s_total: Seconds = 0.0
    """Seconds during which bytes were under way."""
    exposed_s_total: Seconds = 0.0
    """For "in": seconds that requests waited for pages while nothing was computed for them."""
    failures_total: Count = 0


StepKind = Literal["prompt", "decode"]
"""prompt: the step computes a chunk of a prompt, perhaps beside answers. decode: answers alone."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a node at one moment."""

    role: Role
    """What the node prefers to do; it may change during an incarnation."""
    num_running: Count = 0
    """Requests that have pages: their prompts are being computed or received, or answers go on."""
    num_waiting: Count = 0
    """Requests that wait for pages."""
    queued_tokens: Count = 0
    """Prompt tokens that the node has accepted and not computed yet."""
    free_pages: Count = 0
    cached_pages: Count = 0
    held_pages: Count = 0
    tail_pages: Count = 0
    """How many of the cached and held pages end prompts or answers and are not full: no other node
    knows of them, but prompts that begin alike are computed faster here."""
    promised_pages: Count = 0
    """How many of the free and cached pages are already spoken for: by answers that will grow, and
    by requests that wait to be admitted."""
    prefill_tokens_per_s: Rate = 0.0
    """The measured speed of computing prompts; 0 until one was computed."""
    step_s: Seconds = 0.0
    """The measured duration of a step without prompts; 0 until there was one."""
    link_bytes_per_s: Rate = 0.0
    """The bandwidth measured on long sends; 0 until there was one."""
    turn_s: Seconds = 0.0
    """For how long the node's main loop has not come round: a node that is busy with a long step,
    or held up, is alive all the same."""
    rss_bytes: Count = 0
    """The resident memory of the node's process."""
    step_times: dict[StepKind, Histogram] = {}
    """How long steps took since the start; the bounds are those of the node's metric."""
    links: tuple[LinkLoad, ...] = ()
    """At most MAX_LINKS of them: open ones first, then those that moved most."""
    counters: NodeCounters = msgspec.field(default_factory=NodeCounters)

    @property
    def room_pages(self) -> int:
        """The pages that are left for requests to come; negative if more is promised than there
        is."""
        return self.free_pages + self.cached_pages - self.promised_pages


class Heartbeat(Message, frozen=True):
    """Node → every coordinator, several times within a lease: says that the node lives, and its
    load."""

    info: NodeInfo
    load: Load
    lease_s: LeaseSeconds


class Goodbye(Message, frozen=True):
    """Node → every coordinator: says that the node stops now, so nobody needs to wait for the end
    of its lease."""

    node: Node
    is_planned: bool = False
    """True if the node was told to stop; else it died, or is stuck."""


COORDINATOR_LEASE_S = 3.0
"""For how long a node goes on working for a coordinator after the last sign of it."""


class CoordinatorAlive(Message, frozen=True):
    """Coordinator → every live node, several times within `lease_s`: says that it still waits for
    answers.

    A node that has not heard of a coordinator for the lease drops that coordinator's requests, so
    that no request outlives its coordinator for longer. A `Generate` counts as such a sign too.
    """

    address: Address
    """Where the coordinator receives messages; it is the `reply_address` of its requests."""
    lease_s: LeaseSeconds = COORDINATOR_LEASE_S


class CoordinatorGoodbye(Message, frozen=True):
    """Coordinator → every live node: says that it ends now, as if its lease had ended."""

    address: Address
    """Where it received messages."""


class TakeOver(Message, frozen=True):
    """Coordinator → every live node: asks for what was answered of a request whose coordinator has
    died."""

    resume_key: Key
    owner_tag: Digest
    """`coordinator_tag` of the address of the one that had the request."""
    reply_address: Address
    question_id: Name


class TakenOver(Message, frozen=True):
    """Node → coordinator: answers `TakeOver`.

    `tokens` are those that follow the prompt. A node that has given them takes the asker for the
    owner of the answer from then on.
    """

    node: Node
    question_id: Name
    owner_lives: bool
    """True if the owner has been heard within its lease; then there are no tokens."""
    tokens: bytes | None = None
    """All that was answered so far; None if this node knows nothing of the answer."""
    finish: Finish = ""
    """As in `TokenOut`."""
    cached_tokens: Count = 0


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
    | CoordinatorGoodbye
    | TakeOver
    | TakenOver
    | AbortRequest
    | SetPause
    | PauseSeen
    | RefuseContent
    | AskCounts
    | CountsReply
    | AskRequests
    | RequestsReply
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """Returns a message as msgpack, with its tag."""
    return _encoder.encode(message)


def decode(raw: bytes) -> AnyMessage:
    """Returns the message that `encode` made `raw` of. Raises msgspec.DecodeError, a ValueError, if
    `raw` is no message, or one of its values is out of bounds. What comes from another process is
    read by `protocol.trust.checks.read_message`, which looks at more."""
    try:
        return _decoder.decode(raw)
    except RecursionError as error:  # what nobody asked for is skipped, however deep it is nested
        raise msgspec.DecodeError("it is nested too deeply") from error
