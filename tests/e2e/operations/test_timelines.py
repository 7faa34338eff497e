"""Where the time of requests went, as a running cluster and `kvrelay trace` tell it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvrelay.errors import ClientError
from tests.support.engine.driving import prompt_of
from tests.support.kvrelay.timelines import assert_gapless
from tests.support.processes.clusters import Cluster, body_of, wait_until
from tests.support.processes.commands import assert_refused, kvrelay


def computed_tokens(timeline: dict[str, Any]) -> int:
    return sum(s["details"]["tokens"] for s in timeline["spans"] if s["name"] == "compute")


def timeline_of(cluster: Cluster, name: str) -> dict[str, Any]:
    timeline = cluster.admin.timeline(name)
    assert_gapless(timeline)
    return timeline


def test_spans_sum_to_the_whole_and_a_hit_computes_little(pair_cluster: Cluster) -> None:
    pair_cluster.flush()
    prompt = prompt_of(300, 199, seed=71)
    first, again = (pair_cluster.generate(prompt)["meta_info"] for _ in range(2))
    timeline, hit = (timeline_of(pair_cluster, meta["id"]) for meta in (first, again))
    names = [span["name"] for span in timeline["spans"]]
    order = ["http_in", "tokenize", "route", "wire", "compute", "decode", "reply"]
    assert [name for name in dict.fromkeys(names) if name in order] == order
    assert {span["where"] for span in timeline["spans"]} >= {"coordinator", "p0", "d0"}
    assert computed_tokens(timeline) == timeline["prompt_tokens"] == 300
    assert computed_tokens(hit) == 300 - again["cached_tokens"] <= 300 - 288
    assert timeline["computing_ms"] <= timeline["first_token_ms"] <= timeline["total_ms"]
    assert timeline["state"] == "ended" and timeline["outcome"] == "length"
    listed = {one["rid"]: one for one in pair_cluster.admin.requests()}
    assert {first["id"], again["id"]} <= listed.keys()
    assert all("spans" not in one for one in listed.values())


def test_every_name_that_a_client_knows_finds_the_timeline(pair_cluster: Cluster) -> None:
    (model,) = pair_cluster.http.get("/v1/models").json()["data"]
    asked = {"model": model["id"], "prompt": prompt_of(20, 199, seed=72), "max_tokens": 3}
    headers = {"X-Request-Id": "from-the-proxy"}
    completion = pair_cluster.http.post("/v1/completions", json=asked, headers=headers)
    assert completion.status_code == 200, completion.text
    named = timeline_of(pair_cluster, completion.json()["id"])
    assert timeline_of(pair_cluster, "from-the-proxy")["rid"] == named["rid"]
    native = body_of(prompt_of(20, 199, seed=73)) | {"stream": True, "rid": "with/slash ü"}
    assert pair_cluster.http.post("/generate", json=native).status_code == 200
    streamed = timeline_of(pair_cluster, "with/slash ü")
    names = [span["name"] for span in streamed["spans"]]
    assert names.index("form_event") < names.index("write_event") < names.index("reply")


def test_a_request_whose_client_has_left_is_kept(pair_cluster: Cluster) -> None:
    body = body_of(prompt_of(30, 199, seed=74)) | {"stream": True, "rid": "left"}
    # Held by a pause, it cannot end before it is looked at.
    paused = pair_cluster.http.post("/pause_generation", json={"mode": "retract"})
    assert paused.status_code == 200, paused.text
    try:
        with pair_cluster.http.stream("POST", "/generate", json=body):
            held = timeline_of(pair_cluster, "left")
            assert (held["state"], held["outcome"]) == ("waiting", "")
            assert held["spans"][-1]["name"] == "queue"
        wait_until(lambda: pair_cluster.admin.timeline("left")["state"] == "ended", "its end")
    finally:
        pair_cluster.http.post("/continue_generation")
    ended = timeline_of(pair_cluster, "left")
    assert (ended["outcome"], ended["error"]) == ("client_left", "the client has left")


def test_the_command_prints_a_waterfall(pair_cluster: Cluster) -> None:
    rid = pair_cluster.generate(prompt_of(40, 199, seed=75))["meta_info"]["id"]
    url = ("--url", pair_cluster.local.url)
    shown = kvrelay("trace", rid, *url)
    assert shown.returncode == 0, shown.stderr
    assert f"request {rid}: length, 40 prompt tokens" in shown.stdout
    assert "computing is " in shown.stdout and " ms to the first token" in shown.stdout
    assert "tokens 40" in shown.stdout and "█" in shown.stdout
    raw = kvrelay("trace", rid, "--json", *url)
    assert json.loads(raw.stdout)["spans"] == pair_cluster.admin.timeline(rid)["spans"]
    assert_refused(kvrelay("trace", "nobody", *url), "nobody", "10 minutes", "meta_info.id")
    with pytest.raises(ClientError, match="10 minutes"):
        pair_cluster.admin.timeline("nobody")


@pytest.mark.parametrize("query", ["limit=0", "state=asleep", "older_than_s=-1"])
def test_a_bad_filter_says_what_is_wrong(pair_cluster: Cluster, query: str) -> None:
    response = pair_cluster.http.get(f"/admin/requests?{query}")
    assert response.status_code == 400
    assert query.partition("=")[0] in response.json()["error"]["message"]
