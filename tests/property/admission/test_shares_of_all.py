"""Tenants share the cluster fairly, whatever they send."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.admission.fair_shares import FairShares

MOST_WORK = 50
works = st.lists(st.integers(1, MOST_WORK), min_size=1, max_size=40)
names = st.sampled_from("abc")


@given(st.dictionaries(names, works, min_size=2))
def test_two_that_wait_are_served_alike(queues: dict[str, list[int]]) -> None:
    shares = FairShares()
    for name, queue in queues.items():
        for work in queue:
            shares.joined(name, 0, work)
    left = {name: list(queue) for name, queue in queues.items()}
    served = dict.fromkeys(queues, 0)
    while all(left.values()):
        named = {name: [name] for name in left}
        (name,) = shares.in_turn(named, lambda name: left[name][0], 1)
        work = left[name].pop(0)
        shares.served(name, 0, work)
        served[name] += work
        assert max(served.values()) - min(served.values()) <= MOST_WORK


@given(st.dictionaries(names, works, min_size=2), names)
def test_the_work_before_a_request_is_what_is_served_before_it(
    queues: dict[str, list[int]], name: str
) -> None:
    shares = FairShares()
    for other, queue in queues.items():
        for work in queue:
            shares.joined(other, 0, work)
    told = shares.work_before(name, 0)
    shares.joined(name, 0, 1)
    all_of = {other: [(other, work) for work in queue] for other, queue in queues.items()}
    all_of.setdefault(name, []).append((name, 0))
    order = shares.in_turn(all_of, lambda item: item[1], 10_000)
    before = sum(work for _, work in order[: order.index((name, 0))])
    assert abs(before - told) <= MOST_WORK * len(all_of)


@given(
    st.lists(st.none() | st.tuples(names, st.integers(1, MOST_WORK)), min_size=20, max_size=120),
    st.sampled_from((0, MOST_WORK)),
)
def test_who_waits_is_served_as_much_as_others_but_for_two_requests_and_a_credit(
    events: list[tuple[str, int] | None], credit: int
) -> None:
    """An event is a tenant's request of so much work, or the turn of whoever is next."""
    shares = FairShares()
    shares.credit_tokens = credit
    queues: dict[str, list[int]] = {}
    served = dict.fromkeys("abc", 0)
    before: dict[str, dict[str, int]] = {}
    for event in events:
        if event is not None:
            name, work = event
            shares.joined(name, 0, work)
            queues.setdefault(name, []).append(work)
            before.setdefault(name, dict(served))
        elif queues:
            (turn,) = shares.in_turn({name: [name] for name in queues}, lambda _: 0, 1)
            served[turn] += queues[turn][0]
            shares.served(turn, 0, queues[turn].pop(0))
            if not queues[turn]:
                del queues[turn], before[turn]
        for waiting, then in before.items():
            more = max(served[other] - then[other] for other in served)
            assert more - (served[waiting] - then[waiting]) <= 2 * MOST_WORK + credit


class Tenants(RuleBasedStateMachine):
    """Whatever becomes of requests, nothing is left of them in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = FairShares()
        self.waiting: list[tuple[str, int, int]] = []
        self.served: list[str] = []
        self.now = 0.0

    @rule(name=names, priority=st.integers(-1, 1), work=st.integers(1, MOST_WORK))
    def join(self, name: str, priority: int, work: int) -> None:
        self.shares.joined(name, priority, work)
        self.waiting.append((name, priority, work))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), is_served=st.booleans())
    def leave(self, data: st.DataObject, is_served: bool) -> None:
        number = data.draw(st.integers(0, len(self.waiting) - 1))
        name, priority, work = self.waiting.pop(number)
        if is_served:
            self.shares.served(name, priority, work)
            self.served.append(name)
        else:
            self.shares.left(name, priority, work, self.now)

    @precondition(lambda self: self.served)
    @rule(difference=st.integers(-MOST_WORK, 10 * MOST_WORK), seconds=st.floats(0.0, 40.0))
    def settle(self, difference: int, seconds: float) -> None:
        self.now += seconds
        self.shares.settled(self.served.pop(), difference, self.now)

    @invariant()
    def those_with_requests_are_known(self) -> None:
        of_one = [name for name, _, _ in self.waiting] + self.served
        assert all(self.shares.num_unfinished(name) == of_one.count(name) for name in "abc")
        waiting = {name for name, _, _ in self.waiting}
        assert self.shares.num_waiting_tenants == len(waiting)

    @invariant()
    def what_waits_is_before_what_comes(self) -> None:
        for name in "abc":
            own = sum(work for of, _, work in self.waiting if of == name)
            everything = sum(work for _, _, work in self.waiting)
            assert own <= self.shares.work_before(name, -1) <= everything


TestTenants = Tenants.TestCase
