"""/admin/* on a running cluster: exact numbers, what operators do, and who may."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from coordinator.http.native.schema import tenant
from infra.cli import main
from infra.models import EMBEDDED
from kvrelay.client import Client
from kvrelay.errors import ClientError
from protocol.hashing import PageHasher
from protocol.ids import Node
from protocol.layout import KVLayout
from protocol.namespace import Namespace
from protocol.redis import ownership
from protocol.redis.client import connect
from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster, start_cluster, wait_until
from tests.support.processes.commands import assert_refused, kvrelay

PAGE_SIZE = 16
TOKEN = "let-me-in-0417"
STORY = "<|user|>Tell me a short story about a girl called Lina and her red boat.<|end|>"
COUNTED = {
    "prompt_tokens": "prompt_tokens",
    "cached_tokens": "cached_tokens",
    "fetched_tokens": "fetched_tokens",
    "completion_tokens": "completion_tokens",
    "transferred_pages": "transferred_pages",
}
"""Name in the cluster's counts by name in `meta_info`."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A single node behind an admin token, whose coordinator may show words of prompts."""
    flags = {"admin_token": TOKEN, "show_prompt_words": "true", "log_level": "debug"}
    cluster = start_cluster(tmp_path_factory, EMBEDDED, 0, 1, flags)
    yield cluster
    cluster.local.stop()


def cached(cluster: Cluster, prompt: list[int], cache_salt: str = "") -> int:
    """Runs a prompt and returns how many of its tokens were found in a cache."""
    return int(cluster.generate(prompt, cache_salt)["meta_info"]["cached_tokens"])


def held_pages(cluster: Cluster) -> dict[str, int]:
    """Returns the number of cached pages that are full, by node, by its newest heartbeat."""
    loads = {name: node["load"] for name, node in cluster.settle().items()}
    return {name: load["cached_pages"] - load["tail_pages"] for name, load in loads.items()}


def wait_until_owned(cluster: Cluster) -> None:
    """Waits until the record of ownership has caught up with what the nodes of an idle cluster
    hold."""
    held = held_pages(cluster)
    wait_until(
        lambda: held == {name: node["owned_pages"] for name, node in cluster.nodes().items()},
        "ownership of all that is held",
    )


def test_counts_are_those_of_the_answers_and_pages_those_of_the_nodes(
    pair_cluster: Cluster,
) -> None:
    pair_cluster.flush()
    before = pair_cluster.admin.cache_stats()
    common = prompt_of(70, 199, seed=200)
    prompts = [common + prompt_of(n, 199, seed=201) for n in (5, 40, 90)]
    prompts += [prompts[0], prompt_of(30, 199, seed=202)]
    metas = [pair_cluster.generate(prompt, max_new_tokens=9)["meta_info"] for prompt in prompts]
    wait_until_owned(pair_cluster)
    after = pair_cluster.admin.cache_stats()

    now, then = after["cluster"], before["cluster"]
    for count, key in COUNTED.items():
        assert now[count] - then[count] == sum(meta[key] for meta in metas), count
    assert now["requests"] - then["requests"] == len(prompts)
    num_hit = sum(meta["cached_tokens"] > 0 for meta in metas)
    assert now["requests_hit"] - then["requests_hit"] == num_hit == 3
    for counts in (now, now["last_5_minutes"]):
        assert counts["token_hit_ratio"] == round(
            counts["cached_tokens"] / counts["prompt_tokens"], 4
        )
        assert counts["request_hit_ratio"] == round(counts["requests_hit"] / counts["requests"], 4)

    audit = pair_cluster.admin.audit(repair=False)
    nodes = pair_cluster.nodes()
    assert audit["clean"] and audit["nodes"].keys() == after["nodes"].keys() == {"d0", "p0"}
    for name, node in after["nodes"].items():
        pages, load = node["pages"], nodes[name]["load"]
        assert node["owned_pages"] == audit["nodes"][name]["pages"] > 0
        assert node["owned_pages"] == pages["cached"] - load["tail_pages"]
        assert pages["total"] == nodes[name]["num_pages"] == pages["used"] + pages["free"]
        assert pages["held"] == 0 and pages["free"] == load["free_pages"]
    counted = {k: n - then["node_counters"][k] for k, n in now["node_counters"].items()}
    computed, reused = counted["computed_tokens"], counted["reused_tokens"]
    assert reused == sum(meta["cached_tokens"] for meta in metas)
    assert computed + reused == sum(meta["prompt_tokens"] for meta in metas)
    moved = sum(meta["transferred_pages"] for meta in metas)
    assert counted["pages_sent"] == moved
    received = (s["nodes"]["d0"]["counters"]["pages_received"] for s in (before, after))
    assert moved == -next(received) + next(received)
    assert now["unique_owned_pages"] + now["duplicate_owned_pages"] == sum(
        node["owned_pages"] for node in after["nodes"].values()
    )
    assert now["running_requests"] == now["waiting_requests"] == 0 and now["redis_connected"]


