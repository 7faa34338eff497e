"""The audit against a service whose nodes, Redis and mirror say what a test wants; inquiries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator import audit as audit_module
from coordinator.audit import NodeAudit, audit
from coordinator.pending_replies import PendingReplies
from coordinator.routing.registry import LiveNode
from protocol.hashing import PageHash, join_hashes
from protocol.ids import Node
from protocol.messages import AuditPages, Message, Republish
from protocol.redis.client import REDIS_ERRORS
from tests.support.coordinator.nodes import ReloadedIndex, load_of, registry_of

P0 = Node("p0", 1)
A, B, C = (bytes([n]) * 16 for n in range(3))


class FakeService:
    """One node p0. `trees` and `records`: what a pass finds; the last one stays."""

    def __init__(
        self,
        trees: Sequence[set[PageHash]],
        records: Sequence[set[PageHash]],
        mirror: set[PageHash],
    ) -> None:
        self._trees, self._records = list(trees), list(records)
        self.index = ReloadedIndex()
        self.index.stored(P0, mirror)
        self.core = SimpleNamespace(registry=registry_of({"p0": load_of()}), index=self.index)
        self.follower = SimpleNamespace(record=self, reload=self.reload)
        self.sent: list[Message] = []
        self.redis_error: Exception | None = None
        self.answers = True

    async def ask(
        self, nodes: list[LiveNode], question: Callable[[str, str], Message], timeout_s: float
    ) -> dict[str, Any]:
        assert question("a1", "tcp://me:1") == AuditPages("tcp://me:1", "a1")
        tree = self._trees.pop(0) if len(self._trees) > 1 else self._trees[0]
        return {live.node.name: join_hashes([*tree]) for live in nodes} if self.answers else {}

    async def pages(self, node: Node) -> bytes:
        if self.redis_error is not None:
            raise self.redis_error
        record = self._records.pop(0) if len(self._records) > 1 else self._records[0]
        return join_hashes([*record])

    async def reload(self, node: Node) -> None:
        self.index.reload(node, self._records[0])

    def send(self, live: LiveNode, message: Message) -> None:
        self.sent.append(message)


def run(service: FakeService, monkeypatch: pytest.MonkeyPatch, repair: bool = True) -> NodeAudit:
    monkeypatch.setattr(audit_module, "SETTLING_S", 0.0)
    (result,) = asyncio.run(audit(service, repair)).values()  # type: ignore[arg-type]
    return result


def differences(result: NodeAudit) -> dict[str, set[PageHash]]:
    return {kind: pages for kind, pages in result.differences.items() if pages}


def test_what_is_equal_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(FakeService([{A, B}], [{A, B}], {A, B}), monkeypatch)
    assert result.is_clean and result.num_tree_pages == 2 and result.repairs == []


def test_a_mirror_that_differs_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService([{A, B}], [{A, B}], {A, C})
    result = run(service, monkeypatch)
    assert differences(result) == {"missing_in_mirror": {B}, "extra_in_mirror": {C}}
    assert result.repairs == ["the mirror was read again"] and not service.sent
    assert set(service.index.pages(P0)) == {A, B}
    assert run(service, monkeypatch).is_clean


def test_a_record_that_differs_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService([{A, B}], [{A, C}], {A, C})
    result = run(service, monkeypatch)
    assert differences(result) == {"missing_in_redis": {B}, "extra_in_redis": {C}}
    assert service.sent == [Republish()]


def test_without_repair_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService([{A}], [{B}], {C})
    result = run(service, monkeypatch, repair=False)
    assert not result.is_clean and result.repairs == [] and not service.sent
    assert service.index.pages(P0) == [C]


def test_what_is_on_its_way_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass differs, but in another page."""
    result = run(FakeService([{A}, {A, B}], [{A, C}, {A}], {A}), monkeypatch)
    assert result.is_clean


def test_a_node_that_cannot_be_compared_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService([{A}], [{B}], {A})
    service.redis_error = REDIS_ERRORS[0]("gone")
    result = run(service, monkeypatch)
    assert not result.is_clean and "Redis is unreachable" in result.problem
    assert result.num_tree_pages == 1 and not service.sent
    service.answers = False
    assert run(service, monkeypatch).problem == "no answer within 10 s"


def test_an_inquiry_ends_with_its_last_answer_or_its_time() -> None:
    async def test() -> None:
        inquiries = PendingReplies()
        whole, part, none = inquiries.open(["a", "b"]), inquiries.open(["a", "b"]), ""
        for inquiry in (whole, part, none):
            inquiries.answered(inquiry, "a", 1)
        inquiries.answered(whole, "b", 2)
        assert await inquiries.wait(whole, timeout_s=60.0) == {"a": 1, "b": 2}
        assert await inquiries.wait(part, timeout_s=0.0) == {"a": 1}
        inquiries.answered(part, "b", 3)  # too late
        assert await inquiries.wait(inquiries.open([]), timeout_s=60.0) == {}

    asyncio.run(test())
