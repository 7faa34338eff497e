"""The live page over HTTP: its files are open and harmless, its data is not, listeners are few."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from importlib import resources

import pytest

from coordinator.http.live.feed import MAX_LISTENERS, LiveFeed
from coordinator.http.live.page import FILES, PAGE_PATHS
from protocol.channel import Channel
from tests.support.coordinator.http_servers import Connection, Served, run_served, served

TOKEN = {"Authorization": "Bearer operators"}


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def text_of(name: str) -> str:
    folder = resources.files("coordinator.http.live").joinpath("page")
    return folder.joinpath(name).read_text(encoding="utf-8")


def test_the_files_are_open_and_let_nothing_in_from_elsewhere(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, api_key=("key",), admin_token="operators") as here:
            for path in PAGE_PATHS[1:]:
                reply = await here.ask("GET", path)
                assert reply.status == 200 and reply.body, path
                policy = reply.headers["content-security-policy"]
                assert policy.startswith("default-src 'self';") and "unsafe" not in policy
                assert reply.headers["x-content-type-options"] == "nosniff"
            to_home = await here.ask("GET", "/admin")
            assert to_home.status == 307 and to_home.headers["location"] == "admin/"
            for path in ("/admin/events", "/admin/nodes", "/admin/page/", "/admin/page/x.js"):
                assert (await here.ask("GET", path)).status == 401, path
            assert (await here.ask("GET", "/admin/events?snapshots=1", **TOKEN)).status == 200

    run_served(test)


def test_every_file_that_the_page_names_is_served_and_no_other_is_there() -> None:
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', text_of("index.html")))
    for name in FILES:
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', text_of(name)))
    folder = resources.files("coordinator.http.live").joinpath("page")
    assert named == set(FILES) == {file.name for file in folder.iterdir()} - {"index.html"}


def test_no_text_of_others_becomes_markup() -> None:
    for name in FILES:
        text = text_of(name)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), "nothing is elsewhere"


async def listen(here: Served, path: str = "/admin/events") -> Connection:
    """A connection whose first snapshot has come."""
    connection = await here.connect()
    connection.send("GET", path)
    await asyncio.wait_for(connection.reader.readuntil(b"data: "), 20.0)
    return connection


def test_a_snapshot_tells_of_the_node_and_the_stream_ends_as_asked(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            reply = await here.ask("GET", "/admin/events?snapshots=2")
            assert reply.headers["content-type"].startswith("text/event-stream")
            first, second = map(json.loads, reply.events)
            assert [node["name"] for node in first["nodes"]] == ["d0"]
            assert first["events"][0]["kind"] == "joined" and first["model"] == "tiny"
            assert second["unix_s"] > first["unix_s"]
            wrong = await here.ask("GET", "/admin/events?snapshots=-1")
            assert wrong.status == 400

    run_served(test)


def test_listeners_are_bounded_and_those_who_leave_make_room(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            listeners = [await listen(here) for _ in range(MAX_LISTENERS)]
            refused = await here.ask("GET", "/admin/events")
            assert refused.status == 503 and "close one" in refused.error["message"]
            for connection in listeners:
                connection.writer.transport.abort()
            while (await here.ask("GET", "/admin/events?snapshots=1")).status != 200:
                await asyncio.sleep(0.05)

    run_served(test)


def test_nothing_is_computed_while_nobody_looks(decode: Channel) -> None:
    """All who look share one snapshot, and the stream ends with the coordinator."""

    async def test() -> None:
        async with served(decode) as here:
            made: list[float] = []
            feed = LiveFeed(here.service)
            view = feed._view.snapshot
            feed._view.snapshot = lambda *args: made.append(args[2]) or view(*args)  # type: ignore[method-assign, func-returns-value]
            assert made == [] and feed.num_listeners == 0
            streams = [feed.events() for _ in range(3)]
            events = [await anext(stream) for stream in streams]
            assert len(made) == 1 and len(set(events)) == 1 and feed.num_listeners == 3
            await streams[0].aclose()  # type: ignore[attr-defined]
            assert feed.num_listeners == 2
            here.service.stop_soon()
            here.service.end_unfinished()
            while not here.service.may_close:
                await asyncio.sleep(0.05)
            for stream in streams[1:]:
                assert [event async for event in stream] == []
            assert feed.num_listeners == 0 and len(made) == 1

    run_served(test)
