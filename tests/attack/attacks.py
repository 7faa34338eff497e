"""The attacks, each on a target that has to stay unharmed. `ATTACKS` lists them."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import httpx
import msgspec
import torch
import zmq

from kvtransfer.backends.choice import make_backends
from kvtransfer.links.challenge import _OPENING, MAGIC, prove_as_connecting
from kvtransfer.links.handshake import (
    FrameHeader,
    Hello,
    Place,
    Welcome,
    receive_message,
    send_message,
)
from kvtransfer.links.socket_store import SocketStore
from kvtransfer.links.streams import STREAM_KEY, StreamOf
from kvtransfer.pages.layout import WHOLE, FrameShape
from kvtransfer.pair_transport import PairTransport
from protocol.hashing import join_hashes, token_bytes
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout
from protocol.messages import (
    AbortRequest,
    AuditPages,
    CoordinatorAlive,
    Failed,
    Fetch,
    FlushCache,
    Generate,
    Goodbye,
    Heartbeat,
    Load,
    Message,
    NodeInfo,
    Prefill,
    Republish,
    SetPause,
    TokenOut,
    TokensOut,
    encode,
)
from protocol.namespace import SHARED
from protocol.sampling import Sampling
from protocol.trust.secrets import ClusterSecrets
from protocol.trust.versions import PROTOCOL_VERSION
from tests.attack.strangers import HOST, OUTSIDERS, WRONG_SECRET, member, say_raw
from tests.attack.target import SALT, Target

Attack = Callable[[Target], None]
LAST = (1 << 63) - 1
"""The greatest incarnation that fits."""
PATIENCE_MS = 300
"""How long the attacker waits for an answer that must not come; one in the same host that is
answered hears it within a few milliseconds."""


def outsiders_ask(target: Target) -> None:
    """Whoever has no secret asks nodes for all that they know, and to be sent a tenant's pages."""
    with socket.create_server((HOST, 0)) as data, closing(_inbox()) as inbox:
        data.settimeout(PATIENCE_MS / 1e3)
        me = inbox.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")
        pages = (f"{HOST}:{data.getsockname()[1]}",)
        for say in OUTSIDERS:
            for role, node in ((role, target.node(role)) for role in ("prefill", "decode")):
                hashes = join_hashes(target.stolen_hashes(role))
                fetch = Fetch(Attempt("stolen", 1), hashes, 0, me, pages)
                say(node["control_address"], [AuditPages(me, "q"), fetch])
        assert not inbox.poll(PATIENCE_MS), "a node has answered a stranger"
        try:
            connection, _ = data.accept()
        except TimeoutError:
            return
        connection.close()
        raise AssertionError("a node wants to send pages to a stranger")


def outsiders_forge(target: Target) -> None:
    """Whoever has no secret pretends to be nodes, new ones and known ones, and coordinators."""
    decode = target.node("decode")
    known = Node(decode["name"], decode["incarnation"])
    newer = Node(decode["name"], LAST)
    attempt = Attempt("r", 1)
    to_coordinator: list[Message] = [
        _heartbeat(target, Node("evil", known.incarnation)),
        _heartbeat(target, newer),
        Goodbye(known),
        TokensOut([TokenOut(attempt, 0, [1])], known),
        Failed(attempt, "because", "node", known),
        AbortRequest("", abort_all=True),
        SetPause(LAST, "abort", "x:1", "q"),
    ]
    to_node: list[Message] = [
        FlushCache("x:1", "f"),
        Republish(),
        CoordinatorAlive("x:1"),
        Generate(attempt, token_bytes([1]), SHARED, Sampling(), 9, [], None, "", "x:1"),
    ]
    for say in OUTSIDERS:
        say(target.coordinator_address, to_coordinator)
        for node in target.nodes.values():
            say(node["control_address"], to_node)


def outsiders_kill(target: Target) -> None:
    """Whoever has no secret says what once ended nodes."""
    for say in OUTSIDERS:
        for address in target.control_addresses:
            say(address, list(_killers(target).values()))


