"""Nodes of the benchmarks whose computing and fetching takes modelled time."""

from __future__ import annotations

from benchmarks.clusters.modelled_engine import ANSWER, TURN_S, ModelledRunner, Pace
from benchmarks.clusters.modelled_node import core_of
from benchmarks.clusters.modelled_transport import ModelledTransport
from engine.batches.sequence import Slice
from node.shell.shell import NodeShell
from protocol.hashing import join_hashes
from protocol.ids import Attempt, Node
from protocol.messages import Cancel, Fetch, Message, PrefillDone
from tests.support.coordinator.nodes import info_of
from tests.support.node.recorded_shell import Peers, turn
from tests.support.node.schedulers import GREEDY, HASHER, PAGE, asked_prefill

PACE = Pace(tokens_per_s=1.0, base_s=0.5)
A = Attempt("a", 1)


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Timed(Peers):
    """Notes when the node says what."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.done: list[tuple[float, str, int]] = []
        """When, which prompt, and how much of it was cached."""

    def send(self, address: str, message: Message) -> None:  # type: ignore[override]
        if isinstance(message, PrefillDone):
            assert message.first_tokens == [ANSWER]
            self.done.append((self._clock.now, message.attempt.request_id, message.cached_tokens))


def run(peers: Timed, clock: Clock, num_turns: int, num_pages: int = 100) -> NodeShell:
    transport = ModelledTransport(Pace(), PAGE)
    runner = ModelledRunner(PACE, clock, clock.sleep)
    core = core_of("prefill", info_of(Node("p0", 1), num_pages=num_pages))
    shell = NodeShell(core, peers, transport, runner, peers, peers, clock)
    for _ in range(num_turns):
        turn(shell)
    return shell


def test_prompts_take_the_time_of_what_is_not_cached_one_after_another() -> None:
    peers = Timed(clock := Clock())
    first, second = asked_prefill("a", 4 * PAGE), asked_prefill("b", 2 * PAGE)
    peers.inbox += [first, second]
    shell = run(peers, clock, num_turns=7)
    ends = [4 * PAGE + 0.5, 6 * PAGE + 1.0]
    assert peers.done == [(ends[0], "a", 0), (ends[1], "b", 0)]
    peers.inbox.append(asked_prefill("a", 5 * PAGE, number=2))
    for _ in range(2):
        turn(shell)
    assert peers.done[2] == (ends[1] + PAGE + 0.5, "a", 4 * PAGE), "all but the last page is cached"
    assert peers.loads[-1].held_pages == 0


def test_what_is_cancelled_takes_no_more_time_and_holds_nothing() -> None:
    peers = Timed(clock := Clock())
    peers.inbox += [asked_prefill("a", 5 * PAGE), asked_prefill("b", 2 * PAGE)]
    shell = run(peers, clock, num_turns=1)
    peers.inbox.append(Cancel(A))
    for _ in range(3):
        turn(shell)
    assert peers.done == [(3 * PAGE + 0.5, "b", 0)]
    assert peers.loads[-1].held_pages == 0


def test_a_step_that_is_started_late_is_not_slower_and_an_idle_device_waits_for_nobody() -> None:
    clock = Clock()
    runner = ModelledRunner(PACE, clock, clock.sleep)
    chunk = [Slice([1] * 10, 0, [0], None)]
    runner.start(chunk).sampled()
    clock.sleep(TURN_S / 2)
    assert runner.start(chunk).ends_at == 20.0
    clock.sleep(100.0)
    assert runner.start([Slice([1] * 10, 0, [0], GREEDY)]).ends_at == clock.now + 10.5


def test_every_expectation_and_every_stream_ends_once() -> None:
    transport, ends = ModelledTransport(Pace(), PAGE), list[str]()
    transport.expect(A, [1], lambda _: None, lambda error: ends.append(f"received {error}"))
    transport.arrived(A)
    transport.arrived(A)
    stream = transport.stream(("d0",), A, [1], 0, lambda error: ends.append(f"sent {error}"))
    transport.cancel(A)
    stream.finish()
    transport.stream(("d0",), A, [2], 1, lambda error: ends.append(f"sent {error}")).finish()
    transport.expect(A, [1], lambda _: None, lambda error: ends.append(f"received {error}"))
    transport.abort(A)
    transport.arrived(A)
    assert ends == ["received ", "sent cancelled", "sent "]


def test_fetched_pages_come_by_themselves() -> None:
    arrived: list[str] = []
    transport = ModelledTransport(Pace(), PAGE)
    transport.expect(A, [1, 2], lambda _: None, arrived.append)
    hashes = join_hashes(HASHER.hashes(range(2 * PAGE)))
    timer = transport.asked(Fetch(A, hashes, 0, "p0", ("p0",)))
    timer.join()
    assert arrived == [""]
