"""Every kind of Redis URL against real servers: what it says, who it lets in, how it fails over."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.ports import free_port
from infra.redis_server import check_reachable
from protocol.config import ConfigError, hide_password, require_redis_url
from protocol.hosts import advertised_host
from protocol.ids import Node
from protocol.redis.client import REDIS_ERRORS, connect, connect_async
from protocol.redis.url import RedisUrl
from tests.support.coordinator.owners import Following, Publishing, Server, wait_until

NODE = Node("p0", 1)
PAGES = [bytes([i]) * 16 for i in range(8)]
FAILOVER_DEADLINE_S = 40.0

WRONG_URLS = {
    "localhost:6379": "redis://localhost:6379/0",
    "http://localhost": "must begin with one of",
    "redis://": "needs a host",
    "redis://host:port": "needs a host",
    "redis://host:70000": "needs a host",
    "redis://host/zero": "database",
    "redis://a:1,b:2/0": "several hosts",
    "redis://host?timeout=3": "unknown option",
    "redis://host?ssl_cert_reqs=none": "rediss",
    "redis://host?sentinel_password=x": "redis+sentinel",
    "redis+sentinel://host:26379": "name of a service",
    "redis+cluster://host/1": "only database 0",
    "unix://": "path of a socket",
    "redis://host#1": "%23",
}


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url_is_refused_with_a_sentence(url: str) -> None:
    for refuse in (require_redis_url, check_reachable, lambda url: connect(url, 1.0)):
        with pytest.raises(ConfigError, match=re.escape(WRONG_URLS[url])):
            refuse(url)


@pytest.mark.parametrize(
    "url, hosts, service, plain",
    [
        ("redis://h", [("h", 6379)], "", "redis://h:6379/0"),
        ("rediss://u:p%2Fw@h:1/3", [("h", 1)], "", "rediss://u:p%2Fw@h:1/3"),
        ("redis://[::1]:7/0", [("::1", 7)], "", "redis://[::1]:7/0"),
        ("unix:///run/r.sock?db=2", [], "", "unix:///run/r.sock?db=2"),
        ("redis://u@h/1?password_file=/a/b&db=2", [("h", 6379)], "", "redis://u@h:6379/1?db=2"),
        ("redis+cluster://:p@a,b:2", [("a", 6379), ("b", 2)], "", "redis://:p@a:6379/0"),
        (
            "rediss+sentinel://u:p@a,b:2,[::1]:3/main/4?ssl_cert_reqs=none",
            [("a", 26379), ("b", 2), ("::1", 3)],
            "main",
            "rediss://u:p@a:26379/4?ssl_cert_reqs=none",
        ),
    ],
)
def test_what_a_url_says(url: str, hosts: list[tuple[str, int]], service: str, plain: str) -> None:
    require_redis_url(url)
    parsed = RedisUrl.parse(url)
    assert (list(parsed.hosts), parsed.service, parsed.plain) == (hosts, service, plain)
    assert parsed.tls == url.startswith("rediss")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:SECRET@h/0",
        "redis+sentinel://user:SECRET@a:1,b:2,c/main?sentinel_username=s&sentinel_password=SECRET",
        "redis+cluster://user:SECRET@a:1,user:SECRET@b:2",
        "redis://h/0?password=SECRET@more:SECRET&db=1",
        "redis://user:SECRET/?@SECRET@h",
        "redis://user:SEC?RET=SECRET@h",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    assert "SECRET" in url
    assert "SECRET" not in hide_password(url)
    try:
        require_redis_url(url)
    except ConfigError as error:
        assert "SECRET" not in str(error) and "SECRET" not in str(error.__cause__)


def test_the_address_towards_the_sentinels_is_advertised() -> None:
    url = "redis+sentinel://user:pw@127.0.0.1:1,127.0.0.1:2/main"
    assert advertised_host("0.0.0.0", "", url) not in ("", "0.0.0.0")
    assert advertised_host("0.0.0.0", "", "unix:///run/redis.sock") not in ("", "0.0.0.0")


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Server] = []

    def start(*options: str, **named: Any) -> Server:
        started.append(Server(tmp_path, *options, **named))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def use(url: str) -> None:
    """Uses both kinds of client, and lets a node's pages reach a coordinator."""
    check_reachable(url)

    async def ping() -> object:
        client = connect_async(url, timeout_s=2.0)
        try:
            return await client.ping()
        finally:
            await client.aclose()

    assert asyncio.run(ping())
    following = Following(url)
    node = Publishing(url, NODE)
    other = Publishing(url, Node("p1", 1))
    try:
        node.stored(*PAGES[:4])
        other.stored(PAGES[7])
        wait_until(lambda: following.knows(NODE, PAGES[:4]))
        wait_until(lambda: following.knows(Node("p1", 1), PAGES[7:]))
        node.removed(PAGES[3])
        wait_until(lambda: following.knows(NODE, PAGES[:3]))
        found = following.call(following.follower.record.match(PAGES[:4]))
        assert found == {NODE: 3}
    finally:
        node.publisher.close()
        other.publisher.close()
        following.close()


