"""The coordinator's shell against a decode node that is only a channel."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator

import msgspec
import pytest

from coordinator import service as service_module
from coordinator.answers.request import Request
from coordinator.mailbox import Mailbox
from coordinator.ownership.follower import OwnershipFollower
from coordinator.routing.route import Route
from coordinator.routing.routed_request import RoutedRequest
from coordinator.service import Service
from protocol.channel import Channel
from protocol.ids import Attempt, Node
from protocol.messages import (
    AnyMessage,
    Cancel,
    CoordinatorAlive,
    Generate,
    Goodbye,
    TokenOut,
    TokensOut,
)
from protocol.sampling import Sampling
from tests.support.coordinator.nodes import LAYOUT, heartbeat, load_of
from tests.support.coordinator.services import D0, DEADLINE_S, received, run, running_service
from tests.support.processes.collectors import collector


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def submit(service: Service, rid: str = "") -> Mailbox:
    return service.submit(Request([7], Sampling(), max_new_tokens=8, rid=rid))


async def next_message(decode: Channel) -> AnyMessage:
    (message,) = await received(decode)
    return message


def test_the_shortest_context_of_all_nodes_is_the_limit(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            before = service.max_total_tokens
            p0 = Node("p0", 1)
            service.handle(heartbeat("prefill", p0, context_length=8))
            assert service.max_total_tokens == 8 < before
            service.handle(Goodbye(p0))
            assert service.max_total_tokens == before

    run(test)


def test_a_first_look_ends_with_the_first_node_or_with_its_time(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            service.handle(Goodbye(D0))
            await service.until_ready(0.0)
            assert not service.core.is_ready
            look = asyncio.create_task(service.until_ready(10 * DEADLINE_S))
            await asyncio.sleep(0)
            assert not look.done()
            service.handle(heartbeat("decode", Node("d1", 1)))
            await asyncio.wait_for(look, DEADLINE_S)
            assert service.core.is_ready

    run(test)


def test_nodes_hear_that_the_coordinator_is_alive(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            messages = await asyncio.to_thread(decode.drain, DEADLINE_S)
            (alive,) = messages
            assert isinstance(alive, CoordinatorAlive)
            submit(service)
            generate = await next_message(decode)
            assert isinstance(generate, Generate) and generate.reply_address == alive.address

    run(test)


def test_work_that_nobody_waits_for_is_cancelled(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            stray = Attempt("unknown", 3)
            service.handle(TokensOut([TokenOut(stray, 0, [5])], D0))
            assert await next_message(decode) == Cancel(stray)

    run(test)


def test_a_request_that_takes_too_long_is_ended_and_cancelled(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode, request_timeout_s=0.2) as service:
            mailbox = submit(service)
            generate = await next_message(decode)
            assert isinstance(generate, Generate)
            await mailbox.finished(DEADLINE_S)
            error = mailbox.answer.error
            assert error is not None and error.kind == "timed_out"
            assert await next_message(decode) == Cancel(generate.attempt)
            assert service.core.num_unfinished == 0
            assert service.core.statistics.totals.lifetime.failed_requests == 1

    run(test)


def test_a_request_outlives_the_last_node_for_a_while(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            submit(service)
            await next_message(decode)
            service.handle(Goodbye(D0))
            assert service.core.num_unfinished == 1

    run(test)


def test_a_coordinator_without_its_tasks_ends(
    decode: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: OwnershipFollower) -> None:
        raise RuntimeError("a bug")

    raised: list[int] = []
    monkeypatch.setattr(service_module.signal, "raise_signal", raised.append)
    monkeypatch.setattr(OwnershipFollower, "run", broken)

    async def test() -> None:
        async with running_service(decode) as service:
            await asyncio.wait({service._tasks[0]}, timeout=DEADLINE_S)
            await asyncio.sleep(0)  # its callbacks are called by the loop, after it

    run(test)
    assert raised == [signal.SIGTERM]


def test_one_timer_waits_for_the_next_dispatch(
    decode: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many messages come while requests wait."""

    async def test() -> None:
        async with running_service(decode) as service:
            loop = asyncio.get_running_loop()
            timers: list[asyncio.TimerHandle] = []
            call_later = loop.call_later

            def recorded(delay: float, callback: Callable[..., object]) -> asyncio.TimerHandle:
                timers.append(call_later(delay, callback))
                return timers[-1]

            busy = load_of(queued_tokens=50_000)
            many = {"max_queued_requests": 100, "control_address": decode.address}
            service.handle(heartbeat("decode", D0, busy, **many))
            monkeypatch.setattr(loop, "call_later", recorded)
            submit(service)
            for i in range(50):
                submit(service, f"another {i}")
            assert service.core.num_waiting > 1
            assert len([timer for timer in timers if not timer.cancelled()]) == 1

    run(test)


def test_a_restarted_node_with_another_layout_gets_work_of_that_layout(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            busy = load_of(queued_tokens=50_000)
            service.handle(heartbeat("decode", D0, busy, control_address=decode.address))
            submit(service)
            placed: list[int] = []
            placement = service.core.placement
            book = placement.book

            def booked(routed: RoutedRequest, route: Route, now: float) -> None:
                placed.append(routed.demand.num_pages)
                book(routed, route, now)

            placement.book = booked  # type: ignore[method-assign]
            later = service.now() + 1.0
            service.now = lambda: later  # type: ignore[method-assign]
            single = msgspec.structs.replace(LAYOUT, page_size=1)
            again = heartbeat(
                "decode", Node("d0", 2), layout=single, control_address=decode.address
            )
            service.handle(again)
            service.tick()
            assert placed == [single.num_pages(1 + 8 - 1)]

    run(test)


def test_an_answer_of_one_token_counts_among_the_hottest(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            service.submit(Request(list(range(1, 40)), Sampling(), max_new_tokens=1))
            generate = await next_message(decode)
            assert isinstance(generate, Generate)
            out = TokenOut(generate.attempt, 0, [5], "length", cached_tokens=32)
            service.handle(TokensOut([out], D0))
            (hottest,) = service.core.statistics.hot_prefixes.hottest(5)
            assert hottest.num_tokens == 32

    run(test)


def test_traces_of_ended_requests_are_sent_to_the_collector(decode: Channel) -> None:
    async def test() -> None:
        with collector() as (url, bodies):
            async with running_service(decode, otlp_endpoint=url) as service:
                submit(service)
                generate = await next_message(decode)
                assert isinstance(generate, Generate)
                out = TokenOut(generate.attempt, 0, [5], "length")
                service.handle(TokensOut([out], D0))
            # The service has closed, and has sent what was queued.
            (body,) = bodies
            assert b"generate_content tiny" in body and b"kvrelay.attempt" in body

    run(test)
