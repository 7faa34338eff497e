"""Nodes with real shells, sockets and transports in one process; only the model is played."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from decode.answers import Answers
from engine.batches.sequence import Sampled, Slice
from engine.batches.step import OnLayer
from engine.cache.prefix_cache import PrefixCache
from kvtransfer.backends.pair import PairBackend
from kvtransfer.pair_transport import PairTransport
from kvtransfer.place import place_of
from node.core.core import NodeCore
from node.core.scheduler import Scheduler, SchedulerLimits
from node.core.work import WorkFactory
from node.shell.shell import NodeShell
from prefill.handovers import Handovers
from protocol.channel import Channel
from protocol.hashing import PageHasher, token_bytes
from protocol.ids import Addresses, Attempt, Node, Role
from protocol.messages import Generate, TokensOut
from protocol.namespace import SHARED
from protocol.sampling import Sampling
from tests.support.transfer.endpoints import LAYOUT, NUM_PAGES, new_backend, until

HASHER = PageHasher("model", LAYOUT)
PAGE = LAYOUT.page_size
DEADLINE_S = 20.0
FETCH_TIMEOUT_S = DEADLINE_S / 2
"""More than a fetch takes on a busy machine: one that is late would be computed."""
SHORT_FETCH_TIMEOUT_S = 1.0
"""For a fetch that ends by it."""
PROMPT = [token % 40 + 1 for token in range(64 * PAGE // 2)]
NUM_PROMPT_PAGES = len(PROMPT) // PAGE


def next_state(state: int, token: int) -> int:
    """Returns what the played model knows after one more token; float32 holds it exactly."""
    return (state * 31 + token) % 99_991


@dataclass(frozen=True)
class PlayedStep:
    """A step that is over as soon as it has started."""

    tokens: list[Sampled | None]
    has_compiled: bool = False

    def sampled(self) -> list[Sampled | None]:
        return self.tokens


class PlayedModel:
    """A model whose KV of a token is a state that depends on the KV of the token before it, in the
    pool: a page that was not fetched right makes everything behind it wrong."""

    runs_ahead = False
    num_compiles = 0

    def __init__(self, pool: Tensor) -> None:
        self._pool = pool
        self._everywhere = torch.arange(pool[:, 0, :, 0].numel()).view(pool[:, 0, :, 0].shape)
        self.num_computed = 0

    def start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None = None, after: object = None
    ) -> PlayedStep:
        states = [self._states(part) for part in slices]
        for layer in range(LAYOUT.num_layers):
            for part, states_of_part in zip(slices, states, strict=True):
                self._write(layer, part, states_of_part)
            if on_layer is not None:
                on_layer(layer + 1)
        return PlayedStep(
            [
                Sampled((states_of_part[-1] % 40 + 1,)) if part.sampling else None
                for part, states_of_part in zip(slices, states, strict=True)
            ]
        )

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        self._pool[:, destinations] = self._pool[:, sources]

    def end_sequence(self, sequence_id: int) -> None:
        """Does nothing: it keeps no state of sequences."""

    def _states(self, part: Slice) -> list[int]:
        self.num_computed += len(part.token_ids)
        state, states = 0, list[int]()
        if part.start:
            page, slot = part.pages[(part.start - 1) // PAGE], (part.start - 1) % PAGE
            state = int(self._pool[:, page, :, slot].flatten()[0])
        for token in part.token_ids:
            state = next_state(state, token)
            states.append(state)
        return states

    def _write(self, layer: int, part: Slice, states: list[int]) -> None:
        for position, state in enumerate(states, part.start):
            page, slot = part.pages[position // PAGE], position % PAGE
            self._pool[layer, page, :, slot] = (state + self._everywhere[layer]).float()


def answer_of(prompt: list[int], count: int) -> list[int]:
    state, answer = 0, list[int]()
    for token in prompt:
        state = next_state(state, token)
    while len(answer) < count:
        answer.append(state % 40 + 1)
        state = next_state(state, answer[-1])
    return answer


class NoRedis:
    """Stands in for the publisher and the heartbeats."""

    def publish(self, changes: object) -> None:
        pass

    def republish(self) -> None:
        pass

    def mark_draining(self, on_done: object) -> None:
        pass

    def tell_draining(self) -> None:
        pass

    def update(self, load: object) -> None:
        pass


class LiveNode:
    def __init__(self, role: Role, name: str, backend: PairBackend, fetch_timeout_s: float) -> None:
        self.node = Node(name, 1)
        self.pool = torch.zeros(
            LAYOUT.num_layers, NUM_PAGES, 2, PAGE, LAYOUT.num_kv_heads, LAYOUT.head_dim
        )
        self.cache = PrefixCache(NUM_PAGES, PAGE)
        self.model = PlayedModel(self.pool)
        self._channel = Channel("127.0.0.1")
        self._transport = PairTransport(
            self.pool,
            LAYOUT,
            self.node,
            "model",
            [backend],
            place_of(torch.device("cpu")),
            with_checksums=True,
        )
        self.address = self._channel.address
        addresses = Addresses(self.address, (self._transport.address,))
        limits = SchedulerLimits(
            chunk_tokens=32,
            max_running=4,
            max_waiting=8,
            receive_timeout_s=DEADLINE_S,
            fetch_timeout_s=fetch_timeout_s,
        )
        kinds: list[WorkFactory] = [Handovers if role == "prefill" else Answers]
        self.scheduler = Scheduler(role, self.node, addresses, self.cache, HASHER, limits, kinds)
        no_redis = NoRedis()
        self._shell = NodeShell(
            NodeCore(self.node, self.cache, self.scheduler),
            self._channel,
            self._transport,
            self.model,
            no_redis,
            no_redis,
            time.monotonic,
        )
        self._thread = threading.Thread(target=self._shell.run, daemon=True)
        self._thread.start()

    def content(self, tokens: list[int]) -> Tensor:
        """Returns the KV of all full pages of `tokens`, which must be cached."""
        hashes = HASHER.hashes(tokens)
        pages = self.cache.find(hashes)
        assert len(pages) == len(hashes)
        return self.pool[:, pages]

    def close(self) -> None:
        self._shell.stop()
        self._thread.join(DEADLINE_S)
        self._transport.close()
        self._channel.close()


class LiveCluster:
    """Two nodes, which it asks as a coordinator does."""

    def __init__(self, **nodes: LiveNode) -> None:
        self.nodes = nodes
        self._channel = Channel("127.0.0.1")
        self._num_asked = 0

    def ask(
        self,
        decode: LiveNode,
        prompt: list[int],
        prefill: LiveNode | None = None,
        fetch: tuple[Node, str] | None = None,
        fetch_pages: int = NUM_PROMPT_PAGES,
    ) -> tuple[list[int], int]:
        """Returns the tokens of the answer, and how many of the prompt were fetched."""
        self._num_asked += 1
        attempt = Attempt(f"r{self._num_asked}", 1)
        request = Generate(
            attempt=attempt,
            tokens=token_bytes(prompt),
            namespace=SHARED,
            sampling=Sampling(temperature=0.0),
            max_new_tokens=6,
            end_token_ids=[],
            prefill_node=prefill.node if prefill else None,
            prefill_address=prefill.address if prefill else "",
            reply_address=self._channel.address,
            fetch_node=fetch[0] if fetch else None,
            fetch_address=fetch[1] if fetch else "",
            fetch_pages=fetch_pages if fetch else 0,
        )
        self._channel.send(decode.address, request)
        tokens: list[int] = []
        while True:
            messages = self._channel.drain(DEADLINE_S)
            assert messages, "no answer in time"
            for message in messages:
                assert isinstance(message, TokensOut), message
                for out in message.outs:
                    # The first token comes from the prefill node too.
                    tokens[out.start : out.start + len(out.tokens)] = out.tokens
                    if out.finish:
                        return tokens, out.fetched_tokens

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        self._channel.close()


@contextmanager
def cluster(
    backend_name: str, fetch_timeout_s: float = FETCH_TIMEOUT_S, **roles: Role
) -> Iterator[LiveCluster]:
    backend = new_backend(backend_name)
    with ExitStack() as stack:
        nodes = {
            name: LiveNode(role, name, backend, fetch_timeout_s) for name, role in roles.items()
        }
        live = LiveCluster(**nodes)
        stack.callback(live.close)
        yield live


every_backend = pytest.mark.parametrize("backend_name", ["local", "shm", "tcp"])


@every_backend
def test_prefill_computes_behind_pages_of_the_decode_node_it_computes_for(
    backend_name: str,
) -> None:
    """Pages travel in both directions at once, under one attempt."""
    with cluster(backend_name, p0="prefill", d0="decode") as live:
        prefill, decode = live.nodes["p0"], live.nodes["d0"]
        assert live.ask(decode, PROMPT) == (answer_of(PROMPT, 6), 0)
        longer = PROMPT + [7] * 3 * PAGE
        owner = (decode.node, decode.address)
        tokens, fetched = live.ask(decode, longer, prefill, owner)
        assert (tokens, fetched) == (answer_of(longer, 6), len(PROMPT))
        assert prefill.model.num_computed == 3 * PAGE
        assert torch.equal(prefill.content(longer), decode.content(longer))
        schedulers = (prefill.scheduler, decode.scheduler)
        until(lambda: not any(s.load().held_pages for s in schedulers), "an end of all sends")


@every_backend
def test_decode_fetches_for_itself_from_another_decode_node(backend_name: str) -> None:
    with cluster(backend_name, d0="decode", d1="decode") as live:
        owner, asker = live.nodes["d0"], live.nodes["d1"]
        live.ask(owner, PROMPT)
        longer = PROMPT + [7] * PAGE
        tokens, fetched = live.ask(asker, longer, fetch=(owner.node, owner.address))
        assert (tokens, fetched) == (answer_of(longer, 6), len(PROMPT))
        assert torch.equal(asker.content(PROMPT), owner.content(PROMPT))
        again = live.ask(asker, longer, fetch=(owner.node, owner.address))
        assert again == (answer_of(longer, 6), 0), "it has them now"


@every_backend
@pytest.mark.parametrize("owner_is", ["without the pages", "gone"])
def test_a_fetch_that_fails_is_computed(backend_name: str, owner_is: str) -> None:
    timeout_s = SHORT_FETCH_TIMEOUT_S if owner_is == "gone" else FETCH_TIMEOUT_S
    with cluster(backend_name, timeout_s, p0="prefill", p1="prefill", d0="decode") as live:
        prefill, owner, decode = (live.nodes[name] for name in ("p0", "p1", "d0"))
        if owner_is == "gone":
            owner.close()
            del live.nodes["p1"]
        source = (owner.node, owner.address)
        assert live.ask(decode, PROMPT, prefill, source) == (answer_of(PROMPT, 6), 0)
        assert prefill.model.num_computed == len(PROMPT)
        assert prefill.scheduler.load().counters.transfer_failures == (owner_is == "gone")
