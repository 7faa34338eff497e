"""`make bench-elastic`: nodes join and are killed under load, and what clients see of it.

Conversations begin at a steady rate and stream their answers. Every period one thing happens: a
node with a new name joins, one is killed with SIGKILL, or one stops in order and comes back under
its name. The tokens of every answer are known from the quiet cluster, and steps are deterministic,
so that they must be the same whichever nodes computed them. The same load without changes, in the
same run, says what changes cost. Physics: a node that dies takes its answers' KV along, and another
one computes them again, so that gap is one prefill and not one token; a node that joins has no
pages, and on a GPU a second or more passes until it has pairs with the others.

    python -m benchmarks.elastic [--device cuda] [--seconds 120] [--period 5] [--seed 0] [--save]

Exit code 1 if a request failed, hung or had a wrong token, or a node that nobody struck was lost.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.elastic.figures import failures, longest_waits, summary, tables
from benchmarks.elastic.load import LoadShape
from benchmarks.elastic.memory import gpu_memory, host_memory
from benchmarks.elastic.population import DRAINS_WITHIN_S
from benchmarks.elastic.run import Drill, run
from benchmarks.engines.random_model import CONFIG, save_random_model
from benchmarks.machine import cards, machine
from infra.cluster import ClusterPlan, names_of_nodes
from infra.gpus.assignment import assign_gpus
from infra.models import EMBEDDED
from infra.ports import free_port
from infra.up import interrupt_on_signals
from protocol.config import ConfigError
from protocol.errors import UserError

RESULTS = Path(__file__).parents[1] / "results" / "elastic.json"
WORDS = range(8, 2000)
"""Token ids of both models that are ordinary words."""
CPU_LOAD = LoadShape(1.0, num_turns=3, first_tokens=192, answer_tokens=48, vocabulary=WORDS)
GPU_LOAD = LoadShape(2.0, num_turns=3, first_tokens=1024, answer_tokens=128, vocabulary=WORDS)
CPU_FLAGS = {"device": "cpu", "max_total_tokens": "16384"}
GPU_FLAGS = {
    # The pool has a fixed size, 2 GiB, so that as many nodes as join find room on a GPU.
    "max_total_tokens": "131072",
    # A deterministic step has many small kernels: no node warms up longer ones than it will see.
    "context_length": "2048",
    "chunked_prefill_size": "1024",
    "max_running_requests": "32",
}
GPU_MODEL = CONFIG | {"num_hidden_layers": 4, "num_key_value_heads": 8}
"""Random weights. Few layers make short steps, and many KV heads 16 KiB of pages per token."""
PROMISES = ("failed", "wrong", "hung")


def main() -> None:
    interrupt_on_signals()
    options = _arguments()
    try:
        sys.exit(drill(options))
    except UserError as error:
        sys.exit(f"bench-elastic: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def drill(options: argparse.Namespace) -> int:
    """Runs what the options ask for; returns the exit code. Raises ConfigError or StartError."""
    is_on_gpus = options.device == "cuda"
    num_gpus = torch.cuda.device_count() if is_on_gpus else 0
    if is_on_gpus and not num_gpus:
        raise ConfigError("no GPU is visible to this torch; --device cpu runs the same on a CPU")
    with tempfile.TemporaryDirectory() as scratch:
        model = EMBEDDED
        if is_on_gpus:
            model = Path(scratch) / "model"
            save_random_model(model, GPU_MODEL)
        plan = _drill_of(options, model, num_gpus)
        course = run(
            plan,
            Path(options.log_dir or Path(scratch) / "logs"),
            gpu_memory if is_on_gpus else host_memory,
        )
    console = Console(width=140)
    for table in tables(course):
        console.print(table)
    for sentence in (*longest_waits(course), *failures(course)):
        print(sentence)
    result = {
        "bench": "elastic",
        "machine": machine("torch") | {"gpus": cards()},
        "device": options.device,
        "seed": options.seed,
        "period_s": options.period,
        **summary(course),
    }
    if options.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    broken = sum(result[window][name] for window in ("quiet", "changed") for name in PROMISES)
    return 1 if broken or result["lost_leases"] or result["gone_unstruck"] else 0


def _drill_of(options: argparse.Namespace, model: Path, num_gpus: int) -> Drill:
    of_each = 4 if num_gpus else 2
    num_prefill, num_decode = options.prefill or of_each, options.decode or of_each
    names = names_of_nodes(num_prefill, num_decode)
    load = GPU_LOAD if num_gpus else CPU_LOAD
    plan = ClusterPlan(
        num_prefill,
        num_decode,
        host="127.0.0.1",
        port=free_port(),
        coordinator_flags={"model_path": str(model), "policy": "disaggregate"},
        node_flags={
            "model_path": str(model),
            "dtype": "float32",
            "deterministic": "true",
            "kv_idle_close_s": f"{options.idle_close:g}",
            "drain_timeout_s": f"{DRAINS_WITHIN_S:g}",
        }
        | (GPU_FLAGS if num_gpus else CPU_FLAGS),
        assignments=assign_gpus(num_gpus, dict.fromkeys(names, 1)) if num_gpus else {},
    )
    return Drill(
        plan,
        num_gpus,
        replace(load, rate=options.rate or load.rate),
        options.idle_close,
        options.quiet,
        options.seconds,
        options.period,
        options.seed,
        options.within,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.elastic", description="Nodes join and are killed under load."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prefill", type=int, help="prefill nodes to begin with; 2, on GPUs 4")
    parser.add_argument("--decode", type=int, help="decode nodes to begin with; 2, on GPUs 4")
    parser.add_argument("--rate", type=float, help="conversations a second; 1, on GPUs 2")
    parser.add_argument("--quiet", type=float, default=15.0, help="seconds of load before changes")
    parser.add_argument("--seconds", type=float, default=120.0, help="of load with changes")
    parser.add_argument("--period", type=float, default=5.0, help="seconds between changes")
    parser.add_argument("--idle-close", type=float, default=10.0, help="seconds; of unused pairs")
    parser.add_argument("--within", type=float, default=3600.0, help="seconds for the whole run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-dir", help="a directory for the logs, which are kept")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
