"""The coordinator's service before a decode node that is only a channel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.service import Service
from infra.models import EMBEDDED
from infra.ports import free_port
from protocol.channel import Channel
from protocol.ids import Node
from protocol.messages import (
    AnyMessage,
    CoordinatorAlive,
)
from tests.support.coordinator.nodes import heartbeat

D0 = Node("d0", 1)
DEADLINE_S = 20.0
POLL_S = 0.2


@asynccontextmanager
async def running_service(
    decode: Channel, request_timeout_s: float = 600.0, otlp_endpoint: str = ""
) -> AsyncIterator[Service]:
    """With one live decode node, and no Redis anywhere."""
    config = CoordinatorConfig(
        redis_url=f"redis://127.0.0.1:{free_port()}",
        request_timeout_s=request_timeout_s,
        otlp_endpoint=otlp_endpoint,
        trace_share=1.0,
        served_model_name="tiny",
    )
    service = Service(config, Tokenizer(Path(EMBEDDED)), Channel("127.0.0.1"))
    await service.start()
    service.handle(heartbeat("decode", D0, control_address=decode.address))
    try:
        yield service
    finally:
        await service.close()


async def received(decode: Channel, count: int = 1) -> list[AnyMessage]:
    """What comes next, without the signs that the coordinator is alive."""
    messages: list[AnyMessage] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(messages) < count:
        # Not for long at once: a test that waits no more ends when the thread does.
        arrived = await asyncio.to_thread(decode.drain, POLL_S)
        assert time.monotonic() < deadline, "nothing arrived"
        messages += [m for m in arrived if not isinstance(m, CoordinatorAlive)]
    return messages


def run(test: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(test(), 3 * DEADLINE_S))  # type: ignore[arg-type]
