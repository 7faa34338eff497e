"""The audit: does every node's tree, Redis and this coordinator's mirror say the same?

The three change all the time and are read one after the other, so what differs once may only be on
its way. A difference counts when the same page differs in the same way in a second pass. A tree is
prefix-closed by its structure, so a record that equals it is too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from coordinator.routing.registry import LiveNode
from coordinator.service import Service
from protocol.hashing import PAGE_HASH_BYTES, PageHash, split_hashes
from protocol.messages import AuditPages, Republish
from protocol.redis.client import REDIS_ERRORS

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0
SETTLING_S = 1.0
"""Between the passes; changes take milliseconds to be known everywhere."""
KINDS = ("missing_in_redis", "extra_in_redis", "missing_in_mirror", "extra_in_mirror")


@dataclass
class NodeAudit:
    """What an audit found out about one node.

    `differences` has the pages of each kind of difference. `problem` says why the node could not be
    compared; it is "" if it was.
    """

    num_tree_pages: int = 0
    differences: dict[str, set[PageHash]] = field(default_factory=dict)
    problem: str = ""
    repairs: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """True if the node was compared and nothing differs."""
        return not self.problem and not any(self.differences.values())

    def report(self) -> dict[str, Any]:
        """Returns the audit of this node as the admin API shows it: numbers of pages, no hashes."""
        counts = {kind: len(self.differences.get(kind, ())) for kind in KINDS}
        return {
            "clean": self.is_clean,
            "pages": self.num_tree_pages,
            **counts,
            "problem": self.problem,
            "repairs": self.repairs,
        }


async def audit(service: Service, repair: bool) -> dict[str, NodeAudit]:
    """Compares the pages of every live node with its record in Redis and with the mirror, and
    returns the results by node name.

    With `repair` a node whose record differs is asked to write it again, and a part of the mirror
    that differs is read again.
    """
    nodes = service.core.registry.live()
    audits = await _compare(service, nodes)
    suspects = [live for live in nodes if any(audits[live.node.name].differences.values())]
    if suspects:
        await asyncio.sleep(SETTLING_S)
        for name, second in (await _compare(service, suspects)).items():
            first = audits[name].differences
            if not second.problem:
                # Only what differs in both passes is an error: the rest was on its way.
                second.differences = {
                    kind: first[kind] & second.differences[kind] for kind in KINDS
                }
            audits[name] = second
    for live in nodes:
        result = audits[live.node.name]
        if not result.is_clean:
            log.error("audit of %s: %s", live.node, result.report())
        if repair and not result.problem:
            await _repair(service, live, result)
    return audits


async def _compare(service: Service, nodes: list[LiveNode]) -> dict[str, NodeAudit]:
    """Makes one pass over all nodes."""
    answers = await service.ask(
        nodes, lambda question_id, address: AuditPages(address, question_id), ANSWER_TIMEOUT_S
    )
    audits = {}
    for live in nodes:
        name = live.node.name
        blob = answers.get(name)
        if blob is None:
            audits[name] = NodeAudit(problem=f"no answer within {ANSWER_TIMEOUT_S:g} s")
            continue
        try:
            record = await service.follower.record.pages(live.node)
        except REDIS_ERRORS as error:
            problem = f"Redis is unreachable: {error}"
            audits[name] = NodeAudit(len(blob) // PAGE_HASH_BYTES, problem=problem)
            continue
        mirror = service.core.index.pages(live.node)
        # A million pages take most of a second; requests have their turn meanwhile.
        audits[name] = await asyncio.to_thread(compare, blob, record, mirror)
    return audits


def compare(tree_blob: bytes, record_blob: bytes, mirror_pages: Collection[PageHash]) -> NodeAudit:
    """Compares a node's tree with its record, both as joined hashes, and with the mirror's
    pages."""
    tree, record = set(split_hashes(tree_blob)), set(split_hashes(record_blob))
    mirror = set(mirror_pages)
    differences = {
        "missing_in_redis": tree - record,
        "extra_in_redis": record - tree,
        "missing_in_mirror": record - mirror,
        "extra_in_mirror": mirror - record,
    }
    return NodeAudit(len(tree), differences)


async def _repair(service: Service, live: LiveNode, result: NodeAudit) -> None:
    differences = result.differences
    if differences["missing_in_redis"] or differences["extra_in_redis"]:
        service.send(live, Republish())
        result.repairs.append("the node writes its record again")
    elif differences["missing_in_mirror"] or differences["extra_in_mirror"]:
        try:
            await service.follower.reload(live.node)
            result.repairs.append("the mirror was read again")
        except REDIS_ERRORS as error:
            result.problem = f"Redis is unreachable: {error}"
