"""Clients that half-close, leave, stay, send too much, or name their requests."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import Iterator

import pytest

from coordinator.http.wire import half_closing
from coordinator.http.wire.bounded import MAX_HEAD_BYTES
from protocol.channel import Channel
from protocol.messages import Cancel
from tests.support.coordinator.http_servers import run_served, served
from tests.support.coordinator.services import DEADLINE_S, received

BODY = {"input_ids": [7], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}
STREAM = BODY | {"stream": True}


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


@pytest.fixture
def early_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_closing, "PROBE_AFTER_S", 0.01)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_a_client_that_half_closes_gets_its_whole_answer(decode: Channel, body: object) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            client.send("POST", "/generate", body)
            client.writer.write_eof()
            generate = await here.generate()
            here.tokens(generate, 0, [100])
            here.tokens(generate, 1, [100, 101], "length")
            reply = await client.reply("POST")
            assert reply.status == 200 and reply.interim == 0
            assert b"[100,100,101]" in reply.body
            assert await client.at_end(), "nothing can come after it"

    run_served(test)


@pytest.mark.usefixtures("early_probes")
@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_one_that_half_closes_and_waits_long_gets_what_it_can_skip(
    decode: Channel, body: object
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            client.send("POST", "/generate", body)
            client.writer.write_eof()
            generate = await here.generate()
            if body is BODY:
                first = await client.reader.readuntil(b"\r\n\r\n")
                assert first == half_closing.INTERIM_RESPONSE
            else:
                await client.reader.readuntil(half_closing.COMMENT)
            here.tokens(generate, 0, [100, 100, 101], "length")
            rest = await asyncio.wait_for(client.reader.read(), 20)
            assert b"[100,100,101]" in rest
            if body is BODY:
                assert b"HTTP/1.1 200 OK" in rest
            else:
                assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    run_served(test)


@pytest.mark.usefixtures("early_probes")
@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_a_client_that_leaves_cancels_its_request_and_is_counted(
    decode: Channel, body: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            client.send("POST", "/generate", body, {"X-Request-Id": "left-early"})
            generate = await here.generate()
            client.writer.close()
            assert await received(decode) == [Cancel(generate.attempt)]
            lifetime = here.service.core.statistics.totals.lifetime
            assert (lifetime.requests, lifetime.disconnected_requests) == (1, 1)
            assert lifetime.failed_requests == 0

    with caplog.at_level("INFO", logger="coordinator.core.statistics"):
        run_served(test)
    (line,) = [record.getMessage() for record in caplog.records if "ended" in record.message]
    assert "of left-early" in line and "the client has left" in line


def test_a_connection_is_kept_as_long_as_the_flag_says(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, keep_alive_s=0.05) as here:
            client = await here.connect()
            for _ in range(2):
                assert (await client.ask("GET", "/health")).status == 200
            assert await client.at_end()

    run_served(test)


def test_pipelined_requests_before_a_half_close_are_all_answered(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            client.send("POST", "/generate", BODY)
            client.send("GET", "/health")
            client.writer.write_eof()
            here.tokens(await here.generate(), 0, [100, 100, 101], "length")
            assert (await client.reply("POST")).status == 200
            assert (await client.reply()).status == 200

    run_served(test)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_a_client_of_http_1_0_gets_no_chunks(decode: Channel, body: object) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            raw = json.dumps(body).encode()
            client.writer.write(b"POST /generate HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(raw))
            client.writer.write(raw)
            generate = await here.generate()
            here.tokens(generate, 0, [100])
            here.tokens(generate, 1, [100, 101], "length")
            reply = await asyncio.wait_for(client.reader.read(), DEADLINE_S)
            head, _, rest = reply.partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head and b"connection: close" in head
            assert rest.endswith(b"data: [DONE]\n\n" if body is STREAM else b"}")
            assert (b"content-length: %d" % len(rest) in head) == (body is BODY)

    run_served(test)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_that_offers_another_protocol_is_answered_in_this_one(
    decode: Channel, is_chunked: bool
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            head = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAA"
            for body in (b'{"prompt": "a dog"}', b'{"prompt": "a cat"}'):  # as Java's client does
                size = b"Content-Length: %d\r\n\r\n" % len(body)
                if is_chunked:
                    size = b"Transfer-Encoding: chunked\r\n\r\n"
                    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
                raw = b"POST /tokenize HTTP/1.1\r\n%b\r\n%b%b" % (head, size, body)
                for part in (raw[:40], raw[40:-5], raw[-5:]):
                    client.writer.write(part)
                    await client.writer.drain()
            answers = [await client.reply("POST") for _ in range(2)]
            assert [answer.status for answer in answers] == [200, 200]
            assert answers[0].json["tokens"] != answers[1].json["tokens"]
            assert (
                await client.ask("GET", "/health", connection="upgrade", upgrade="h2c")
            ).status == 200
            client.writer.write(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await client.reply()).status == 400 and await client.at_end()

    run_served(test)


@pytest.mark.parametrize("path", ["/generate", "/tokenize", "/admin/cache/flush"])
def test_a_half_close_within_the_body_starts_nothing(
    decode: Channel, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            head = f"POST {path} HTTP/1.1\r\nContent-Length: 99\r\n\r\n{{"
            client = await here.connect()
            client.writer.write(head.encode())
            client.writer.write_eof()
            assert await client.at_end() and here.service.core.num_unfinished == 0

    run_served(test)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_over_the_limit_is_not_read_to_its_end(decode: Channel, is_announced: bool) -> None:
    async def test() -> None:
        async with served(decode, max_body_bytes=1000) as here:
            client = await here.connect()
            head = b"POST /generate HTTP/1.1\r\n"
            if is_announced:
                client.writer.write(head + b"Content-Length: 1000000000\r\n\r\n{")
            else:
                chunk = b"800\r\n" + b"x" * 0x800 + b"\r\n"
                client.writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
            reply = await client.reply("POST")
            assert reply.status == 413 and "1000 bytes" in reply.error["message"]
            assert reply.headers["connection"] == "close" and await client.at_end()

    run_served(test)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/tokenize"])
def test_a_compressed_body_is_refused_and_the_connection_goes_on(
    decode: Channel, path: str
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            for body in (gzip.compress(json.dumps(BODY).encode()), b""):
                reply = await client.ask("POST", path, body, content_encoding="gzip")
                assert reply.status == 400 and "Content-Encoding" in reply.error["message"]
            assert (await client.ask("GET", "/health", content_encoding="identity")).status == 200

    run_served(test)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /health HTTP/1.1\r\nX-Long: ",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /",
        b"GET /health HTTP/1.1\r\nX: y" + b"\r\nX: y" * 100,
    ],
    ids=["header", "second", "headers"],
)
def test_a_head_without_an_end_is_refused(decode: Channel, begin: bytes) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            client.writer.write(begin)
            num_bytes = MAX_HEAD_BYTES + 1
            if begin.endswith(b"/"):
                assert (await client.reply()).status == 200
            else:
                num_bytes -= len(begin)
            # Not a byte more: a server that closes with bytes unread resets the connection.
            client.writer.write(b"x" * num_bytes)
            refused = await client.reply()
            assert refused.status == 400 and b"head" in refused.body
            assert await client.at_end()

    run_served(test)


def test_a_client_that_never_reads_is_given_up(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, stall_client_s=0.01) as here:
            client, other = await here.connect(), await here.connect()
            client.send("POST", "/generate", STREAM)
            generate = await here.generate()
            (connection,) = [
                one for one in here.server.server_state.connections if one.cycle is not None
            ]
            connection.pause_writing()  # as the transport does when its buffer is full
            here.tokens(generate, 0, [100])
            assert await received(decode, 1) == [Cancel(generate.attempt)]
            with contextlib.suppress(ConnectionResetError):
                assert b"[DONE]" not in await asyncio.wait_for(client.reader.read(), DEADLINE_S)
            assert (await other.ask("GET", "/health")).status == 200
            lifetime = here.service.core.statistics.totals.lifetime
            assert (lifetime.stalled_clients, lifetime.disconnected_requests) == (1, 1)

    run_served(test)


def test_a_client_that_reads_again_is_not_given_up(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, stall_client_s=0.01) as here:
            client = await here.connect()
            client.send("POST", "/generate", STREAM)
            generate = await here.generate()
            (connection,) = here.server.server_state.connections
            connection.pause_writing()
            connection.resume_writing()
            await asyncio.sleep(0.05)  # longer than a stall may take
            here.tokens(generate, 0, [100, 101, 102], "length")
            assert (await client.reply()).events[-1] == "[DONE]"

    run_served(test)


def test_a_long_body_in_small_parts_is_no_head(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            raw = json.dumps(BODY | {"unknown": "x" * 3 * MAX_HEAD_BYTES}).encode()
            client.writer.write(b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            for i in range(0, len(raw), 1000):
                part = raw[i : i + 1000]
                client.writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            client.writer.write(b"0\r\n\r\n")
            here.tokens(await here.generate(), 0, [100], "length")
            assert (await client.reply()).status == 200

    run_served(test)


def test_every_response_carries_the_id_of_its_request(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            for method, path, body in (
                ("GET", "/health", None),
                ("GET", "/nowhere", None),
                ("POST", "/generate", b"{"),
                ("GET", "/generate", None),
                ("POST", "/tokenize", {"prompt": 1}),
            ):
                reply = await here.ask(method, path, body, X_Request_Id="mine-1")
                assert reply.headers["x-request-id"] == "mine-1", path
                other = await here.ask(method, path, body)
                assert len(other.headers["x-request-id"]) == 32
            insane = await here.ask("GET", "/health", X_Request_Id="x" * 129)
            assert len(insane.headers["x-request-id"]) == 32
            client = await here.connect()
            client.send("POST", "/generate", STREAM, {"X-Request-Id": "mine-2"})
            here.tokens(await here.generate(), 0, [100, 100, 101], "length")
            assert (await client.reply("POST")).headers["x-request-id"] == "mine-2"

    run_served(test)