def test_the_shared_prefix_is_among_the_hottest(pair_cluster: Cluster) -> None:
    common = prompt_of(4 * PAGE_SIZE, 199, seed=210)
    for salt in ("", "acme"):
        for i in range(4):
            pair_cluster.generate(common + prompt_of(20, 199, seed=211 + i), salt)
    wait_until_owned(pair_cluster)
    node = pair_cluster.nodes()["p0"]
    hasher = PageHasher(node["model_fingerprint"], KVLayout(**node["layout"]))
    listed = {prefix["page_hash"]: prefix for prefix in pair_cluster.admin.prefixes(limit=1000)}
    assert list(listed) == [prefix["page_hash"] for prefix in pair_cluster.admin.prefixes(1000)]
    for salt in ("", "acme"):
        prefix = listed[hasher.hashes(common, Namespace(tenant(salt, "")))[-1].hex()]
        assert prefix["tokens"] == 4 * PAGE_SIZE and prefix["hits"] == 3
        assert prefix["owners"] == ["d0", "p0"] and prefix["hits_overcounted_by_at_most"] == 0
        assert prefix["first_words"] is None and prefix["salted"] == bool(salt)
    hits = [prefix["hits"] for prefix in pair_cluster.admin.prefixes()]
    assert len(hits) <= 20 and hits == sorted(hits, reverse=True)
    assert len(pair_cluster.admin.prefixes(limit=1)) == 1
    refused = pair_cluster.http.get("/admin/cache/prefixes?limit=0")
    assert refused.status_code == 400 and "limit" in refused.json()["error"]["message"]


def test_words_are_shown_when_allowed_and_never_a_tenants(guarded: Cluster) -> None:
    for salt in ("", "acme"):
        for _ in range(2):
            guarded.generate(STORY, salt)
    words = {prefix["salted"]: prefix["first_words"] for prefix in guarded.admin.prefixes()}
    assert "Tell me a short story" in words[False]
    assert words[True] is None


def test_a_flush_takes_what_it_names_and_no_more(pair_cluster: Cluster) -> None:
    pair_cluster.flush()
    prompt = prompt_of(100, 199, seed=220)  # 6 full pages, and a tail
    for salt in ("", "acme", "other"):
        assert cached(pair_cluster, prompt, salt) == 0
        assert cached(pair_cluster, prompt, salt) == 99
    pair_cluster.settle()
    flushed = pair_cluster.admin.flush(cache_salt="acme")
    assert flushed == {"pages": {"d0": 7, "p0": 7}, "unanswered": []}
    assert [cached(pair_cluster, prompt, salt) for salt in ("", "other", "acme")] == [99, 99, 0]
    pair_cluster.settle()
    assert pair_cluster.admin.flush(cache_salt="")["pages"] == {"d0": 7, "p0": 7}
    assert [cached(pair_cluster, prompt, salt) for salt in ("acme", "other", "")] == [99, 99, 0]
    held = held_pages(pair_cluster)
    assert held == {"d0": 18, "p0": 18}
    assert pair_cluster.admin.flush(node="p0", cache_salt="acme")["pages"] == {"p0": 7}
    assert pair_cluster.admin.flush(node="p0")["pages"] == {"p0": 14}
    assert held_pages(pair_cluster) == {"d0": 18, "p0": 0}
    assert pair_cluster.admin.flush()["pages"] == {"d0": 21, "p0": 0}
    wait_until(lambda: pair_cluster.stats()["unique_owned_pages"] == 0, "an empty index")


@pytest.mark.parametrize(
    ("raw", "status", "word"),
    [
        (b'{"node": "nobody"}', 404, "there are d0, p0"),
        (b'{"node": 3}', 400, "strings"),
        (b'{"nodes": ["p0"]}', 400, "nothing else"),
        (b"[1]", 400, "JSON object"),
        (b"{", 400, "no JSON"),
    ],
)
def test_a_bad_flush_says_what_is_wrong(
    pair_cluster: Cluster, raw: bytes, status: int, word: str
) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}  # as `curl -d` sends
    response = pair_cluster.http.post("/admin/cache/flush", content=raw, headers=form)
    assert response.status_code == status
    assert word in response.json()["error"]["message"]


