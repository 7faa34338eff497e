"""Live nodes for tests of the coordinator's pure parts."""

from __future__ import annotations

from coordinator.registry import Registry
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import Heartbeat, Load, NodeInfo

LAYOUT = KVLayout(num_layers=2, page_size=16, num_kv_heads=2, head_dim=16, dtype="float32")
LEASE_S = 3.0
RATE = 1000.0  # prompt tokens per second of every node


def info_of(role: Role, node: Node, **other: object) -> NodeInfo:
    values: dict[str, object] = {
        "control_address": f"tcp://{node.name}:1",
        "data_address": f"{node.name}:2",
        "layout": LAYOUT,
        "model_fingerprint": "model",
        "num_pages": 1000,
        "max_running_requests": 8,
        "max_queued_requests": 16,
        "device": "cpu",
    }
    return NodeInfo(node=node, role=role, **(values | other))  # type: ignore[arg-type]


def heartbeat(role: Role, node: Node, load: Load | None = None, **other: object) -> Heartbeat:
    load = load or load_of()
    return Heartbeat(info_of(role, node, **other), load, LEASE_S)


def load_of(queued_tokens: int = 0, num_running: int = 0, free_pages: int = 1000) -> Load:
    return Load(
        queued_tokens=queued_tokens,
        num_running=num_running,
        free_pages=free_pages,
        prefill_tokens_per_s=RATE,
        step_s=0.01,
        link_bytes_per_s=1e9,
    )


def registry_of(loads: dict[str, Load], now: float = 0.0) -> Registry:
    """Names that begin with p are prefill nodes, the others decode nodes."""
    registry = Registry()
    for name, load in loads.items():
        role: Role = "prefill" if name.startswith("p") else "decode"
        registry.heartbeat(heartbeat(role, Node(name, 1), load), now)
    return registry