def members_lie(target: Target) -> None:
    """One who has the secret says what once ended nodes, or replaced them: it is not believed."""
    file = str(target.cluster.local.secret_file)
    before = target.refusals()
    killers = _killers(target)
    goodbye = encode(Goodbye(Node("x", 1)))
    garbage = [
        b"",
        b"\xff" * 100,
        b"\x00" * 10**6,
        msgspec.msgpack.encode(["Generate"]),
        b"\x93" + goodbye[1:] + b"\x91" * 10**6 + b"\xc0",  # nested a million times
    ]
    with member(file) as channel:
        for address in target.control_addresses:
            for killer in killers.values():
                channel.send(address, killer)
            for raw in garbage:
                say_raw(channel, file, address, raw)
        count = (len(killers) + len(garbage)) * len(target.control_addresses)
        target.await_refusals(before + count, "every lie")


def strangers_at_the_data_port(target: Target) -> None:
    """Garbage, greetings without a proof, wrong proofs, and connections that say nothing."""
    node = target.node("decode")
    (address,) = node["data_addresses"]
    host, _, port = address.rpartition(":")
    known_id = bytes.fromhex(target.coordinator_address.partition("#")[2])
    before = target.refusals()
    said: list[bytes] = [
        b"\x00" * 64,
        b"\xff" * 4096,
        b"GET / HTTP/1.1\r\n\r\n" * 8,
        _OPENING.pack(MAGIC, b"", bytes(32)),
        _OPENING.pack(MAGIC, known_id, bytes(32)) + bytes(32),
        _hello(target),
    ]
    with ExitStack() as stack:
        for _ in range(100):  # they say nothing, and keep nobody else waiting
            stack.enter_context(socket.create_connection((host, int(port)), 5.0))
        for each in said:
            connection = stack.enter_context(socket.create_connection((host, int(port)), 5.0))
            connection.sendall(each)
        target.await_refusals(before + len(said), "who has proved nothing")


def pages_with_a_wrong_secret(target: Target) -> None:
    """A node of the attacker's, with the public weights and a secret that it made up, sends pages
    to a decode node, and listens for those of a prefill node."""
    node = target.node("decode")
    layout = KVLayout(**node["layout"])
    pool = torch.zeros(layout.num_layers, 4, layout.layer_page_bytes, dtype=torch.uint8)
    for secrets in (None, ClusterSecrets((WRONG_SECRET,))):
        evil = PairTransport(
            pool,
            layout,
            Node("evil", 1),
            node["model_fingerprint"],
            make_backends("auto", HOST, torch.device("cpu")),
            Place(HOST),
            secrets=secrets,
        )
        ends: list[str] = []
        evil.send(node["data_addresses"], Attempt("meeting", 1), [0, 1], 0, ends.append)
        target.cluster.local.raise_if_dead()
        evil_close_waits_for_its_links(evil)
        assert ends and "--cluster-secret-file" in ends[0], ends


def a_member_sends_more_than_it_announced(target: Target) -> None:
    """One who has the secret announces a frame, sends more bytes than that has, and hangs up; or
    announces frames that no pool has."""
    node = target.node("decode")
    (address,) = node["data_addresses"]
    secrets = ClusterSecrets((), str(target.cluster.local.secret_file))
    for shape in (FrameShape(0, 1, 0, 1), FrameShape(0, LAST, 0, 1), FrameShape(LAST, 1, 0, 9)):
        with closing(_connected(address, secrets)) as link:
            send_message(link, _greeting(node, "tcp"))
            welcome = receive_message(link, Welcome)
            store = SocketStore(link, 4.0, lambda s: _connected(address, secrets))
            with closing(store.open_stream()) as stream:
                send_message(stream, StreamOf(store.get(STREAM_KEY)))
                store.finish()
                send_message(link, FrameHeader(Attempt("meeting", 1), shape, True))
                try:
                    for _ in range(4 * welcome.window):
                        stream.sendall(b"\xee" * welcome.message_bytes)
                        link.sendall(b"\xee" * 1000)
                except OSError:
                    continue  # it has hung up on us, as it should
            raise AssertionError("it takes whatever comes")


def evil_close_waits_for_its_links(transport: PairTransport) -> None:
    """Waits until the link has ended, which tells why."""
    with transport._lock:
        links = list(transport._links)
    for link in links:
        link.join()
    transport.close()


