"""`SimCoordinator`: one incarnation of a coordinator, its real core in a played world."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from coordinator.answers.request import Request
from coordinator.config import CoordinatorConfig
from coordinator.core.core import CoordinatorCore
from coordinator.core.errors import TooBusy, Unavailable
from coordinator.core.instructions import (
    AnswerChanged,
    AnswerEnded,
    AnswerStarted,
    Instruction,
    Send,
    TellCoordinators,
)
from coordinator.core.pause import Pause
from coordinator.leaving.taking_over import AnsweredBefore, answered_before
from coordinator.ownership.mirror import MirrorCall, OwnershipMirror
from coordinator.routing.draining import draining_names
from protocol.hashing import tokens_from_bytes
from protocol.ids import Node, coordinator_tag
from protocol.messages import AbortRequest, AnyMessage, Generate, Heartbeat, TakenOver, TakeOver
from tests.sim.checks import Wrong
from tests.sim.clients import Asked
from tests.sim.world.oracle import logprobs_of, prompt_logprobs_of
from tests.sim.world.processes import Process
from tests.sim.world.redis_model import RedisDown
from tests.sim.world.turn_watch import TurnWatch, Waiting

if TYPE_CHECKING:
    from tests.sim.cluster import SimCluster

TICK_S = 0.1
IDLE_TICK_S = 0.5
BLOCK_S = 0.5
MARK_KNOWN_S = 1.5
"""By then every coordinator knows that a node was told to leave, if nothing is slow."""
TAKE_OVER_S = 2.0
"""How long nodes are waited for that do not say what they keep of an answer."""


class SimCoordinator(Process):
    """A coordinator that serves the clients of a life until it dies; then they see their connection
    break."""

    def __init__(self, cluster: SimCluster, name: str, incarnation: int) -> None:
        super().__init__(cluster.clock, name)
        self.cluster = cluster
        self.address = f"{name}.{incarnation}"
        settings = cluster.settings
        config = CoordinatorConfig(
            policy=settings.policy,
            request_timeout_s=settings.request_timeout_s,
            max_ttft=settings.max_ttft,
            max_wait_s=settings.max_wait_s,
        )
        dice = random.Random(cluster.chance.random())
        ids = itertools.count()
        self.core = CoordinatorCore(
            config,
            self.address,
            partial(random.Random.random, dice),
            lambda: f"{self.address}/{next(ids)}",
        )
        self.mirror = OwnershipMirror(self.address, self.core.index)
        self._questions: dict[str, tuple[Asked, set[str], list[TakenOver]]] = {}
        """By its id, whom a question to all nodes is for, who has not answered, and who has."""
        self._question_ids = itertools.count()
        self.turn_watch = TurnWatch(self.address)
        self.asked: dict[str, Asked] = {}
        """By the cluster's id of a request that has not ended."""
        self._newest: dict[str, int] = {}
        """The newest incarnation of each node that was heard."""
        self._is_calling = False
        self._pump_number = 0
        self._tick_number = 0
        cluster.network.listen(name, self.address, self._hear)
        self._pump()
        self._tick(0)
        self.set_pause(cluster.pause)

    @property
    def can_serve(self) -> bool:
        return self.core.is_ready

    def resume(self, asked: Asked) -> None:
        """Asks the nodes what was answered of a request of another coordinator."""
        question_id = f"{self.address} {next(self._question_ids)}"
        live = self.core.registry.live()
        self._questions[question_id] = asked, {node.node.name for node in live}, []
        tag = coordinator_tag(asked.owner)
        question = TakeOver(asked.resume_key, tag, self.address, question_id)
        self._carry_out([Send(node.info.control_address, question) for node in live])
        self.after(TAKE_OVER_S, self._take_over, question_id)

    def _taken_over(self, reply: TakenOver) -> None:
        if reply.question_id in self._questions:
            _, missing, replies = self._questions[reply.question_id]
            missing.discard(reply.node.name)
            replies.append(reply)
            if not missing:
                self._take_over(reply.question_id)

    def _take_over(self, question_id: str) -> None:
        asked, _, replies = self._questions.pop(question_id, (None, set(), []))
        if asked is None or asked.end:
            return
        before = answered_before(replies)
        if before is None or not self.can_serve:  # its coordinator lives, as far as a node knows
            self.cluster.come_back_later(asked)
        else:
            self.ask(asked, before)

    def ask(self, asked: Asked, before: AnsweredBefore | None = None) -> None:
        """Submits a request; one that is refused at once has ended."""
        request = Request(
            tokens=asked.tokens,
            sampling=asked.sampling,
            max_new_tokens=asked.max_new_tokens,
            end_token_ids=asked.end_token_ids,
            namespace=asked.namespace,
            rid=asked.name,
            resume_key="" if asked.sampling.wants_logprobs else self._key_of(asked),
            tenant=asked.tenant or asked.namespace.salt,
        )
        counts = self._counts(request.tenant)
        try:
            instructions = self.core.submit(request, self.clock.now, before)
        except (TooBusy, Unavailable) as refused:
            if self._counts(request.tenant) != counts:
                raise Wrong(f"{asked.name} was refused and left something behind") from None
            self.cluster.ended(asked, f"refused {type(refused).__name__}", [])
            return
        started = instructions[0]
        assert isinstance(started, AnswerStarted)
        self.asked[started.answer.request_id] = asked
        asked.coordinator = self.name
        longest_s = self.cluster.settings.max_ttft or self.cluster.settings.max_wait_s
        is_of_rush = bool(asked.tenant) and before is None
        waiting = Waiting(
            request.tenant, is_of_rush, longest_s, self.clock.now, self.core.pause.number
        )
        self.turn_watch.came(started.answer.request_id, waiting, self._credit_tokens)
        self._carry_out(instructions)
        self._plan_tick()

    @property
    def _credit_tokens(self) -> int:
        return self.core.turns.shares.credit_tokens

    def _counts(self, tenant: str) -> tuple[int, int, int]:
        """Returns how many requests there are, here and of a tenant, and how many wait."""
        of_tenant = self.core.turns.shares.num_unfinished(tenant)
        return self.core.num_unfinished, of_tenant, self.core.num_waiting

    def leave(self, asked: Asked) -> None:
        """Lets the client disconnect."""
        for request_id, other in list(self.asked.items()):
            if other is asked:
                del self.asked[request_id]
                self._ended(request_id, is_whole=False)
                self._carry_out(self.core.cancel(request_id, self.clock.now))
                self.cluster.ended(asked, "left", [])

    def abort(self, name: str) -> None:
        """Ends a request for its client, here or at another coordinator."""
        self._carry_out(self.core.abort(name, False, self.clock.now))
        for other in self.cluster.coordinators.values():
            if other is not self:
                self.cluster.network.send(self.name, other.address, AbortRequest(name))
        self._plan_tick()

    def set_pause(self, pause: Pause) -> None:
        """Lets it learn from Redis whether the cluster generates."""
        self._carry_out(self.core.set_pause(pause, self.clock.now))
        self._plan_tick()

    def kill(self) -> None:
        self.is_dead = True
        self.cluster.network.close(self.address)
        for asked in [*self.asked.values(), *(asked for asked, _, _ in self._questions.values())]:
            self.cluster.broke_off(asked)

    def answers_of(self, node: Node) -> list[str]:
        """Returns the requests that a node was sent to answer and that have not ended."""
        tracked = self.core._tracker._requests.values()
        return [one.answer.rid for one in tracked if one.route and one.route.decode == node]

    def _hear(self, message: AnyMessage) -> None:
        self.after(0.0, self._handle, message)

    def _check_work(self, send: Send) -> None:
        """Checks that no work is given to an incarnation when a newer one has been heard, nor
        during a pause, nor to a node that has been leaving for long."""
        if isinstance(send.message, Generate):
            name, _, incarnation = send.address.partition(".")
            if int(incarnation) < self._newest.get(name, 0):
                raise Wrong(f"{self.name} gives work to {send.address}, which was replaced")
            node = self.cluster.nodes[name]
            has_told_s = self.clock.now - node.told_to_leave_at
            if self.cluster.is_orderly and has_told_s > MARK_KNOWN_S:
                raise Wrong(f"{self.name} gives work to {node.node}, which leaves")
            if self.core.pause.is_paused:
                raise Wrong(f"{self.name} gives work to {send.address} during a pause")
            generate = send.message
            num_tokens = len(tokens_from_bytes(generate.tokens)) + 2 * generate.max_new_tokens
            self.turn_watch.began(
                generate.attempt.request_id,
                num_tokens,
                self._credit_tokens,
                self.clock.now,
                self.frozen_until,
                self.core.pause.number,
            )

    def _ended(self, request_id: str, is_whole: bool) -> None:
        pauses = self.core.pause.number
        self.turn_watch.ended(request_id, is_whole, self.clock.now, self.frozen_until, pauses)

    def _handle(self, message: AnyMessage) -> None:
        if isinstance(message, Heartbeat):
            node = message.info.node
            self._newest[node.name] = max(node.incarnation, self._newest.get(node.name, 0))
        elif isinstance(message, TakenOver):
            self._taken_over(message)
        self._carry_out(self.core.handle(message, self.clock.now))
        self._plan_tick()

    def _tick(self, number: int) -> None:
        if number != self._tick_number:
            return
        self._carry_out(self.core.tick(self.clock.now))
        self._plan_tick(is_tick=True)

    def _plan_tick(self, is_tick: bool = False) -> None:
        wake_at = self.core.wake_at(self.clock.now)
        if not is_tick and wake_at is None:
            return
        self._tick_number += 1
        wait_s = TICK_S if self.core.num_unfinished else IDLE_TICK_S
        if wake_at is not None:
            wait_s = min(wait_s, max(0.001, wake_at - self.clock.now))
        self.after(wait_s, self._tick, self._tick_number)

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Send):
                self._check_work(instruction)
                self.cluster.network.send(self.name, instruction.address, instruction.message)
            elif isinstance(instruction, TellCoordinators):
                for other in self.cluster.coordinators.values():
                    if other is not self:
                        self.cluster.network.send(self.name, other.address, instruction.message)
            elif isinstance(instruction, AnswerChanged | AnswerEnded):
                self._answered(instruction)

    def _answered(self, instruction: AnswerChanged | AnswerEnded) -> None:
        answer = instruction.answer
        asked = self.asked.get(answer.request_id)
        if asked is None:
            return
        if len(answer.output_ids) > len(asked.got):  # the first event that is shown has its token
            asked.resume_key, asked.owner = self._key_of(asked), self.address
        self.cluster.progressed(asked, answer.output_ids)
        right = prompt_logprobs_of(asked.tokens, asked.sampling)
        if answer.output_ids and answer.prompt_logprobs != right:
            raise Wrong(f"{asked.name} got {answer.prompt_logprobs}, the oracle says {right}")
        wanted = answer.output_ids if asked.sampling.wants_logprobs else []
        if answer.logprobs != list(map(logprobs_of, wanted)):
            raise Wrong(f"{asked.name} got the logprobs of other tokens: {answer.logprobs}")
        if isinstance(instruction, AnswerEnded):
            del self.asked[answer.request_id]
            assert answer.finish_reason is not None
            end = answer.finish_reason.kind
            self._ended(answer.request_id, is_whole=end == "length")
            if answer.error is not None:
                end = f"error {answer.error.kind} {answer.error.message}"
            self.cluster.ended(asked, end, answer.output_ids)

    def _key_of(self, asked: Asked) -> str:
        return f"{asked.name} at {self.address}"

    # The mirror

    def _pump(self, number: int | None = None) -> None:
        if self._is_calling or number not in (None, self._pump_number):
            return
        self._pump_number += 1
        call = self.mirror.next_call(self.clock.now)
        if call is None:
            wait_s = max(0.005, self.mirror.wake_at - self.clock.now)
            self.after(wait_s, self._pump, self._pump_number)
            return
        self._is_calling = True
        redis = self.cluster.redis
        try:
            result = redis.read(call)
        except RedisDown:
            self.after(0.2, self._call_failed)
            return
        if call.script == "read_changes" and not result:
            self._await_changes(call)
            return
        self.after(redis.delay_s, self._call_replied, call, result)

    def _await_changes(self, call: MirrorCall) -> None:
        """Lets Redis answer when there is a change, or when it has waited long enough."""
        has_answered = False

        def answer() -> None:
            nonlocal has_answered
            if has_answered:
                return
            has_answered = True
            try:
                self._call_replied(call, self.cluster.redis.read(call))
            except RedisDown:
                self._call_failed()

        self.cluster.redis.when_changed(lambda: self.after(self.cluster.redis.delay_s, answer))
        self.after(BLOCK_S, answer)

    def _call_replied(self, call: MirrorCall, result: Any) -> None:
        self._is_calling = False
        self.mirror.replied(call, result, self.clock.now)
        drained = draining_names(self.mirror.drain_marks, self.core.registry.live())
        self.core.set_draining(drained, self.clock.now)
        self._pump()

    def _call_failed(self) -> None:
        self._is_calling = False
        self.mirror.unreachable(self.clock.now)
        self._pump()
