"""`make bench-serve-gpu`: the loads against kvrelay's layouts and its peers, on this host's GPUs.

Everything that is compared is measured in one run, one system after the other, by the same client
with the same prompts and arrivals. A peer that cannot be measured is told with a sentence, and
kvrelay's part is measured all the same. On a host without GPUs, `--device cpu` runs the whole
benchmark with the embedded model and small loads: that shows that it works, and no speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines.shapes import SHAPES, save_shape
from benchmarks.machine import cards, machine, versions_of
from benchmarks.serving.loads import DEFAULT_LOADS, Load, Scale
from benchmarks.serving.measuring import Measured, Plan, measure
from benchmarks.serving.pairs import PairFiles, path_word, summary_of
from benchmarks.serving.systems.asking import Kvrelay
from benchmarks.serving.systems.layouts import Layout, default_layouts
from benchmarks.serving.systems.ours import ClusterSettings, our_cluster
from benchmarks.serving.systems.peer_commands import CONTEXT, MAX_RUNNING, MEMORY_SHARE
from benchmarks.serving.systems.peer_names import Peer
from benchmarks.serving.systems.peer_servers import PeerFailed, peer_servers, versions_for
from benchmarks.serving.systems.peers import plan_peer
from infra.cluster import StartError
from infra.models import EMBEDDED
from infra.ports import free_port
from infra.up import interrupt_on_signals
from kvrelay.errors import ClientError
from protocol.config import ConfigError
from protocol.errors import UserError
from protocol.model.directory import read_config
from protocol.trust.versions import RELEASE

RESULTS = Path(__file__).resolve().parent.parent / "results" / "serve-gpu"
PACKAGES = ("triton", "flash-attn-4", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
"""Packages that decide about the speed of kvrelay on GPUs, beside torch."""
TINY = "tiny"
CPU_GPUS = 2
"""On a CPU, layouts are those of so many devices."""
CPU_SCALE = Scale(traffic=1 / 8, prompts=1 / 32, answers=1 / 8)
GPU_FLAGS = {
    "max_running_requests": MAX_RUNNING,
    "mem_fraction_static": MEMORY_SHARE,
    "context_length": str(CONTEXT),
}
CPU_FLAGS = {"max_total_tokens": "16384"}


def main() -> None:
    """Runs the command."""
    interrupt_on_signals()
    try:
        run(_arguments())
    except UserError as error:
        sys.exit(f"bench-serve-gpu: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(options: argparse.Namespace) -> None:
    """Measures what the options ask for, and writes a file for each pair. Raises ConfigError, or
    StartError if no cluster came up."""
    on_cpu = options.device == "cpu"
    num_gpus = 0 if on_cpu else torch.cuda.device_count()
    if not on_cpu and not num_gpus:
        raise ConfigError(
            "no GPU is visible to this torch; --device cpu runs the same with the embedded model "
            "and small loads"
        )
    devices = num_gpus or CPU_GPUS
    names = options.layouts.split(",") if options.layouts else default_layouts(devices)
    layouts = [Layout.parse(name, devices) for name in names]
    peers = [Peer.parse(name, devices) for name in options.peer.split(",") if name]
    with tempfile.TemporaryDirectory() as scratch:
        model = _model(options.model_shape or (TINY if on_cpu else "llama-3-8b"), Path(scratch))
        plan = _plan(options, on_cpu, devices, model)
        settings = ClusterSettings(
            model,
            num_gpus,
            (CPU_FLAGS if on_cpu else GPU_FLAGS)
            | ({} if model == EMBEDDED else {"load_format": "dummy"})
            | _settings_of(options.node_flags),
            Path(options.log_dir or scratch),
        )
        files = PairFiles(_circumstances(options, model, plan), Path(options.results))
        for layout, measured in _measured_layouts(layouts, settings, plan):
            files.add_layout(layout, measured)
        if not files.pairs:
            raise StartError("no layout of kvrelay was measured; what each said stands above")
        for theirs in _measured_peers(peers, options, model, num_gpus, plan, settings.log_dir):
            files.add_peer(theirs)
    print(json.dumps(summary_of(files.pairs)))


def _circumstances(options: argparse.Namespace, model: Path, plan: Plan) -> dict[str, Any]:
    """Returns what is true of everything that is measured in this run."""
    return {
        "machine": machine("torch") | versions_of(*PACKAGES) | {"gpus": cards()},
        "model": model.name,
        "device": options.device,
        "seconds": options.seconds,
        "scale": vars(plan.scale),
        "node_flags": _settings_of(options.node_flags),
    }


def _measured_layouts(
    layouts: list[Layout], settings: ClusterSettings, plan: Plan
) -> Iterator[tuple[str, Measured]]:
    """Measures one layout after the other. If one does not start, or its coordinator ends, it says
    so, and the others go on."""
    for layout in layouts:
        log_dir = settings.log_dir / f"kvrelay-{path_word(layout.name)}"
        try:
            with our_cluster(layout, dataclasses.replace(settings, log_dir=log_dir)) as cluster:
                system = Kvrelay(cluster.local.url)
                measured = measure(layout.name, system, plan, cluster.health)
        except (StartError, ConfigError, ClientError) as error:
            print(f"{layout.name} was not measured: {error}", file=sys.stderr)
            continue
        measured.notes |= {
            "version": RELEASE,
            "policy": layout.policy,
            "start_s": round(cluster.start_s, 1),
        }
        yield layout.name, measured


def _measured_peers(
    peers: list[Peer],
    options: argparse.Namespace,
    model: Path,
    num_gpus: int,
    plan: Plan,
    log_dir: Path,
) -> Iterator[Measured]:
    """Measures one peer after the other. If one cannot be had, it says so, and the others go on."""
    python, more_flags = options.peer_python, shlex.split(options.peer_flags)
    for peer in peers:
        try:
            versions = versions_for(peer, python)
            planned = plan_peer(peer, str(model), num_gpus, _ports(), more_flags)
            with peer_servers(planned, python, log_dir / path_word(peer.name)) as start_s:
                print(f"{peer.name:>16} | ready after {start_s:.0f} s", flush=True)
                measured = measure(peer.name, planned.system(), plan)
        except (PeerFailed, ConfigError) as error:
            print(
                f"bench-serve-gpu: {error}; what else is measured has no such peer beside it",
                file=sys.stderr,
            )
            continue
        measured.notes |= {
            "version": versions[peer.package],
            "versions": versions,
            "start_s": round(start_s, 1),
            "commands": [" ".join(process.words) for process in planned.processes],
        }
        yield measured


def _settings_of(text: str) -> dict[str, str]:
    """Reads --node-flags. Raises ConfigError."""
    words = shlex.split(text)
    if wrong := [word for word in words if "=" not in word]:
        raise ConfigError(f"--node-flags has {wrong[0]!r}; write name=value, as dtype=float16")
    return dict(word.split("=", 1) for word in words)


def _ports() -> Iterator[int]:
    """Yields free ports, each once."""
    given: set[int] = set()
    while True:
        port = free_port()
        if port not in given:
            given.add(port)
            yield port


def _model(shape: str, scratch: Path) -> Path:
    """Returns the directory of a model: the embedded one, or a shape that gets random weights. The
    latter has the embedded one's tokenizer, which nobody asks for more than a text of ids."""
    if shape == TINY:
        return EMBEDDED
    path = scratch / shape
    save_shape(shape, path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, path)
    return path


