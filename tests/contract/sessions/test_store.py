"""Sessions in a real Redis: what was stored is what the next turn reads, or a sentence says why
not."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from coordinator.core.errors import Unavailable
from coordinator.sessions import store as store_module
from coordinator.sessions.store import DEADLINE_S, SessionRefused, SessionStore
from coordinator.sessions.turns import TurnRecord, TurnRequest, tokens_of
from infra.ports import free_port
from protocol.redis.client import connect_async
from protocol.redis.sessions import SESSION_PREFIX
from tests.support.coordinator.owners import Server, wait_until

LATE_S = 2.0
NAME = "s with {braces}:and colons"
Test = Callable[[SessionStore], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def run(server: Server) -> Run:
    def run(test: Test, ttl_s: float = 60.0, url: str = server.url) -> None:
        async def with_store() -> None:
            redis = connect_async(url, 1.0)
            try:
                await test(SessionStore(redis, ttl_s))
            finally:
                await redis.aclose()

        asyncio.run(with_store())

    return run


def after(rid: str, replace: bool = False) -> TurnRequest:
    return TurnRequest(NAME, rid=rid, replace=replace)


async def add(
    store: SessionStore,
    rid: str,
    parent: str = "",
    new: tuple[int, ...] = (1, 2),
    answer: tuple[int, ...] = (3,),
    replace: bool = False,
) -> list[str]:
    """A whole turn that keeps two tokens of its parent."""
    replaced = await store.begin(after(parent, replace), rid, 2 if parent else 0, new)
    await store.end(NAME, rid, answer)
    return replaced


def test_a_turn_is_read_with_all_that_it_follows(run: Run) -> None:
    async def test(store: SessionStore) -> None:
        assert await store.open(NAME, 77)
        assert (await store.read(after(""))).chain == []
        await add(store, "a", new=(1, 2, 3), answer=(4, 5))
        await add(store, "b with : and  spaces", "a", new=(-1, 1 << 30), answer=())
        await add(store, "c", "b with : and  spaces")
        history = await store.read(after("c"))
        assert history.capacity == 77
        assert history.chain == [
            TurnRecord(0, [1, 2, 3], [4, 5]),
            TurnRecord(2, [-1, 1 << 30], []),
            TurnRecord(2, [1, 2], [3]),
        ]
        assert (await store.read(after("a"))).chain == history.chain[:1]

    run(test)


def test_a_name_is_taken_until_its_session_is_closed(run: Run) -> None:
    async def test(store: SessionStore) -> None:
        assert await store.open(NAME, 1)
        assert not await store.open(NAME, 1)
        await add(store, "a")
        await store.close(NAME)
        await store.close(NAME)
        for refused in (store.read(after("a")), store.begin(after(""), "b", 0, [1])):
            with pytest.raises(SessionRefused, match="no session"):
                await refused
        await store.end(NAME, "a", [1])  # an answer that comes too late opens nothing
        assert await store.open(NAME, 1)
        with pytest.raises(SessionRefused, match="no turn"):
            await store.read(after("a"))

    run(test)


def test_a_turn_that_runs_has_no_successor_and_one_that_was_discarded_is_gone(run: Run) -> None:
    async def test(store: SessionStore) -> None:
        await store.open(NAME, 1)
        await store.begin(after(""), "a", 0, [1])
        for refused in (store.read(after("a")), store.begin(after("a"), "b", 0, [1])):
            with pytest.raises(SessionRefused, match="has not ended"):
                await refused
        with pytest.raises(SessionRefused, match="has a turn"):
            await store.begin(after(""), "a", 0, [1])
        await store.discard(NAME, "a")
        await add(store, "a")
        assert (await store.read(after("a"))).chain == [TurnRecord(0, [1, 2], [3])]

    run(test)


def test_replacing_tells_which_turns_run_and_keeps_others(run: Run) -> None:
    async def test(store: SessionStore) -> None:
        await store.open(NAME, 1)
        for rid, parent in (("a", ""), ("b", "a"), ("c", "b"), ("z", "")):
            await add(store, rid, parent)
        await store.begin(after("c"), "running", 0, [1])
        assert await add(store, "b", "a", new=(9,), replace=True) == ["running"]
        assert (await store.read(after("b"))).chain[-1].new == [9]
        assert (await store.read(after("z"))).chain != []
        with pytest.raises(SessionRefused, match="no turn with rid 'c'"):
            await store.read(after("c"))
        assert await add(store, "new", replace=True) == []
        for gone in ("a", "b", "z"):
            with pytest.raises(SessionRefused):
                await store.read(after(gone))

    run(test)


def test_a_turn_that_runs_keeps_its_rid_even_if_it_is_replaced(run: Run) -> None:
    """Its end is on its way, and would be noted as that of the new turn."""

    async def test(store: SessionStore) -> None:
        await store.open(NAME, 1)
        await store.begin(after(""), "a", 0, [1])
        with pytest.raises(SessionRefused, match="has a turn"):
            await store.begin(after("", replace=True), "a", 0, [2])
        await store.end(NAME, "a", [3])
        await add(store, "a", new=(2,), replace=True)
        assert (await store.read(after("a"))).chain == [TurnRecord(0, [2], [3])]

    run(test)


def test_any_turns_are_those_of_a_dictionary(run: Run, server: Server) -> None:
    async def test(store: SessionStore) -> None:
        chance = random.Random(5)
        await store.open(NAME, 1)
        whole: dict[str, tuple[list[int], list[int]]] = {}
        parents: dict[str, str] = {}
        for number in range(300):
            parent = chance.choice(["", *whole])
            replaces = chance.random() < 0.1
            prompt, answer = whole.get(parent, ([], []))
            kept = chance.randint(0, len(prompt + answer))
            new = [chance.randrange(100) for _ in range(chance.randint(0, 3))]
            got = [chance.randrange(100) for _ in range(chance.randint(0, 3))]
            rid = f"r{number}"
            await store.begin(after(parent, replaces), rid, kept, new)
            await store.end(NAME, rid, got)
            if replaces:
                for other in [o for o in whole if follows(o, parent, parents)]:
                    del whole[other], parents[other]
            whole[rid], parents[rid] = ((prompt + answer)[:kept] + new, got), parent
            for name in chance.sample(sorted(whole), min(3, len(whole))):
                assert tokens_of((await store.read(after(name))).chain) == whole[name]
        fields = server.client().hgetall(SESSION_PREFIX + NAME)
        num_bytes = sum(len(v) for k, v in fields.items() if k[:4] in (b"new:", b"answ"))
        assert int(fields[b"turns"]) == len(whole)
        assert int(fields[b"bytes"]) == num_bytes

    run(test)


def follows(rid: str, ancestor: str, parents: dict[str, str]) -> bool:
    while rid:
        rid = parents[rid]
        if rid == ancestor:
            return True
    return False


def test_a_session_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_TURNS", 3)
    monkeypatch.setattr(store_module, "MAX_BYTES", 4 * 20)

    async def test(store: SessionStore) -> None:
        await store.open(NAME, 1)
        for rid in "abc":
            await add(store, rid)
        with pytest.raises(SessionRefused, match="3 turns at most, and would have 4"):
            await add(store, "d")
        with pytest.raises(SessionRefused, match="80 bytes at most, and would have 84"):
            await add(store, "d", new=(1,) * 21, replace=True)
        await add(store, "d", new=(1,) * 20, replace=True)

    run(test)


def test_a_session_lives_as_long_as_it_is_used(run: Run, server: Server) -> None:
    async def test(store: SessionStore) -> None:
        await store.open(NAME, 1)
        client = server.client()
        key = SESSION_PREFIX + NAME
        for use in (add(store, "a"), add(store, "b", "a"), store.discard(NAME, "b")):
            client.pexpire(key, 400)
            await use
            assert 20_000 < client.pttl(key) <= 30_000
        client.pexpire(key, 1)
        wait_until(lambda: not client.exists(key))
        with pytest.raises(SessionRefused, match="not used for too long"):
            await store.read(after("a"))

    run(test, ttl_s=30.0)


@pytest.mark.verify
def test_a_redis_that_hangs_or_is_gone_is_said_in_time(run: Run, server: Server) -> None:
    async def test(store: SessionStore) -> None:
        for call in (
            store.open(NAME, 1),
            store.close(NAME),
            store.read(after("")),
            store.begin(after(""), "a", 0, [1]),
            store.end(NAME, "a", [1]),
            store.discard(NAME, "a"),
        ):
            with pytest.raises(Unavailable, match="Redis"):
                await asyncio.wait_for(call, DEADLINE_S + LATE_S)

    run(test, url=f"redis://127.0.0.1:{free_port()}")
    server.child.process.send_signal(signal.SIGSTOP)
    try:
        run(test)
    finally:
        server.child.process.send_signal(signal.SIGCONT)


def test_what_redis_has_missed_it_is_told_when_it_is_back(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(store: SessionStore) -> None:
        redis = server.child.process
        monkeypatch.setattr(store_module, "DEADLINE_S", 0.05)
        redis.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await store.open(NAME, 7)
        redis.send_signal(signal.SIGCONT)
        monkeypatch.setattr(store_module, "DEADLINE_S", DEADLINE_S)
        assert await store.open(NAME, 7), "it is its own, whether or not Redis had heard"
        assert not await store.open(NAME, 7)
        await store.begin(after(""), "a", 0, [1, 2])
        await store.begin(after(""), "b", 0, [1, 2])
        monkeypatch.setattr(store_module, "DEADLINE_S", 0.05)
        redis.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await store.end(NAME, "a", [3])
        with pytest.raises(Unavailable):
            await store.discard(NAME, "b")
        redis.send_signal(signal.SIGCONT)
        monkeypatch.setattr(store_module, "DEADLINE_S", DEADLINE_S)
        assert (await store.read(after("a"))).chain == [TurnRecord(0, [1, 2], [3])]
        with pytest.raises(SessionRefused, match="has no turn"):
            await store.read(after("b"))
        session = server.client().hgetall(SESSION_PREFIX + NAME)
        assert (session[b"turns"], session[b"bytes"]) == (b"1", b"12"), "each counts once"

    try:
        run(test)
    finally:
        server.child.process.send_signal(signal.SIGCONT)


def test_another_coordinator_finds_what_one_has_caught_up_with(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(store: SessionStore) -> None:
        other = SessionStore(connect_async(server.url, 1.0), 60.0)
        assert await store.open(NAME, 7)
        await store.begin(after(""), "a", 0, [1, 2])
        monkeypatch.setattr(store_module, "DEADLINE_S", 0.05)
        monkeypatch.setattr(store_module, "CATCH_UP_EVERY_S", 0.01)
        server.child.process.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await store.end(NAME, "a", [3])
        catching_up = asyncio.create_task(store.catch_up_for_ever())
        server.child.process.send_signal(signal.SIGCONT)
        monkeypatch.setattr(store_module, "DEADLINE_S", DEADLINE_S)
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while len(store._unwritten) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        assert (await other.read(after("a"))).chain == [TurnRecord(0, [1, 2], [3])]
        catching_up.cancel()

    try:
        run(test)
    finally:
        server.child.process.send_signal(signal.SIGCONT)


def test_sessions_work_in_a_cluster(tmp_path: Path, run: Run) -> None:
    # The bus of a Cluster lies 10,000 above, below what connections are given.
    port = next(port for port in iter(free_port, 0) if port < 22_768)
    server = Server(tmp_path / "cluster", "--cluster-enabled", "yes", port=port)
    try:
        client = server.client()
        client.execute_command("CLUSTER ADDSLOTS", *range(16_384))
        wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok")

        async def test(store: SessionStore) -> None:
            assert await store.open(NAME, 7)
            await add(store, "a")
            await add(store, "b", "a", replace=True)
            assert len((await store.read(after("b"))).chain) == 2
            await store.discard(NAME, "b")
            await store.close(NAME)

        run(test, url=f"redis+cluster://127.0.0.1:{port}")
    finally:
        server.stop()
