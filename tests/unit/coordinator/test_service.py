"""The coordinator's shell against a decode node that is only a channel."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from coordinator import service as service_module
from coordinator.answers.generation import Generation
from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.http.schema import BadRequest, Prompt, SamplingParams
from coordinator.ownership.follower import OwnershipFollower
from coordinator.routing.placement import Work
from coordinator.routing.router import Route
from coordinator.service import Service
from infra.models import EMBEDDED
from infra.ports import free_port
from protocol.channel import Channel
from protocol.ids import Attempt, Node
from protocol.messages import AnyMessage, Cancel, Generate, Goodbye, TokenOut, TokensOut
from tests.support.nodes import LAYOUT, heartbeat, load_of

D0 = Node("d0", 1)
DEADLINE_S = 20.0


@asynccontextmanager
async def running_service(
    decode: Channel, request_timeout_s: float = 600.0
) -> AsyncIterator[Service]:
    """With one live decode node, and no Redis anywhere."""
    config = CoordinatorConfig(
        redis_url=f"redis://127.0.0.1:{free_port()}", request_timeout_s=request_timeout_s
    )
    service = Service(config, Tokenizer(Path(EMBEDDED)), Channel("127.0.0.1"))
    await service.start()
    service._handle(heartbeat("decode", D0, control_address=decode.address))
    try:
        yield service
    finally:
        await service.close()


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def submit(service: Service) -> Generation:
    sampling = SamplingParams(max_new_tokens=8, ignore_eos=True)
    prompt = Prompt(text=None, input_ids=[7], sampling=sampling, rid=None, cache_salt="")
    return service.submit(prompt, [7], 0, None)


async def next_message(decode: Channel) -> AnyMessage:
    (message,) = await asyncio.to_thread(decode.drain, DEADLINE_S)
    return message


def run(test: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(test(), 3 * DEADLINE_S))  # type: ignore[arg-type]


def test_a_request_longer_than_nodes_serve_is_refused(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            p0 = Node("p0", 1)
            service._handle(heartbeat("prefill", p0, context_length=8))
            with pytest.raises(BadRequest, match="max_new_tokens 8; at most 8 fit"):
                submit(service)
            service._handle(Goodbye(p0))
            submit(service)

    run(test)


def test_work_that_nobody_waits_for_is_cancelled(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            stray = Attempt("unknown", 3)
            service._handle(TokensOut([TokenOut(stray, 0, [5])], D0))
            assert await next_message(decode) == Cancel(stray)

    run(test)


def test_a_request_that_takes_too_long_is_504_and_cancelled(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode, request_timeout_s=0.2) as service:
            generation = submit(service)
            generate = await next_message(decode)
            assert isinstance(generate, Generate)
            await generation.changed(DEADLINE_S)
            assert generation.error is not None and generation.error.status_code == 504
            assert await next_message(decode) == Cancel(generate.attempt)
            assert service.num_running == 0 and service.totals.lifetime.failed == 1

    run(test)


def test_a_request_outlives_the_last_node_for_a_while(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            submit(service)
            await next_message(decode)
            service._handle(Goodbye(D0))
            assert service.num_running == 1

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

            busy = load_of(queued_tokens=1_000_000)
            service._handle(heartbeat("decode", D0, busy, control_address=decode.address))
            monkeypatch.setattr(loop, "call_later", recorded)
            submit(service)
            for _ in range(50):
                service._dispatch()
            assert service.num_waiting == 1
            assert len(timers) > 50
            assert len([timer for timer in timers if not timer.cancelled()]) == 1

    run(test)


def test_a_restarted_node_with_another_layout_gets_work_of_that_layout(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            busy = load_of(queued_tokens=1_000_000)
            service._handle(heartbeat("decode", D0, busy, control_address=decode.address))
            submit(service)
            placed: list[int] = []
            book = service.placement.book

            def booked(request_id: str, work: Work, route: Route, now: float) -> None:
                placed.append(work.num_pages)
                book(request_id, work, route, now)

            service.placement.book = booked  # type: ignore[method-assign]
            later = service._now() + 1.0
            service._now = lambda: later  # type: ignore[method-assign]
            single = msgspec.structs.replace(LAYOUT, page_size=1)
            again = heartbeat(
                "decode", Node("d0", 2), layout=single, control_address=decode.address
            )
            service._handle(again)
            service._dispatch()
            assert placed == [single.num_pages(1 + 8 - 1)]

    run(test)


def test_an_answer_of_one_token_counts_among_the_hottest(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            sampling = SamplingParams(max_new_tokens=1, ignore_eos=True)
            ids = list(range(1, 40))
            prompt = Prompt(text=None, input_ids=ids, sampling=sampling, rid=None, cache_salt="")
            service.submit(prompt, ids, 0, None)
            generate = await next_message(decode)
            assert isinstance(generate, Generate)
            out = TokenOut(generate.attempt, 0, [5], "length", cached_tokens=32)
            service._handle(TokensOut([out], D0))
            (hottest,) = service.hot_prefixes.hottest(5)
            assert hottest.num_tokens == 32

    run(test)
