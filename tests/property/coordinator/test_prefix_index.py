"""The index against one set of pages per node."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.hashing import PageHash
from protocol.ids import Node
from tests.support.coordinator.nodes import ReloadedIndex

MAX_PAGES = 40
paths = st.one_of(
    st.lists(st.sampled_from("ab"), max_size=5).map("".join),
    st.builds(
        lambda head, tail, length: (head + tail * MAX_PAGES)[:length],
        st.sampled_from(["", "a", "bb"]),
        st.sampled_from(["a", "ab", "b"]),
        st.integers(0, MAX_PAGES),
    ),
)
names = st.integers(0, 19).map("n{}".format)


def chain(path: str) -> list[PageHash]:
    return [path[: i + 1].encode().rjust(MAX_PAGES) for i in range(len(path))]


def leading(hashes: Sequence[PageHash], pages: set[PageHash]) -> int:
    """Returns the pages of the chain up to the first that is missing."""
    return next((i for i, page in enumerate(hashes) if page not in pages), len(hashes))


class IndexMachine(RuleBasedStateMachine):
    """Drives an index with nodes that store whole chains and remove from their ends, as real ones
    do. Some of what they tell comes twice. After something was lost, the whole set of that node is
    loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.index = ReloadedIndex()
        self.shadow: dict[Node, set[PageHash]] = {}
        self.told: dict[Node, list[tuple[bool, list[PageHash]]]] = {}
        self.lives: dict[str, int] = {}

    def node(self, name: str) -> Node:
        return Node(name, self.lives.setdefault(name, 1))

    def tell(self, node: Node, is_stored: bool, pages: list[PageHash]) -> None:
        (self.index.stored if is_stored else self.index.removed)(node, pages)

    def change(self, name: str, is_stored: bool, pages: list[PageHash], is_lost: bool) -> None:
        node = self.node(name)
        owned = self.shadow.setdefault(node, set())
        if is_stored:
            owned.update(pages)
        else:
            owned.difference_update(pages)
        if is_lost:  # the next change shows the gap
            self.index.reload(node, list(owned))
        else:
            self.tell(node, is_stored, pages)
        self.told[node] = [(is_stored, pages)]

    @rule(name=names, path=paths, is_lost=st.booleans())
    def stored(self, name: str, path: str, is_lost: bool) -> None:
        self.change(name, True, chain(path), is_lost)

    @rule(name=names, path=paths.filter(bool), is_lost=st.booleans())
    def removed(self, name: str, path: str, is_lost: bool) -> None:
        """Removes a page with everything below it."""
        top = path.encode()
        owned = self.shadow.get(self.node(name), set())
        self.change(name, False, [h for h in owned if h.lstrip().startswith(top)], is_lost)

    @rule(name=names)
    def last_change_comes_again(self, name: str) -> None:
        node = self.node(name)
        for is_stored, pages in self.told.get(node, []):
            self.tell(node, is_stored, pages + pages)

    @rule(name=names, kept=st.lists(paths, max_size=3))
    def reload(self, name: str, kept: list[str]) -> None:
        """Loads a node's whole set; pages that come twice in it must not count twice."""
        node = self.node(name)
        pages = [page for path in kept for page in chain(path)]
        self.index.reload(node, pages)
        self.shadow[node] = set(pages)
        self.told.pop(node, None)

    @rule(name=names)
    def forget(self, name: str) -> None:
        self.index.forget(self.node(name))
        self.shadow.pop(self.node(name), None)
        self.told.pop(self.node(name), None)

    @rule(name=names, path=paths, forgets_first=st.booleans())
    def restart(self, name: str, path: str, forgets_first: bool) -> None:
        """Starts a new incarnation, which stores pages before or after the end of the older one is
        noticed."""
        older = self.node(name)
        self.lives[name] += 1
        if forgets_first:
            self.index.forget(older)
        self.stored(name, path, is_lost=False)
        self.index.forget(older)
        self.shadow.pop(older, None)

    @rule(path=paths, beyond=st.integers(0, 3))
    def match(self, path: str, beyond: int) -> None:
        hashes = chain(path) + [bytes([i]) * MAX_PAGES for i in range(beyond)]
        depths = {node: leading(hashes, pages) for node, pages in self.shadow.items()}
        assert self.index.match(hashes) == {node: depth for node, depth in depths.items() if depth}

    @rule(path=paths.filter(bool))
    def owners(self, path: str) -> None:
        page = chain(path)[-1]
        owners = self.index.owners(page)
        assert len(owners) == len(set(owners))
        assert set(owners) == {node for node, pages in self.shadow.items() if page in pages}

    @invariant()
    def counts(self) -> None:
        owned = [page for pages in self.shadow.values() for page in pages]
        assert self.index.num_owned_pages == len(owned)
        assert self.index.num_unique_pages == len(set(owned))

    @invariant()
    def pages(self) -> None:
        for node, pages in self.shadow.items():
            found = self.index.pages(node)
            assert len(found) == self.index.num_pages(node) == len(pages)
            assert set(found) == pages

    def teardown(self) -> None:
        for node in self.shadow:
            self.index.forget(node)
        assert self.index.num_unique_pages == self.index.num_owned_pages == 0
        assert self.index.match(chain("ab")) == {} and not self.index._nodes


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(stateful_step_count=30)


@given(
    owned=st.dictionaries(
        st.integers(0, 7).map(lambda i: Node(f"n{i}", 1)),
        st.sets(st.integers(0, MAX_PAGES - 1)),
    ),
    num_asked=st.integers(0, MAX_PAGES),
)
def test_after_lost_events_a_depth_ends_with_a_page_that_is_owned(
    owned: dict[Node, set[int]], num_asked: int
) -> None:
    """Whatever is missing in between, nobody is found who does not own the first page, and the last
    page of every depth is there."""
    index, hashes = ReloadedIndex(), chain("a" * MAX_PAGES)
    for node, positions in owned.items():
        index.stored(node, [hashes[i] for i in positions])
    depths = index.match(hashes[:num_asked])
    for node, depth in depths.items():
        assert 0 in owned[node] and depth - 1 in owned[node]
        assert 1 <= depth <= num_asked
    for node, positions in owned.items():
        if 0 in positions and num_asked:
            assert node in depths


@given(
    depths=st.lists(st.integers(0, MAX_PAGES), min_size=1, max_size=300),
    num_asked=st.integers(0, MAX_PAGES),
)
def test_many_nodes(depths: list[int], num_asked: int) -> None:
    index, hashes = ReloadedIndex(), chain("a" * MAX_PAGES)
    nodes = [Node(f"n{i}", 1) for i in range(len(depths))]
    for node, depth in zip(nodes, depths, strict=True):
        index.stored(node, hashes[:depth])
    expected = {
        node: min(depth, num_asked)
        for node, depth in zip(nodes, depths, strict=True)
        if min(depth, num_asked)
    }
    assert index.match(hashes[:num_asked]) == expected
    for node in nodes[::2]:
        index.forget(node)
    left = {node: depth for node, depth in expected.items() if node in nodes[1::2]}
    assert index.match(hashes[:num_asked]) == left