def test_a_drained_node_ends_its_work_and_gets_no_more(tiny_cluster: Cluster) -> None:
    params = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 400}
    body = {"text": STORY, "sampling_params": params, "stream": True}
    update: dict[str, Any] = {}
    drained = ""
    with tiny_cluster.http.stream("POST", "/generate", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            update = json.loads(line.removeprefix("data: "))
            if not drained:
                drained = update["meta_info"]["decode_node"]
                answer = tiny_cluster.admin.drain(drained)
                assert answer == {
                    "name": drained,
                    "draining": True,
                    "kept": False,
                    "unfinished_requests": 1,
                }
                others = [tiny_cluster.generate(f"{i} {STORY}")["meta_info"] for i in range(6)]
                assert drained not in {meta["decode_node"] for meta in others}
    assert update["meta_info"]["finish_reason"] == {"type": "length", "length": 400}
    assert update["meta_info"]["attempts"] == 1 and update["meta_info"]["decode_node"] == drained
    assert tiny_cluster.nodes()[drained]["draining"]
    assert tiny_cluster.admin.cache_stats()["nodes"][drained]["draining"]
    (other,) = {"d0", "d1"} - {drained}
    assert not tiny_cluster.admin.undrain(drained)["draining"]
    tiny_cluster.admin.drain(other)
    tiny_cluster.admin.drain("p0")
    try:
        meta = tiny_cluster.generate(STORY)["meta_info"]
        assert (meta["prefill_node"], meta["decode_node"]) == ("p1", drained)
    finally:
        tiny_cluster.admin.undrain(other)
        tiny_cluster.admin.undrain("p0")
    assert not any(node["draining"] for node in tiny_cluster.nodes().values())
    with pytest.raises(ClientError, match="no node is named 'nobody'; there are d0, d1, p0, p1"):
        tiny_cluster.admin.drain("nobody")


def test_the_command_drains_a_node_and_says_for_how_long(
    tiny_cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--url", tiny_cluster.local.url)
    for keep, until in (((), "until it restarts"), (("--keep",), "until `kvrelay undrain`")):
        main(["drain", "d0", *keep, *where])
        assert f"d0 gets no new requests {until}" in capsys.readouterr().out
        assert tiny_cluster.nodes()["d0"]["draining"]
    main(["undrain", "d0", *where])
    assert "d0 gets requests again" in capsys.readouterr().out
    assert not tiny_cluster.nodes()["d0"]["draining"]


def test_an_explanation_runs_nothing_and_comes_true(tiny_cluster: Cluster) -> None:
    for text in ("A cold prompt. " + STORY, "A cold prompt. " + STORY, "A cold prompt, no more."):
        wait_until_owned(tiny_cluster)
        before = tiny_cluster.settle()
        explanation = tiny_cluster.admin.explain(text, temperature=0.0, max_new_tokens=8)
        assert tiny_cluster.admin.explain(text, max_new_tokens=8) == explanation
        loads = {name: counters(node) for name, node in before.items()}
        after = tiny_cluster.settle()
        assert {name: counters(node) for name, node in after.items()} == loads
        assert tiny_cluster.stats()["running_requests"] == 0
        answer = tiny_cluster.generate(text)["meta_info"]
        choice = explanation["choice"]
        assert answer["prefill_node"] == choice["prefill"]
        assert answer["decode_node"] == choice["decode"]
        assert answer["fetched_from"] == choice["fetch_from"]
        assert answer["route_reason"] == explanation["reason"]
        assert answer["route_runner_up"] == explanation["runner_up"]
        assert answer["prompt_tokens"] == explanation["prompt_tokens"]
        chosen = [c["node"] for c in explanation["candidates"]["prefill"] if c["chosen"]]
        assert chosen == [choice["prefill"]]
        assert [c["chosen"] for c in explanation["candidates"]["decode"]].count(True) == 1


def test_prefill_nodes_alone_are_explained(pair_cluster: Cluster) -> None:
    """They answer when no decode node takes requests."""
    pair_cluster.admin.drain("d0")
    try:
        explanation = pair_cluster.admin.explain(prompt_of(40, 199, seed=231), max_new_tokens=8)
    finally:
        pair_cluster.admin.undrain("d0")
    assert explanation["choice"]["decode"] == "p0" and explanation["prompt_pages"] == 3
    assert explanation["candidates"]["decode"] == []


def counters(node: dict[str, Any]) -> dict[str, int]:
    return dict(node["load"]["counters"])


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "give text or input_ids"),
        ({"text": ["a", "b"]}, "one prompt"),
        ({"messages": []}, "messages"),
        ({"text": ""}, "empty"),
        ({"input_ids": [1] * 5000}, "5000"),
    ],
)
def test_what_cannot_be_explained_says_why(
    pair_cluster: Cluster, body: dict[str, Any], word: str
) -> None:
    response = pair_cluster.http.post("/admin/route/explain", json=body)
    assert response.status_code == 400 and word in response.json()["error"]["message"]