def test_a_user_and_a_password(start: Start) -> None:
    port = free_port()
    url = f"redis://relay:p%40ss@127.0.0.1:{port}/1"
    user = ("--user", "relay", "on", ">p@ss", "~{kvrelay}:*", "&*", "+@all")
    start(*user, "--requirepass", "x", port=port, url=url)
    use(url)
    with pytest.raises(ConfigError, match="refuses the user or password") as refused:
        check_reachable(f"redis://relay:pa33@127.0.0.1:{port}")
    assert "pa33" not in str(refused.value)
    for scheme in ("redis", "redis+cluster"):
        with pytest.raises(ConfigError, match="asks for a password") as refused:
            check_reachable(f"{scheme}://127.0.0.1:{port}")
        assert f"{scheme}://:password@127.0.0.1:{port}" in str(refused.value)


def test_a_password_in_a_file(start: Start, tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "password"
    file.write_text("p@ss\n")
    url = f"redis://relay@127.0.0.1:{port}/1?password_file={file}"
    user = ("--user", "relay", "on", ">p@ss", "~{kvrelay}:*", "&*", "+@all")
    start(*user, "--requirepass", "x", port=port, url=url)
    use(url)
    file.write_text("another")
    with pytest.raises(ConfigError, match="refuses the user or password"):
        check_reachable(url)
    file.unlink()
    with pytest.raises(ConfigError, match="password file"):
        check_reachable(url)


def test_a_user_who_may_not_do_what_is_needed(start: Start) -> None:
    port = free_port()
    users = ("--user", "reader", "on", ">p", "~{kvrelay}:*", "&*", "+ping")
    start(*users, "--user", "other", "on", ">p", "~other:*", "+@all", port=port)
    for user in ("reader", "other"):
        with pytest.raises(ConfigError, match="does not let its user do") as refused:
            check_reachable(f"redis://{user}:p@127.0.0.1:{port}")
        assert "~{kvrelay}:*" in str(refused.value)
    with pytest.raises(ConfigError, match="is no Cluster"):
        check_reachable(f"redis+cluster://127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="DB index is out of range"):
        check_reachable(f"redis://127.0.0.1:{port}/99")


def test_nodes_and_coordinators_say_that_a_password_is_missing(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    start("--requirepass", "x", port=port, url=f"redis://:x@127.0.0.1:{port}")
    locked_out = f"redis://127.0.0.1:{port}"
    node, following = Publishing(locked_out, NODE), Following(locked_out)
    try:
        wait_until(lambda: caplog.text.count("asks for a password") == 2)
        assert "serving goes on without Redis: Redis at" in caplog.text
        assert "Redis at" in caplog.text
        assert "no Redis answers" not in caplog.text
    finally:
        node.publisher.close()
        following.close()


def test_a_unix_socket(start: Start, tmp_path: Path) -> None:
    start("--unixsocket", f"{tmp_path}/redis.sock")
    use(f"unix://{tmp_path}/redis.sock?db=2")


def test_a_cluster(start: Start) -> None:
    # The bus of a Cluster lies 10,000 above, below what connections are given.
    port = next(port for port in iter(free_port, 0) if port < 22_768)
    server = start("--cluster-enabled", "yes", port=port)
    client = server.client()
    client.execute_command("CLUSTER ADDSLOTS", *range(16_384))
    wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok")
    use(f"redis+cluster://127.0.0.1:{port}")


def test_a_cluster_that_comes_late_is_found(start: Start) -> None:
    port = next(port for port in iter(free_port, 0) if port < 22_768)
    url = f"redis+cluster://127.0.0.1:{port}"
    following, node = Following(url), Publishing(url, NODE)
    try:
        node.stored(*PAGES)
        client = start("--cluster-enabled", "yes", port=port).client()
        client.execute_command("CLUSTER ADDSLOTS", *range(16_384))
        wait_until(lambda: following.knows(NODE, PAGES))
    finally:
        node.publisher.close()
        following.close()


def test_tls(start: Start, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    new_key = ["-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", "req", "-x509", *new_key, *subject], check=True, capture_output=True)
    with TlsProxy(start().port, certificate, key) as port:
        use(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")
        with pytest.raises(ConfigError, match="certificate verify failed"):
            check_reachable(f"rediss://127.0.0.1:{port}/0")


class TlsProxy:
    """Ends TLS in front of a server that knows none, as the binary is built without it."""

    def __init__(self, server_port: int, certificate: Path, key: Path) -> None:
        self._server_port = server_port
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate, key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> int:
        self._thread.start()
        serving = asyncio.start_server(self._forward, "127.0.0.1", 0, ssl=self._tls)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()
        return int(self._server.sockets[0].getsockname()[1])

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_read, to_write = await asyncio.open_connection("127.0.0.1", self._server_port)
        await asyncio.gather(self._copy(reader, to_write), self._copy(to_read, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


def start_sentinel(start: Start, tmp_path: Path, master: Server, password: str = "") -> str:
    """Starts one Sentinel over `master` and returns its URL."""
    port = free_port()
    file = tmp_path / f"sentinel-{port}.conf"
    auth = f"sentinel auth-pass main {password}\n" if password else ""
    file.write_text(
        f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds main 500\n"
        f"sentinel failover-timeout main 2000\n{auth}"
        "requirepass sentinels\n",
    )
    credentials = f":{password}@" if password else ""
    start(port=port, url=f"redis://:sentinels@127.0.0.1:{port}", sentinel=str(file))
    dead = f"127.0.0.1:{free_port()}"
    url = f"redis+sentinel://{credentials}{dead},127.0.0.1:{port}/main/0"
    return f"{url}?sentinel_password=sentinels"


def test_a_failover_of_sentinel_is_survived(start: Start, tmp_path: Path) -> None:
    passwords = ("--requirepass", "secret", "--masterauth", "secret")
    ports = free_port(), free_port()
    urls = [f"redis://:secret@127.0.0.1:{port}" for port in ports]
    master = start(*passwords, port=ports[0], url=urls[0])
    replica = start(
        *passwords, "--replicaof", "127.0.0.1", str(ports[0]), port=ports[1], url=urls[1]
    )
    wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up")
    url = start_sentinel(start, tmp_path, master, "secret")
    wait_until(lambda: knows_replica(url))
    use(url)

    following, node = Following(url), Publishing(url, NODE)
    try:
        node.stored(*PAGES[:4])
        wait_until(lambda: following.knows(NODE, PAGES[:4]))
        master.stop()
        node.stored(PAGES[4])
        node.removed(PAGES[3])
        expected = [*PAGES[:3], PAGES[4]]
        wait_until(lambda: role(replica) == "master", FAILOVER_DEADLINE_S)
        wait_until(lambda: following.knows(NODE, expected), FAILOVER_DEADLINE_S)
        node.stored(PAGES[5])
        wait_until(lambda: following.knows(NODE, [*expected, PAGES[5]]))
        wait_until(lambda: recorded(following) == {*expected, PAGES[5]})
    finally:
        node.publisher.close()
        following.close()


def role(server: Server) -> str:
    """Returns the role of a server, if it tells it: a promotion closes connections."""
    try:
        return str(server.client().info("replication")["role"])
    except REDIS_ERRORS:
        return ""


def knows_replica(url: str) -> bool:
    sentinel_host, sentinel_port = RedisUrl.parse(url).hosts[-1]
    client = connect(f"redis://:sentinels@{sentinel_host}:{sentinel_port}", timeout_s=2.0)
    try:
        return bool(client.sentinel_slaves("main"))
    except REDIS_ERRORS:
        return False


def recorded(following: Following) -> set[bytes]:
    """Returns what Redis says that the node owns; nothing while the Sentinel names no master."""
    try:
        return following.record(NODE)
    except REDIS_ERRORS:
        return set()


def test_a_refused_connection_is_one_of_the_errors_that_callers_expect() -> None:
    port = free_port()
    for scheme, rest in (("redis", ""), ("redis+sentinel", "/main"), ("redis+cluster", "")):
        url = f"{scheme}://127.0.0.1:{port}{rest}"
        with pytest.raises(REDIS_ERRORS):
            connect(url, timeout_s=0.5).ping()
        with pytest.raises(REDIS_ERRORS):
            asyncio.run(connect_async(url, timeout_s=0.5).ping())
        with pytest.raises(ConfigError, match="no Redis answers"):
            check_reachable(url)
    with socket.socket() as listener:  # accepts and never answers
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        silent = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(REDIS_ERRORS):
            connect(silent, timeout_s=0.2).ping()