def _plan(options: argparse.Namespace, on_cpu: bool, devices: int, model: Path) -> Plan:
    """Returns what is asked of every system. Raises ConfigError for a load that there is not."""
    vocab_size = int(read_config(model)["vocab_size"])
    return Plan(
        [Load.parse(name) for name in options.loads.split(",")],
        options.seconds,
        options.repeat,
        CPU_SCALE if on_cpu else Scale(traffic=devices / 2 if devices >= 4 else 1.0),
        # Neither the special tokens, at one end or the other, nor more than 2^16 ids.
        range(vocab_size // 8, vocab_size * 3 // 4),
        options.warm_up_seconds,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-serve-gpu", description=__doc__)
    add = parser.add_argument
    add("--layouts", default="", help="as 1p1d,2d,mixed,tp2+2,tp4; default: what fits the GPUs")
    add("--peer", default="", help="what is measured beside it, as sglang-pd,sglang-dp-router")
    add("--peer-python", default=sys.executable, help="the interpreter that has the peers")
    add("--peer-flags", default="", help="more flags for each server of the peers, as one text")
    add("--loads", default=",".join(DEFAULT_LOADS), help="default: %(default)s")
    add("--seconds", type=float, default=20.0, help="of each load (default: %(default)g)")
    add("--repeat", type=int, default=1, help="how often, with other prompts (default: 1)")
    add("--warm-up-seconds", type=float, default=3.0, help="default: %(default)g")
    add("--model-shape", default="", choices=("", TINY, *SHAPES), help="default: llama-3-8b")
    add("--device", default="cuda", choices=("cuda", "cpu"))
    add("--node-flags", default="", help="more settings of kvrelay's nodes, as dtype=float16")
    add("--results", default=str(RESULTS), help="where the files go (default: %(default)s)")
    add("--log-dir", default="", help="where logs of all processes stay; default: nowhere")
    return parser.parse_args()


if __name__ == "__main__":
    main()
