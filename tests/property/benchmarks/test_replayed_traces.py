"""The replay of any trace, and its cache beside one that looks at every leaf."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replaying.leaf_lru import LeafLru
from benchmarks.replaying.replay import REPLAYED, Replay, Settings
from kvrelay.bench.workloads.trace import bound
from protocol.hashing import PageHash
from tests.support.coordinator.traces import BASE_S, chain, request

paths = st.builds(
    lambda head, tail: head + tail, st.sampled_from(["s", "sss", "t"]), st.text("ab", max_size=5)
)
traces = st.lists(st.tuples(st.floats(0.0, 1.0), paths), min_size=1, max_size=25)


@given(
    rows=traces,
    policy=st.sampled_from(sorted(REPLAYED)),
    nodes=st.integers(1, 3),
    pages_per_node=st.sampled_from([0, 8, 12]),
    coordinators=st.integers(1, 3),
    event_lag_s=st.sampled_from([0.0, 0.3]),
)
def test_every_request_is_computed_once_and_nobody_beats_the_bound(
    rows: list[tuple[float, str]],
    policy: str,
    nodes: int,
    pages_per_node: int,
    coordinators: int,
    event_lag_s: float,
) -> None:
    trace = [request(at, path) for at, path in sorted(rows)]
    asked = Settings(nodes, pages_per_node, policy, event_lag_s, coordinators)
    outcome = Replay(trace, asked).run()
    assert len(outcome.first_token_s) == len(trace)
    assert outcome.num_blocks == sum(len(one.hashes) for one in trace)
    assert outcome.hit <= outcome.hit_fetched <= bound(trace)
    assert min(outcome.first_token_s) >= BASE_S
    assert sum(outcome.busy_s) >= len(trace) * BASE_S
    again = Replay(trace, asked).run()
    assert again.first_token_s == outcome.first_token_s, "the same settings replay the same"


class BruteLru:
    """Looks through all blocks for the least recently used one without a child."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.last_used: dict[PageHash, float] = {}

    def match(self, hashes: list[PageHash]) -> int:
        return next((i for i, h in enumerate(hashes) if h not in self.last_used), len(hashes))

    def use(self, hashes: list[PageHash], now: float) -> None:
        self.last_used.update(dict.fromkeys(hashes, now))

    def insert(self, hashes: list[PageHash], now: float) -> tuple[list[PageHash], list[PageHash]]:
        hashes = hashes[: self.capacity]
        num_present = self.match(hashes)
        new, evicted = hashes[num_present:], []
        while len(self.last_used) + len(new) > self.capacity:
            leaves = [h for h in self.last_used if self.is_leaf(h) and h not in hashes]
            evicted.append(min(leaves, key=lambda h: (self.last_used[h], h)))
            del self.last_used[evicted[-1]]
        self.use(hashes, now)
        return new, evicted

    def is_leaf(self, block: PageHash) -> bool:
        path = block.lstrip()
        return not any(
            len(other.lstrip()) == len(path) + 1 and other.lstrip().startswith(path)
            for other in self.last_used
        )


@given(
    capacity=st.integers(1, 12),
    steps=st.lists(st.tuples(st.booleans(), st.text("ab", max_size=6), st.integers(0, 1))),
)
def test_the_cache_evicts_as_if_it_looked_at_every_leaf(
    capacity: int, steps: list[tuple[bool, str, int]]
) -> None:
    cache, brute, now = LeafLru(capacity), BruteLru(capacity), 0
    for inserts, path, passed in steps:
        now += passed
        hashes = chain(path)
        assert cache.match(hashes) == brute.match(hashes)
        if inserts:
            assert cache.insert(hashes, now) == brute.insert(hashes, now)
        else:
            present = hashes[: brute.match(hashes)]
            cache.use(present, now)
            brute.use(present, now)
        assert cache.num_free == capacity - len(brute.last_used)
