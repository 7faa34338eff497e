"""What a companion says of its node. Pure."""

from __future__ import annotations

import msgspec

from protocol.ids import Node
from protocol.messages import Condition, Health, Load, NodeInfo


class CompanionPlan(msgspec.Struct, frozen=True):
    """What a companion is told when it starts."""

    node: Node
    pid: int
    """The main process of the node."""
    board_file: int
    health_socket: int
    """Files that the companion inherits: the board, and the listening socket of its health port."""
    redis_url: str
    lease_s: float
    stall_s: float
    log_level: str
    log_format: str
    metric_names: tuple[str, ...] = ()
    """Whose names /metrics has beside kvrelay's own."""
    cluster_secret: tuple[str, ...] = ()
    cluster_secret_file: str = ""


class Told(msgspec.Struct, frozen=True):
    """What the main process tells its companion now and then, for the next heartbeats."""

    info: NodeInfo
    load: Load
    coordinators: tuple[str, ...]
    """Where heartbeats go."""
    is_draining: bool = False
    """The node was told to stop, and finishes what it does."""


def health_of(
    node: Node,
    came_round_at: float | None,
    is_stopped: bool,
    stall_s: float,
    now: float,
    is_draining: bool = False,
) -> Health:
    """Returns how a node does. `came_round_at` is when its main loop ended its last turn; None
    before the first one, as loading weights may take any time."""
    turn_s = 0.0 if came_round_at is None else max(0.0, now - came_round_at)
    condition: Condition = "alive"
    if is_stopped:
        condition = "stopped"
    elif came_round_at is None:
        condition = "starting"
    elif turn_s > stall_s:
        condition = "stuck"
    return Health(node.name, node.incarnation, condition, round(turn_s, 3), is_draining)
