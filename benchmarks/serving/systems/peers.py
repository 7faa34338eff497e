"""SGLang and vLLM as they are started to be compared with: which servers, with which flags.

Each is given what it is best with: prefix caching (both have it unless told otherwise), pages over
NVLink (UCX may open the memory of the other GPUs, which therefore stay visible), no tokenizer and
events with new tokens only (SGLang), the same share of memory and as many running requests as ours.
Pure: nothing is started here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.serving.systems.asking import (
    SERVED_NAME,
    SglangPairs,
    SglangReplicas,
    System,
    VllmPairs,
    VllmReplicas,
)
from protocol.config import ConfigError

CONTEXT = 36_000
MEMORY_SHARE = "0.85"
MAX_RUNNING = "256"
NVLINK = {"UCX_TLS": "cuda_ipc,cuda_copy,sm,tcp,self", "UCX_NET_DEVICES": "all"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
PAIRING_S = "120"
"""How long SGLang's servers wait for one another before they give a request up."""
PEERS = ("sglang-pd", "sglang-dp", "vllm-pd", "vllm-dp")
INSTALL = {
    "sglang": "pip install sglang==0.5.17 nixl==1.5.1",
    "vllm": "pip install vllm==0.23.0 nixl==1.5.1",
}
"""How the versions are installed for which the flags here were written, each in an environment of
its own."""


@dataclass(frozen=True)
class PeerServer:
    """One process of a peer."""

    name: str
    port: int
    words: tuple[str, ...]
    """The command after the interpreter."""
    environment: Mapping[str, str] = field(default_factory=dict)
    bootstrap_port: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class PeerPlan:
    """All processes of a peer; of a disaggregated one the first `num_prefill` compute prompts."""

    name: str
    servers: tuple[PeerServer, ...]
    num_prefill: int = 0

    def system(self) -> System:
        """Returns how a client asks these servers."""
        urls = [server.url for server in self.servers]
        prefills, decodes = self.servers[: self.num_prefill], urls[self.num_prefill :]
        if self.name == "sglang-dp":
            return SglangReplicas(urls)
        if self.name == "vllm-dp":
            return VllmReplicas(urls)
        if self.name == "vllm-pd":
            return VllmPairs([server.url for server in prefills], decodes)
        return SglangPairs([(server.url, server.bootstrap_port) for server in prefills], decodes)


def package_of(peer: str) -> str:
    """Returns the Python package of a peer."""
    return peer.partition("-")[0]


def plan_peer(
    peer: str, model: str, num_gpus: int, ports: Iterator[int], more_flags: Sequence[str] = ()
) -> PeerPlan:
    """Returns the servers of a peer, one for each GPU. `ports` yields free ports; `more_flags` are
    given to every server. Raises ConfigError."""
    if peer not in PEERS:
        raise ConfigError(f"--peer is {peer!r}; there are {', '.join(PEERS)}")
    if not num_gpus:
        raise ConfigError(f"--peer {peer} needs a GPU, and none is visible")
    is_pair = peer.endswith("-pd")
    if is_pair and num_gpus < 2:
        raise ConfigError(f"--peer {peer} needs two GPUs, and one is visible; there is -dp")
    num_prefill = num_gpus // 2 if is_pair else 0
    make = _sglang if package_of(peer) == "sglang" else _vllm
    servers = []
    for gpu in range(num_gpus):
        role = "" if not is_pair else "prefill" if gpu < num_prefill else "decode"
        servers.append(make(gpu, num_gpus, role, model, ports, more_flags))
    return PeerPlan(peer, tuple(servers), num_prefill)


def _sglang(
    gpu: int, num_gpus: int, role: str, model: str, ports: Iterator[int], more_flags: Sequence[str]
) -> PeerServer:
    port, bootstrap_port = next(ports), next(ports)
    words = ["-m", "sglang.launch_server", "--model-path", model]
    words += ["--served-model-name", SERVED_NAME, "--load-format", "dummy", "--dtype", "bfloat16"]
    words += ["--context-length", str(CONTEXT), "--mem-fraction-static", MEMORY_SHARE]
    words += ["--max-running-requests", MAX_RUNNING, "--skip-tokenizer-init"]
    words += ["--incremental-streaming-output", "--enable-cache-report"]
    words += ["--log-level-http", "warning", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--nccl-port", str(next(ports))]
    environment = {**OFFLINE, "SGLANG_HOST_IP": "127.0.0.1"}
    if not role:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    else:
        words += ["--base-gpu-id", str(gpu), "--page-size", "64"]
        words += ["--disaggregation-mode", role, "--disaggregation-transfer-backend", "nixl"]
        words += ["--disaggregation-bootstrap-port", str(bootstrap_port)]
        environment |= NVLINK
        environment["SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT"] = PAIRING_S
        environment["SGLANG_DISAGGREGATION_WAITING_TIMEOUT"] = PAIRING_S
    name = f"sglang-{role or 'all'}-{gpu}"
    return PeerServer(name, port, (*words, *more_flags), environment, bootstrap_port)


def _vllm(
    gpu: int, num_gpus: int, role: str, model: str, ports: Iterator[int], more_flags: Sequence[str]
) -> PeerServer:
    port = next(ports)
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", model]
    words += ["--served-model-name", SERVED_NAME, "--load-format", "dummy", "--dtype", "bfloat16"]
    words += ["--max-model-len", str(CONTEXT), "--gpu-memory-utilization", MEMORY_SHARE]
    words += ["--max-num-seqs", MAX_RUNNING, "--enable-prompt-tokens-details"]
    words += ["--disable-uvicorn-access-log", "--host", "127.0.0.1", "--port", str(port)]
    # Its own GPU first: it computes there, and may open the memory of the others.
    seen = range(gpu, gpu + num_gpus) if role else (gpu,)
    environment = {
        **OFFLINE,
        "CUDA_VISIBLE_DEVICES": ",".join(str(other % num_gpus) for other in seen),
    }
    if role:
        connector = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        words += ["--kv-transfer-config", json.dumps(connector)]
        environment |= NVLINK | {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(next(ports))}
    name = f"vllm-{role or 'all'}-{gpu}"
    return PeerServer(name, port, (*words, *more_flags), environment)
