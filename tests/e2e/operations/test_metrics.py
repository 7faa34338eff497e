"""/metrics of a running cluster, as Prometheus reads it."""

from __future__ import annotations

from functools import partial

import httpx

from coordinator.http.scrapes.familiar_names import NAMES
from coordinator.metrics import table
from node.metrics import table as node_table
from tests.support.processes.clusters import Cluster, wait_until
from tests.support.processes.scrapes import Samples, samples_in, total


def scrape(cluster: Cluster) -> Samples:
    """Returns every sample of the coordinator."""
    return samples_in(cluster.http.get("/metrics").raise_for_status().text)


def test_a_request_is_in_every_series_that_it_concerns(pair_cluster: Cluster) -> None:
    """A disaggregated request has a stage in each histogram, and its tokens are counted."""
    before = scrape(pair_cluster)
    prompt = [(17 * i) % 190 + 3 for i in range(400)]
    meta = pair_cluster.generate(prompt, "of-metrics", max_new_tokens=6)["meta_info"]
    assert meta["prefill_node"] is not None

    wait_until(
        lambda: (
            total(scrape(pair_cluster), "kvrelay_requests_total")
            > total(before, "kvrelay_requests_total")
        ),
        "the request is counted",
    )
    after = scrape(pair_cluster)

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert grown("kvrelay_requests_total", outcome="length") == 1
    assert grown("kvrelay_prompt_tokens_total") == len(prompt)
    assert grown("kvrelay_generation_tokens_total") == 6
    assert grown("kvrelay_time_to_first_token_seconds_count", path="remote") == 1
    assert grown("kvrelay_inter_token_latency_seconds_count") == 5
    assert grown("kvrelay_transferred_pages_total") == meta["transferred_pages"] > 0
    assert grown("kvrelay_http_responses_total", endpoint="/generate", status="200") == 1
    for stage in ("queue", "prefill", "transfer_exposed", "first_decode_step"):
        assert grown(f"kvrelay_{stage}_seconds_count") == 1, stage
    assert grown("kvrelay_ttft_forecast_error_seconds_bucket", le="+Inf") == 1
    first = grown("kvrelay_time_to_first_token_seconds_sum")
    parts = grown("kvrelay_queue_seconds_sum") + grown("kvrelay_prefill_seconds_sum")
    assert 0 < parts <= first + 1e-6


def test_every_metric_of_the_table_is_told(pair_cluster: Cluster) -> None:
    text = pair_cluster.http.get("/metrics").text
    for metric in table.METRICS:
        assert f"# HELP {metric.name} {metric.help}" in text, metric.name
    for name in NAMES["sglang"]:
        assert f"# TYPE {name.name} {name.source.kind}" in text, name.name
    assert "process_resident_memory_bytes" in text


def test_nodes_are_seen_as_gauges(pair_cluster: Cluster) -> None:
    samples = scrape(pair_cluster)
    assert total(samples, "kvrelay_nodes", role="prefill", state="ready") == 1
    assert total(samples, "kvrelay_nodes", role="decode", state="ready") == 1
    assert total(samples, "kvrelay_redis_up") == 1


def test_a_node_tells_its_own_metrics(pair_cluster: Cluster) -> None:
    """They come from the health port, without a coordinator, with the names of endpoint pickers."""
    pair_cluster.generate(list(range(3, 150)), "of-node-metrics", max_new_tokens=3)
    for name, node in pair_cluster.nodes().items():
        url = f"http://{node['health_address']}/metrics"
        wait_until(partial(_has_steps, url), "the steps are told")
        text = httpx.get(url).text
        samples = samples_in(text)
        for metric in node_table.METRICS:
            assert f"# HELP {metric.name} {metric.help}" in text, metric.name
        assert total(samples, "kvrelay_node_ready", node=name, role=node["role"]) == 1
        assert total(samples, "kvrelay_pages") == node["num_pages"]
        assert total(samples, "sglang:num_running_reqs") >= 0
        assert total(samples, "kvrelay_transfer_bytes_total") > 0
        assert total(samples, "process_resident_memory_bytes") > 50e6


def _has_steps(url: str) -> bool:
    return total(samples_in(httpx.get(url).text), "kvrelay_step_seconds_count") > 0
