"""Load generators, unchanged and with the fewest flags they take, against a cluster.

They run in environments of their own, which `make verify` makes: SGLang's bench_serving in that of
SGLang's front end, where no torch delays its start, the others in one more. bench_serving loads its
tokenizer by the name that the server gives to its model, so it runs in a folder where that name is
a directory.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra.models import EMBEDDED
from tests.e2e.clients.environment import PYTHON, needs_front_end
from tests.support.processes.clusters import Cluster

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(os.environ.get("KVRELAY_LOAD", ROOT / ".venv-load")) / "bin"
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
TIMEOUT_S = 240.0
NUM_REQUESTS = 6
CHATS = [
    {
        "conversations": [
            {"from": "human", "value": f"My dog is called {name}. What is my dog called?"},
            {"from": "gpt", "value": f"Your dog is called {name}."},
        ]
    }
    for name in ("Bramo", "Tavik", "Zorin", "Milo", "Pelka", "Oslen", "Runo", "Siva")
]

needs_generators = pytest.mark.skipif(
    not (PROGRAMS / "guidellm").exists(),
    reason="load generators are not installed; `make verify` installs them",
)

pytestmark = pytest.mark.verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model called `tiny`, and with chats in ShareGPT's form."""
    (tmp_path / "tiny").symlink_to(EMBEDDED)
    (tmp_path / "chats.json").write_text(json.dumps(CHATS))
    return tmp_path


def run(folder: Path, program: Path, *arguments: str) -> str:
    """Runs a program to its end; what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


@needs_front_end
@pytest.mark.parametrize(
    ("backend", "dataset"),
    [
        ("sglang", ("--dataset-path", "chats.json")),
        ("sglang", ("--dataset-name", "random-ids")),
        (
            "sglang",
            ("--dataset-name", "random", "--dataset-path", "chats.json", "--tokenize-prompt"),
        ),
        ("sglang", ("--dataset-name", "generated-shared-prefix", "--flush-cache")),
        ("sglang-oai", ("--dataset-name", "random-ids")),
        ("sglang-oai-chat", ("--dataset-path", "chats.json")),
        ("vllm", ("--dataset-path", "chats.json")),
    ],
)
def test_bench_serving(
    tiny_cluster: Cluster, folder: Path, backend: str, dataset: tuple[str, ...]
) -> None:
    """It asks the server for its model, and every request succeeds."""
    sizes = [
        *("--num-prompts", str(NUM_REQUESTS)),
        *("--random-input-len", "64", "--random-output-len", "16", "--random-range-ratio", "0.5"),
        *("--gsp-num-groups", "2", "--gsp-prompts-per-group", str(NUM_REQUESTS // 2)),
        *("--gsp-system-prompt-len", "96", "--gsp-question-len", "16", "--gsp-output-len", "8"),
    ]
    base = ("-m", "sglang.bench_serving", "--backend", backend, "--base-url")
    files = ("--output-file", "out.jsonl", "--output-details")
    tiny_cluster.settle()  # so that a flush is not refused
    run(folder, PYTHON, *base, tiny_cluster.local.url, *dataset, *sizes, *files)
    (line,) = (folder / "out.jsonl").read_text().splitlines()
    result: dict[str, Any] = json.loads(line)
    assert result["completed"] == NUM_REQUESTS and not any(result["errors"])
    assert result["total_output_tokens"] > 0 and result["median_ttft_ms"] > 0


@needs_generators
def test_guidellm(tiny_cluster: Cluster, folder: Path) -> None:
    """A sweep of its kind: every request succeeds, with the lengths that were asked for."""
    run(
        folder,
        PROGRAMS / "guidellm",
        "run",
        *("--backend", f"kind=openai_http,target={tiny_cluster.local.url}"),
        *("--profile", "kind=concurrent,streams=2"),
        *("--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
        *("--tokenizer", "kind=huggingface_auto,model=tiny"),
        *("--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16"),
        *("--output", "kind=json,path=out.json", "--disable-progress"),
    )
    (benchmark,) = json.loads((folder / "out.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["errored"] == 0 and totals["successful"] >= NUM_REQUESTS - 2


@needs_generators
@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_aiperf(tiny_cluster: Cluster, folder: Path, kind: str) -> None:
    """Every request succeeds, and what the server counts reaches its report."""
    run(
        folder,
        PROGRAMS / "aiperf",
        "profile",
        *("--model", "tiny", "--tokenizer", str(folder / "tiny"), "--endpoint-type", kind),
        *("--url", tiny_cluster.local.url, "--streaming", "--ui", "none"),
        *("--request-count", str(NUM_REQUESTS), "--concurrency", "2"),
        *("--synthetic-input-tokens-mean", "64", "--output-tokens-mean", "16"),
        # the embedded model ends some answers to nonsense at once, which aiperf takes for an error
        *("--extra-inputs", "ignore_eos:true", "--random-seed", "1"),
    )
    (report,) = (folder / "artifacts").glob("*/profile_export_aiperf.json")
    result = json.loads(report.read_text())
    assert result["completed_request_count"]["avg"] == NUM_REQUESTS
    assert result["error_summary"] == [] and result["total_usage_completion_tokens"]["avg"] > 0


@needs_generators
def test_locust(tiny_cluster: Cluster, folder: Path) -> None:
    """Users of both dialects for some seconds, without a failure."""
    shown = run(
        folder,
        PROGRAMS / "locust",
        *("-f", str(LOCUSTFILE), "--host", tiny_cluster.local.url, "--headless", "--json"),
        *("--users", "4", "--spawn-rate", "4", "--run-time", "4s"),
    )
    entries = json.loads(shown)
    assert {entry["name"] for entry in entries} == {"/v1/chat/completions", "/generate"}
    assert all(entry["num_requests"] > 0 == entry["num_failures"] for entry in entries)