def test_tenants_share_nothing(pair_cluster: Cluster) -> None:
    pair_cluster.flush()
    prompt = prompt_of(100, 199, seed=230)
    pair_cluster.generate(prompt, "acme")
    wait_until_owned(pair_cluster)

    def owned(salt: str) -> set[int]:
        candidates = pair_cluster.admin.explain(prompt, salt)["candidates"]
        everyone = [one for task in candidates.values() for one in task]
        assert all(one["fetch_pages"] == 0 for one in everyone)
        return {one["owned_pages"] for one in everyone}

    assert owned("acme") == {6} and owned("other") == owned("") == {0}
    for salt in ("other", ""):
        meta = pair_cluster.generate(prompt, salt)["meta_info"]
        assert meta["cached_tokens"] == meta["fetched_tokens"] == 0
        assert meta["transferred_pages"] == 7, "all of them: another's are none of its own"
        assert "0 of 7 pages" in meta["route_reason"] and "acme" not in json.dumps(meta)
    assert cached(pair_cluster, prompt, "acme") == 99


def admin_calls(cluster: Cluster) -> list[tuple[str, str]]:
    """Returns method and path of every call under /admin, but for the files of the live page."""
    documented = cluster.http.get("/openapi.json").json()["paths"]
    calls = [(m.upper(), p) for p, methods in documented.items() for m in methods]
    calls.append(("GET", "/admin/events?snapshots=1"))
    return [(m, p.format(name="d0", rid="x")) for m, p in calls if p.startswith("/admin")]


def test_every_admin_path_wants_the_token(guarded: Cluster) -> None:
    calls = admin_calls(guarded)
    assert len(calls) >= 11
    with httpx.Client(base_url=guarded.local.url) as stranger:
        for method, path in calls:
            for given in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xfc", TOKEN):
                headers = [(b"Authorization", given.encode())]
                response = stranger.request(method, path, headers=headers)
                assert response.status_code == 401, (method, path, given)
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert "admin token" in response.json()["error"]["message"]
            headers = [(b"Authorization", f"bearer {TOKEN}".encode())]
            assert stranger.request(method, path, headers=headers).status_code in (
                200,
                400,
                404,
            )
        server = stranger.get("/server_info")
        assert server.status_code == 200 and server.json()["admin_token"] == "***"
        assert stranger.get("/health").status_code == 200
    guarded.admin.undrain("d0")
    assert TOKEN not in server.text
    logs = [path.read_text() for path in guarded.local.log_dir.glob("*.log")]
    assert any("admin_token=***" in log for log in logs)
    assert not any(TOKEN in log for log in logs)


def test_the_command_line_has_the_token(guarded: Cluster) -> None:
    url = ("--url", guarded.local.url)
    assert_refused(kvrelay("stats", *url), "asks for an admin token", "KVRELAY_ADMIN_TOKEN")
    wrong = kvrelay("audit", *url, "--admin-token", "wrong")
    assert_refused(wrong, "refused the admin token", "--admin-token")
    stats = kvrelay("stats", *url, "--admin-token", TOKEN)
    assert stats.returncode == 0 and "d0" in stats.stdout


def test_examples_have_the_keys_of_real_answers(tiny_cluster: Cluster) -> None:
    rid = [tiny_cluster.generate(STORY)["meta_info"]["id"] for _ in range(2)][-1]
    paths = tiny_cluster.http.get("/openapi.json").json()["paths"]
    prompt = {"text": STORY}
    for path, methods in paths.items():
        if not path.startswith("/admin"):
            continue
        ((method, described),) = methods.items()
        assert described["summary"] and described["description"], path
        assert described["security"], path
        body = prompt if "requestBody" in described and "explain" in path else {}
        real = tiny_cluster.http.request(method, path.format(name="d0", rid=rid), json=body)
        assert real.status_code == 200, real.text
        content = described["responses"]["200"]["content"]["application/json"]
        assert_same_keys(content["example"], real.json(), path)
    tiny_cluster.admin.undrain("d0")


