"""The index against one set of pages per node."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coordinator.index import PrefixIndex
from protocol.hashing import PageHash
from protocol.ids import Node

paths = st.lists(st.sampled_from("ab"), max_size=5).map("".join)
nodes = st.sampled_from([Node(name, life) for name in ("p0", "p1", "d0") for life in (1, 2)])


def chain(path: str) -> list[PageHash]:
    return [path[: i + 1].encode().rjust(16) for i in range(len(path))]


class IndexMachine(RuleBasedStateMachine):
    """Nodes store whole chains and remove from the end of them, as real ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.shadow: dict[Node, set[PageHash]] = {}

    @rule(node=nodes, path=paths)
    def stored(self, node: Node, path: str) -> None:
        self.index.stored(node, chain(path))
        self.shadow.setdefault(node, set()).update(chain(path))

    @rule(node=nodes, path=paths.filter(bool))
    def removed(self, node: Node, path: str) -> None:
        """A page goes with everything below it."""
        top = path.encode()
        gone = [h for h in self.shadow.get(node, ()) if h.lstrip().startswith(top)]
        self.index.removed(node, gone)
        self.shadow.get(node, set()).difference_update(gone)

    @rule(node=nodes, kept=st.lists(paths, max_size=3))
    def reload(self, node: Node, kept: list[str]) -> None:
        pages = {page for path in kept for page in chain(path)}
        self.index.reload(node, pages)
        self.shadow[node] = pages

    @rule(node=nodes)
    def forget(self, node: Node) -> None:
        self.index.forget(node)
        self.shadow.pop(node, None)

    @rule(path=paths)
    def match(self, path: str) -> None:
        expected = {}
        for node, pages in self.shadow.items():
            depth = 0
            while depth < len(path) and chain(path)[depth] in pages:
                depth += 1
            if depth:
                expected[node] = depth
        assert self.index.match(chain(path)) == expected

    @invariant()
    def counts(self) -> None:
        owned = [page for pages in self.shadow.values() for page in pages]
        assert self.index.num_owned_pages == len(owned)
        assert self.index.num_unique_pages == len(set(owned))
        for node, pages in self.shadow.items():
            assert self.index.num_pages(node) == len(pages)


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