def every_port(target: Target) -> None:
    """A node listens on no port but the three that settings name; garbage at each of them, and
    as much as an hour of it would bring, ends nothing."""
    for name, ports in target.listening_ports().items():
        node = target.nodes[name]
        named = {
            int(address.partition("#")[0].rpartition(":")[2])
            for address in (
                node["control_address"],
                node["health_address"],
                *node["data_addresses"],
            )
        }
        assert ports == named, f"{name} listens on {ports - named}, which no setting names"
        for port in ports:
            for _ in range(20):
                with socket.create_connection((HOST, port), 5.0) as connection:
                    connection.sendall(b"\x05" * 10_000)


def the_health_port(target: Target) -> None:
    """It tells how a node does, and nothing else, to anybody."""
    for node in target.nodes.values():
        url = f"http://{node['health_address']}"
        said = httpx.get(f"{url}/live").json()
        assert said.keys() == {"node", "incarnation", "condition", "turn_s", "is_draining"}
        assert httpx.get(f"{url}/admin/nodes").status_code == 404
        assert httpx.post(f"{url}/live", content=b"x" * 100_000).status_code >= 400


def nothing_secret_is_logged(target: Target) -> None:
    """No log has the secret, nor the word by which the tenant keeps its pages apart."""
    file = target.cluster.local.secret_file
    assert file is not None
    secret = file.read_text().strip()
    for log in target.cluster.local.log_dir.glob("*.log"):
        text = log.read_text(errors="replace")
        assert secret not in text and SALT not in text, log.name


ATTACKS: tuple[Attack, ...] = (
    outsiders_ask,
    outsiders_forge,
    outsiders_kill,
    members_lie,
    strangers_at_the_data_port,
    pages_with_a_wrong_secret,
    a_member_sends_more_than_it_announced,
    every_port,
    the_health_port,
    nothing_secret_is_logged,
)


def _inbox() -> zmq.Socket[bytes]:
    inbox = zmq.Context.instance().socket(zmq.PULL)
    inbox.bind_to_random_port(f"tcp://{HOST}")
    return inbox


def _info(target: Target, node: Node) -> NodeInfo:
    known = target.node("decode")
    return NodeInfo(
        node=node,
        control_address="x:1",
        data_addresses=("x:2",),
        layout=KVLayout(**known["layout"]),
        model_fingerprint=known["model_fingerprint"],
        num_pages=100_000,
        max_running_requests=1000,
        max_queued_requests=1000,
        device="cpu",
    )


def _heartbeat(target: Target, node: Node, lease_s: float = 3.0) -> Heartbeat:
    return Heartbeat(_info(target, node), Load(role="decode", free_pages=100_000), lease_s)


def _killers(target: Target) -> dict[str, Message]:
    """Messages that decode, and would end or replace who believes them."""
    attempt, pages = Attempt("k", 1), ("x:2",)
    name = target.node("decode")["name"]
    return {
        "tokens of three bytes": Generate(
            attempt, b"abc", SHARED, Sampling(), 4, [], None, "", "x:1"
        ),
        "a prompt of three bytes": Prefill(attempt, b"abc", SHARED, Sampling(), 0, "x:1", pages),
        "hashes of fifteen bytes": Fetch(attempt, b"h" * 15, 0, "x:1", pages),
        "a lease that is no number": CoordinatorAlive("x:1", math.nan),
        "a node's lease that is no number": _heartbeat(target, Node(name, 1), math.nan),
        "the last incarnation": _heartbeat(target, Node(name, LAST)),
        "a farewell of the last incarnation": Goodbye(Node(name, LAST)),
    }


def _hello(target: Target) -> bytes:
    """The greeting of a link, without the challenge before it."""
    here, there = socket.socketpair()
    with here, there:
        send_message(here, _greeting(target.node("decode"), "shm"))
        return there.recv(1 << 16)


def _greeting(node: dict[str, Any], backend: str) -> Hello:
    """The greeting of a node that is like the one it greets."""
    layout, weights = KVLayout(**node["layout"]), node["model_fingerprint"]
    evil = Node("evil", 1)
    return Hello(
        PROTOCOL_VERSION, evil, layout, weights, WHOLE, WHOLE, Place("elsewhere"), [backend]
    )


def _connected(address: str, secrets: ClusterSecrets) -> socket.socket:
    """A connection to a data port that has passed the challenge."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), 5.0)
    prove_as_connecting(connection, secrets)
    return connection