def assert_same_keys(example: Any, real: Any, where: str) -> None:
    if where.endswith(".details"):
        return  # each kind of span has its own
    if isinstance(example, dict) and isinstance(real, dict):
        if real and all(re.fullmatch(r"[pd]\d", key) for key in real):  # by node
            (shown, *_) = example.values()
            for key, value in real.items():
                assert_same_keys(shown, value, f"{where}.{key}")
            return
        assert example.keys() == real.keys(), where
        for key in real:
            assert_same_keys(example[key], real[key], f"{where}.{key}")
    elif isinstance(example, list) and isinstance(real, list):
        for one in real if example else ():
            assert_same_keys(example[0], one, f"{where}[]")
    else:
        both = {type(value) for value in (example, real)}
        assert both in ({int, float}, {int}) or len(both - {type(None)}) <= 1, where


def under_load(cluster: Cluster, act: Callable[[], Any]) -> list[Any]:
    """Calls `act` again and again while requests come and go, and returns what it returned."""
    enough = threading.Event()

    def client(number: int) -> int:
        done = 0
        while not enough.is_set():
            cluster.generate(prompt_of(150 + done % 7, 199, seed=1000 * number + done % 40))
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(1, 5)]
        try:
            results = [act() for _ in range(3)]
        finally:
            enough.set()
        assert all(one.result() > 0 for one in clients)
    return results


def test_a_healthy_cluster_is_clean_under_load(pair_cluster: Cluster) -> None:
    audits = under_load(pair_cluster, lambda: pair_cluster.admin.audit(repair=False))
    assert all(audit["clean"] for audit in audits), audits
    assert all(node["pages"] > 0 for node in audits[-1]["nodes"].values())


def test_differences_in_redis_are_found_and_repaired(pair_cluster: Cluster) -> None:
    pair_cluster.flush()
    prompt = prompt_of(100, 199, seed=240)
    pair_cluster.generate(prompt)
    wait_until_owned(pair_cluster)
    plant_differences(pair_cluster)
    told = kvrelay("audit", "--no-repair", "--url", pair_cluster.local.url)
    assert told.returncode == 1 and "differs" in told.stdout
    audit = pair_cluster.admin.audit()
    assert not audit["clean"]
    assert audit["nodes"]["d0"]["clean"] and audit["nodes"]["d0"]["repairs"] == []
    assert audit["nodes"]["p0"] == {
        "clean": False,
        "pages": 6,
        "missing_in_redis": 2,
        "extra_in_redis": 1,
        "missing_in_mirror": 1,
        "extra_in_mirror": 2,
        "problem": "",
        "repairs": ["the node writes its record again"],
    }
    wait_until(lambda: pair_cluster.admin.audit(repair=False)["clean"], "the repair")
    repaired = kvrelay("audit", "--url", pair_cluster.local.url)
    assert repaired.returncode == 0 and "clean" in repaired.stdout
    assert pair_cluster.nodes()["p0"]["owned_pages"] == 6
    assert cached(pair_cluster, prompt) == 99


def plant_differences(cluster: Cluster) -> None:
    """Removes two pages of p0 from its record in Redis, and adds one that it never had."""
    redis = connect(cluster.local.redis_url, timeout_s=5.0)
    node = Node("p0", cluster.nodes()["p0"]["incarnation"])
    key = ownership.NodeKeys.of(node).pages
    assert redis.srem(key, *sorted(redis.smembers(key))[:2]) == 2
    assert redis.sadd(key, b"nobody has this!") == 1
    redis.close()


def test_stats_and_explanations_are_shown_as_tables(tiny_cluster: Cluster) -> None:
    url = ("--url", tiny_cluster.local.url)
    tiny_cluster.generate(STORY)
    stats = kvrelay("stats", *url)
    assert stats.returncode == 0, stats.stderr
    for word in ("d0", "p1", "prefill", "evicted", "fetched", "Redis connected", "unique"):
        assert word in stats.stdout
    explained = kvrelay("explain", STORY, "--cache-salt", "acme", *url)
    assert explained.returncode == 0, explained.stderr
    for word in ("p0", "d1", "→", "first token", "why:", "runner-up:", "0 of"):
        assert word in explained.stdout
    assert_refused(kvrelay("stats", "--url", "localhost:30000"), "http://", "localhost:30000")


def test_the_client_names_what_is_no_url() -> None:
    for url in ("localhost:30000", "ftp://x", ""):
        with pytest.raises(ClientError, match="must begin with http://"):
            Client(url)
