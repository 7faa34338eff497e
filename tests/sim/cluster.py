"""`SimCluster`: the processes of one life, the world between them, and what is done to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.core.pause import Pause
from protocol.hashing import PageHasher
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import COORDINATOR_LEASE_S, FlushCache, PauseMode
from tests.sim.acts import Abort, Act
from tests.sim.checks import Wrong
from tests.sim.clients import Asked
from tests.sim.coordinators import SimCoordinator
from tests.sim.faults import (
    Crash,
    Cut,
    Fault,
    Flush,
    Freeze,
    Leave,
    RedisGone,
    RedisSlow,
    Replace,
    Slow,
)
from tests.sim.nodes import FINGERPRINT, SimNode
from tests.sim.world.clock import VirtualClock
from tests.sim.world.data_plane import DataPlane
from tests.sim.world.network import Network
from tests.sim.world.redis_model import RedisModel
from tests.sim.world.shadow import Shadow


@dataclass(frozen=True)
class SimSettings:
    """How large the cluster of a life is, and how it is set up."""

    num_prefill: int
    num_decode: int
    num_coordinators: int
    page_size: int
    num_pages: int
    chunk_tokens: int
    max_running: int
    max_waiting: int
    policy: str
    request_timeout_s: float = 30.0
    max_itl_s: float = 0.0
    max_ttft: float = 0.0
    max_wait_s: float = 120.0
    drain_timeout_s: float = 25.0

    @property
    def layout(self) -> KVLayout:
        return KVLayout(self.page_size, 1, 1, 1, "float32")

    @property
    def nodes(self) -> list[tuple[str, Role]]:
        prefill: list[tuple[str, Role]] = [(f"p{i}", "prefill") for i in range(self.num_prefill)]
        decode: list[tuple[str, Role]] = [(f"d{i}", "decode") for i in range(self.num_decode)]
        return prefill + decode

    @property
    def coordinators(self) -> list[str]:
        return [f"c{i}" for i in range(self.num_coordinators)]


COMES_BACK_FOR_S = 12.0
"""How long a client tries to get its answer from another coordinator."""
ORPHANS_END_S = COORDINATOR_LEASE_S + 2.5
"""A lease after the last word of a coordinator, which may still have been on its way, and then the
longest turn of an idle node."""
Tell = Callable[[float, str], None]
"""Takes a time and a line of the timeline of a life."""


class SimCluster:
    """Starts its processes at once. `chance` decides all that the world of a real cluster does."""

    def __init__(self, settings: SimSettings, chance: random.Random, tell: Tell | None) -> None:
        self.settings = settings
        self.chance = chance
        self.clock = VirtualClock()
        self._tell = tell
        self.network = Network(self.clock, chance)
        self.plane = DataPlane(self.clock, chance, self.network)
        self.redis = RedisModel(self.clock)
        self.hasher = PageHasher(FINGERPRINT, settings.layout)
        self.shadow = Shadow(self.hasher)
        self._incarnation = 0
        self.pause = Pause()
        """What Redis says of it, however long it takes until coordinators hear."""
        self.num_pauses = 0
        self.is_orderly = False
        """Nothing goes wrong but that nodes are told to stop, and have time to finish."""
        self.num_left = 0
        """Nodes that ended because they were told to stop."""
        self.num_unfinished = 0
        """Requests of clients that have not ended, those to come included."""
        self.coordinators: dict[str, SimCoordinator] = {}
        self.nodes: dict[str, SimNode] = {}
        self.replaced_nodes: list[SimNode] = []
        """Older incarnations that were not killed; they are to stop by themselves."""
        for name in settings.coordinators:
            self._start(name)
        for name, _ in settings.nodes:
            self._start(name)

    def say(self, line: str) -> None:
        if self._tell is not None:
            self._tell(self.clock.now, line)

    # Clients

    def ask(self, asked: Asked) -> None:
        """Lets the client ask any coordinator that serves. If none does, the client is refused
        later."""
        serving = self._serving()
        if not serving:
            self.clock.after(0.25, self.ask, asked)
            return
        coordinator = self.chance.choice(serving)
        self.say(f"{asked.name} asks {coordinator.name}: {len(asked.tokens)} tokens")
        if asked.cancel_at is not None:
            self.clock.at(max(asked.cancel_at, self.clock.now), self._leave, asked)
        coordinator.ask(asked)

    def _serving(self) -> list[SimCoordinator]:
        alive = [c for c in self.coordinators.values() if not c.is_dead and not self._is_frozen(c)]
        return [c for c in alive if c.can_serve]

    def progressed(self, asked: Asked, tokens: Sequence[int]) -> None:
        num_known = min(len(tokens), len(asked.got))
        if list(tokens[:num_known]) != asked.got[:num_known]:
            raise Wrong(f"{asked.name} was told other tokens than before")
        if len(tokens) < len(asked.got):
            return  # computed again, by whoever has taken it over: the client skips it
        asked.got = list(tokens)
        if asked.got != asked.right_answer[: len(asked.got)]:
            raise Wrong(f"{asked.name} got {asked.got}, the oracle says {asked.right_answer}")

    def ended(self, asked: Asked, end: str, tokens: Sequence[int]) -> None:
        if asked.end:
            raise Wrong(f"{asked.name} ended twice: {asked.end}, then {end}")
        if end == "abort" and not asked.may_be_aborted:
            raise Wrong(f"{asked.name} was aborted, and nobody had asked for it")
        asked.end = end
        self.num_unfinished -= 1
        self.say(f"{asked.name} ended: {end}, {len(tokens)} tokens")
        if end in ("stop", "length"):
            if asked.got != asked.right_answer:
                raise Wrong(f"{asked.name} ended ({end}) with {asked.got} of {asked.right_answer}")
            if asked.next_turn is not None:
                self.clock.after(0.0, self.ask, asked.next_turn)
        elif asked.next_turn is not None:
            asked.next_turn.end = "never asked"
            self.num_unfinished -= 1

    def broke_off(self, asked: Asked) -> None:
        """Lets a client whose coordinator has died come back, to whichever one serves."""
        asked.broke_off_at = self.clock.now
        self.come_back_later(asked)

    def come_back(self, asked: Asked) -> None:
        """Lets a client ask for the rest of its answer, or for all if it has seen nothing."""
        if asked.end:
            return
        if asked.cancel_at is not None and self.clock.now >= asked.cancel_at:
            self.ended(asked, "left", [])
        elif self.clock.now > asked.broke_off_at + COMES_BACK_FOR_S:
            self.ended(asked, "its coordinator died", [])
        elif serving := self._serving():
            coordinator = self.chance.choice(serving)
            self.say(f"{asked.name} comes back to {coordinator.name}, from {asked.owner}")
            if asked.owner:
                coordinator.resume(asked)
            else:  # it has seen nothing
                coordinator.ask(asked)
        else:
            self.come_back_later(asked)

    def come_back_later(self, asked: Asked) -> None:
        self.clock.after(self.chance.uniform(0.01, 0.5), self.come_back, asked)

    def _leave(self, asked: Asked) -> None:
        coordinator = self.coordinators.get(asked.coordinator)
        if not asked.end and coordinator is not None:
            coordinator.after(0.0, coordinator.leave, asked)

    # Acts

    def act(self, act: Act, everybody: Sequence[Asked]) -> None:
        """Lets a client or an operator do something to requests; `everybody` are all of the
        life."""
        self.say(f"act: {act}")
        if isinstance(act, Abort):
            act.asked.may_be_aborted = True
            alive = [c for c in self.coordinators.values() if not c.is_dead]
            if alive:
                coordinator = self.chance.choice(alive)
                coordinator.after(0.0, coordinator.abort, act.asked.name)
            return
        if act.mode == "abort":
            for asked in everybody:
                asked.may_be_aborted = True
        self.num_pauses += 1
        self._set_pause(act.mode)
        self.clock.after(act.for_s, self._set_pause, None)

    def _set_pause(self, mode: PauseMode | None) -> None:
        self.pause = Pause(self.pause.number + 1, mode)
        for coordinator in self.coordinators.values():
            coordinator.after(self.chance.uniform(0.0, 0.5), coordinator.set_pause, self.pause)

    # Faults

    def apply(self, fault: Fault) -> None:
        self.say(f"fault: {fault}")
        if isinstance(fault, Crash):
            self._crash(fault)
        elif isinstance(fault, Leave):
            self._let_leave(fault)
        elif isinstance(fault, Replace):
            self._replace(fault)
        elif isinstance(fault, Freeze):
            process = self._process(fault.process)
            if process is not None:
                process.frozen_until = self.clock.now + fault.for_s
        elif isinstance(fault, Cut):
            self.network.cut(fault.one, fault.other, fault.for_s, fault.loses)
        elif isinstance(fault, Slow):
            self.network.slow(fault.one, fault.other, fault.for_s, fault.delay_s)
        elif isinstance(fault, RedisGone):
            self.redis.down_until = self.clock.now + fault.for_s
            if fault.comes_back_empty:
                self.redis.empty()
        elif isinstance(fault, RedisSlow):
            self.redis.slow_until, self.redis.slow_s = self.clock.now + fault.for_s, fault.delay_s
        elif isinstance(fault, Flush) and fault.process in self.nodes:
            address = self.nodes[fault.process].info.control_address
            self.network.send("operator", address, FlushCache("nobody", "flush"))

    def loses_changes(self, node: Node) -> bool:
        """Returns False. A planted bug overrides it, so that a node's news of its cache never
        leaves it."""
        return False

    def replaced(self, process: SimNode) -> None:
        """Stops a node of which a newer incarnation has registered."""
        if not process.is_dead:
            self.say(f"{process.node} was replaced, and stops")
            process.kill()

    def _crash(self, fault: Crash) -> None:
        process = self._process(fault.process)
        if process is None or process.is_dead:
            return
        process.kill()
        if isinstance(process, SimCoordinator):
            self.clock.after(ORPHANS_END_S, self._check_orphans, process.address)
        self.clock.after(fault.back_after_s, self._start, fault.process)

    def _let_leave(self, fault: Leave) -> None:
        node = self.nodes.get(fault.process)
        if node is not None and not node.is_dead and node.back_after_s is None:
            node.back_after_s, node.told_to_leave_at = fault.back_after_s, self.clock.now
            node.shell.leave()

    def leaves(self, node: SimNode) -> None:
        """Raises Wrong if a node that had the time to finish ends with something unfinished."""
        if not self.is_orderly:
            return
        if node.scheduler.load().num_running or node.cache.num_held_pages:
            raise Wrong(f"{node.node} leaves in the middle of something")
        for coordinator in self.coordinators.values():
            if unanswered := coordinator.answers_of(node.node):
                raise Wrong(f"{node.node} leaves {', '.join(unanswered)} unanswered")

    def left(self, node: SimNode) -> None:
        """Starts a node again that has ended by its own decision, unless a newer one runs."""
        self.say(f"{node.node} has left")
        self.num_left += 1
        if self.nodes[node.name] is node and node.back_after_s is not None:
            self.clock.after(node.back_after_s, self._start, node.name)

    def _replace(self, fault: Replace) -> None:
        old = self.nodes.get(fault.process)
        if old is None or old.is_dead:
            return  # it is down anyway, and comes back by itself
        old.frozen_until = self.clock.now + fault.for_s
        self.replaced_nodes.append(old)
        self._start(fault.process)

    def _start(self, name: str) -> None:
        self._incarnation += 1
        self.say(f"{name} starts")
        if name in self.settings.coordinators:
            self.coordinators[name] = SimCoordinator(self, name, self._incarnation)
            return
        role = dict(self.settings.nodes)[name]
        self.nodes[name] = SimNode(self, name, role, self._incarnation)

    def _check_orphans(self, address: str) -> None:
        """Raises Wrong if a node still works for a coordinator that died more than a lease ago,
        unless the node has just been frozen."""
        for node in self.nodes.values():
            has_slept = self.clock.now - node.frozen_until < 0.5
            if not node.is_dead and not has_slept and node.attempts_of(address):
                raise Wrong(f"{node.name} works for {address}, which died a lease ago")

    def _process(self, name: str) -> SimNode | SimCoordinator | None:
        return self.nodes.get(name) or self.coordinators.get(name)

    def _is_frozen(self, coordinator: SimCoordinator) -> bool:
        return coordinator.frozen_until > self.clock.now
