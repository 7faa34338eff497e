"""`Registry`: which nodes live, by their heartbeats. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import Heartbeat, Load, NodeInfo
from protocol.trust.versions import refusal

log = logging.getLogger(__name__)


DEFAULT_PREFILL_TOKENS_PER_S = 5_000.0
"""Until any node has measured its own rate."""


class PresumedRates:
    """The rates that are presumed of nodes which have not measured their own: the means of what the
    others have measured.

    Nodes of a cluster are much alike, and a default may be off by a factor of ten: a node that has
    just come would seem far faster, or slower, than all others.
    """

    def __init__(self, nodes: Mapping[str, LiveNode]) -> None:
        self._nodes = nodes
        self._means: dict[str, float] = {}
        """Means that were asked for since the last heartbeat, by the name of the rate."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """How fast nodes compute prompts; a default if no node has measured it."""
        return self._mean("prefill_tokens_per_s") or DEFAULT_PREFILL_TOKENS_PER_S

    @property
    def step_s(self) -> float:
        """How long a step without prompts takes; 0 if no node has measured it."""
        return self._mean("step_s")

    @property
    def link_bytes_per_s(self) -> float:
        """The bandwidth between nodes; 0 if no node has measured it."""
        return self._mean("link_bytes_per_s")

    def forget(self) -> None:
        """Forgets the means: some node has told new rates, or has left."""
        self._means.clear()

    def _mean(self, name: str) -> float:
        if name not in self._means:
            rates = [getattr(live.load, name) for live in self._nodes.values()]
            measured = [rate for rate in rates if rate]
            self._means[name] = sum(measured) / len(measured) if measured else 0.0
        return self._means[name]


OTHER_WEIGHTS = "its weights, or how they are quantised and multiplied, are others"


@dataclass
class LiveNode:
    """A node whose lease has not ended, with the last that it told of itself."""

    info: NodeInfo
    load: Load
    lease_ends: float
    last_heartbeat: float
    presumed: PresumedRates
    """The rates that count where the node has not measured its own."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """How fast the node computes prompts: as measured, else as presumed."""
        return self.load.prefill_tokens_per_s or self.presumed.prefill_tokens_per_s

    @property
    def step_s(self) -> float:
        """How long one of its steps takes at least: as measured, else as presumed; 0 if nobody
        knows."""
        return self.load.step_s or self.presumed.step_s

    @property
    def node(self) -> Node:
        """The name and incarnation of the node."""
        return self.info.node


@dataclass(frozen=True)
class ClusterModel:
    """What all nodes of one cluster have in common, since pages of different models never meet."""

    fingerprint: str
    layout: KVLayout


@dataclass(frozen=True)
class RefusedNode:
    """A node that is kept out of the cluster."""

    node: Node
    why: str
    """A sentence with the remedy, without a full stop."""
    lease_ends: float


REPLACED_FOR_S = 60.0
"""An incarnation is not listened to for so long after a newer one of its name was heard. Not for
ever: incarnations are times, and the clock of a host on which the node starts again may be behind.
"""


class Registry:
    """Knows which nodes live. A node joins with its first heartbeat, and leaves with a goodbye,
    when a newer incarnation comes, or when its lease ends."""

    def __init__(self) -> None:
        self._nodes: dict[str, LiveNode] = {}
        self._by_role: dict[Role | None, list[LiveNode]] = {}  # sorted, until one joins or leaves
        self._presumed = PresumedRates(self._nodes)
        self.refused: dict[str, RefusedNode] = {}
        """The nodes that are kept out, by name, as long as they send heartbeats."""
        self._newest: dict[str, tuple[int, float]] = {}
        """The newest incarnation of each name, and when it was heard last."""
        self.on_told: Callable[[str], None] | None = None
        """Told the name of each node that lives and has told something of itself."""
        self.model: ClusterModel | None = None
        """The model served now: that of the node which came first; None without nodes."""

    def context_length(self, model_limit: int) -> int:
        """Returns the most tokens of a sequence that every live node serves. Nodes that name no
        number serve `model_limit`."""
        limits = [live.info.context_length for live in self._nodes.values()]
        return min([model_limit, *filter(None, limits)])

    def heartbeat(self, message: Heartbeat, now: float) -> NodeInfo | None:
        """Notes a heartbeat; returns the older incarnation that this one replaces, if any."""
        info = message.info
        known = self._nodes.get(info.node.name)
        # A process that was replaced may have been stopped, and go on; or its heartbeats be late.
        newest, _ = self._newest.get(info.node.name, (0, now))
        if info.node.incarnation < newest:
            return None
        self._newest[info.node.name] = info.node.incarnation, now
        replaced = known.info if known is not None and known.node != info.node else None
        if replaced is not None:
            self._drop(info.node.name)
        if self._refuses(message, now):
            return replaced
        if known is None or replaced is not None:
            log.info("%s node %s joins (%s)", message.load.role, info.node, info.control_address)
        lease_ends = now + message.lease_s
        live = self._nodes.get(info.node.name)
        if live is None:
            self._nodes[info.node.name] = LiveNode(
                info, message.load, lease_ends, now, self._presumed
            )
            self._by_role.clear()
            if self.model is None:
                self.model = ClusterModel(info.model_fingerprint, info.layout)
        else:
            if live.load.role != message.load.role:
                self._by_role.clear()
            live.info, live.load = info, message.load
            live.lease_ends, live.last_heartbeat = lease_ends, now
        self._presumed.forget()
        if self.on_told is not None:
            self.on_told(info.node.name)
        return replaced

    def remove(self, node: Node) -> NodeInfo | None:
        """Removes a node that said goodbye, and returns its info; None if this incarnation is not
        known."""
        known = self._nodes.get(node.name)
        if (refused := self.refused.get(node.name)) is not None and refused.node == node:
            del self.refused[node.name]
        if known is None or known.node != node:
            return None
        self._drop(node.name)
        log.info("%s node %s left", known.load.role, node)
        return known.info

    def expire(self, now: float) -> list[NodeInfo]:
        """Removes and returns the nodes whose lease has ended."""
        gone = [live for live in self._nodes.values() if live.lease_ends <= now]
        for live in gone:
            log.warning("%s node %s is lost: no heartbeat", live.load.role, live.node)
            self._drop(live.node.name)
        self.refused = {k: one for k, one in self.refused.items() if one.lease_ends > now}
        for name, (_, heard_at) in list(self._newest.items()):
            if heard_at <= now - REPLACED_FOR_S and name not in self._nodes:
                del self._newest[name]
        return [live.info for live in gone]

    def get(self, node: Node) -> LiveNode | None:
        """Returns the node; None if this incarnation of it is not known."""
        live = self._nodes.get(node.name)
        return live if live is not None and live.node == node else None

    def live(self, role: Role | None = None) -> list[LiveNode]:
        """Returns the live nodes in the order of their names, of one role or of both."""
        if role not in self._by_role:
            nodes = sorted(self._nodes.values(), key=lambda live: live.node.name)
            self._by_role[role] = [n for n in nodes if role is None or n.load.role == role]
        return self._by_role[role]

    @property
    def link_bytes_per_s(self) -> float:
        """The mean of the bandwidths that nodes have measured; 0 if none has."""
        return self._presumed.link_bytes_per_s

    def _drop(self, name: str) -> None:
        del self._nodes[name]
        if not self._nodes:
            self.model = None
        self._by_role.clear()
        self._presumed.forget()

    def _refuses(self, message: Heartbeat, now: float) -> bool:
        """Returns True, after one log line, for a node that must stay out of the cluster."""
        info = message.info
        name, before = info.node.name, self.refused.pop(info.node.name, None)
        why = refusal("it", info.versions) or self._difference_of(info)
        if not why:
            return False
        if before is None or (before.node, before.why) != (info.node, why):
            log.error("node %s is refused: %s", info.node, why)
        self.refused[name] = RefusedNode(info.node, why, now + message.lease_s)
        return True

    def _difference_of(self, info: NodeInfo) -> str:
        """Returns how the node's model or KV layout is another one than the cluster's; "" if it is
        not."""
        model = self.model
        if model is None or model == ClusterModel(info.model_fingerprint, info.layout):
            return ""
        difference = model.layout.differences(info.layout) or OTHER_WEIGHTS
        return f"it serves another model than the cluster: {difference}"
