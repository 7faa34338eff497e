"""`kvrelay bench serve` as a person meets it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cli import main
from tests.support.bench.scripted_server import ScriptedServer, scripted_server

SMALL = ("--num-requests", "6", "--output-tokens", "4", "--input-tokens", "8")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


def measured(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Returns the last line printed."""
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_the_report(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "run.json", tmp_path / "run.svg"
    runs = ("--num-runs", "3", "--flush-cache", "--num-gpus", "2")
    limits = ("--slo", "ttft=60000", "--slo", "itl=60000")
    files = ("--output", str(output), "--plot", str(plot))
    main(["bench", "serve", "--url", server.url, *SMALL, *runs, *limits, *files])
    document = measured(capsys)
    assert json.loads(output.read_text()) == document
    assert document["is_result"] and len(document["runs"]) == 3
    assert server.num_flushes == 3 and document["cache"] == "flushed before each run"
    for run in document["runs"]:
        assert (run["num_requests"], run["num_errors"], run["goodput_share"]) == (6, 0, 1.0)
        assert run["goodput_per_s_per_gpu"] == run["goodput_per_s"] / 2
        assert run["itl_ms"]["count"] == 6 * 3
        assert {"p50", "p90", "p99", "error_rate"} <= run["ttft_ms"].keys()
    spread = document["spread"]["requests_per_s"]
    assert spread["min"] <= spread["median"] <= spread["max"]
    assert document["settings"]["model"] == "scripted"
    picture = ET.parse(plot).getroot()
    assert picture.tag.endswith("svg")
    assert len(picture.findall(".//{*}polyline")) == 5


def test_without_a_flush_the_first_run_is_told_apart(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["bench", "serve", "--url", server.url, *SMALL, "--num-runs", "3"])
    document = measured(capsys)
    later = [run["requests_per_s"] for run in document["runs"][1:]]
    assert document["spread"]["requests_per_s"]["min"] == min(later)
    assert document["spread"]["requests_per_s"]["max"] == max(later)


def test_a_run_with_too_many_errors_is_not_a_result(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fates += ["well", "429"]  # the first request is the warm-up
    with pytest.raises(SystemExit) as ended:
        main(["bench", "serve", "--url", server.url, *SMALL])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "run 1 is not a result: 16.7%" in shown and "refused with 429" in shown
    document = json.loads(shown.splitlines()[-1])
    assert not document["is_result"]
    assert document["runs"][0]["errors"] == {"status 429": 1}


def test_secrets_are_not_reported(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["bench", "serve", "--url", server.url, *SMALL, "--api-key", "geheim"])
    assert "geheim" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--rate", "1", "--concurrency", "2"), "leave one out"),
        (("--workload", "sharegpt"), "give --dataset"),
        (("--workload", "mooncake", "--dataset", "/nowhere"), "cannot read"),
        (("--num-requests", "0"), "--num-requests is 0"),
        (("--speedup", "0"), "above 0"),
        (("--plot", "a.png"), ".svg"),
        (("--slo", "speed=1"), "--slo ttft=200"),
        (("--vocab-size", "8"), "--vocab-size is 8"),
        (("--url", "http://127.0.0.1:1"), "--url names another"),
    ],
)
def test_what_cannot_be_done_is_said(
    server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    sentence: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "serve", "--url", server.url, *flags])
    assert ended.value.code == 1
    assert sentence in capsys.readouterr().err
    assert not server.requests
