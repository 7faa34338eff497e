"""The command of each process of SGLang and vLLM, as they are started to be compared with.

Each is given what it is best with: prefix caching (both have it unless told otherwise), pages over
NVLink (UCX may open the memory of the other GPUs, which therefore stay visible), no tokenizer and
events with new tokens only (SGLang), the same share of memory and as many running requests as ours.
Pure: nothing is started here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.serving.systems.asking import SERVED_NAME
from benchmarks.serving.systems.peer_names import Peer

HOST = "127.0.0.1"
CONTEXT = 36_000
MEMORY_SHARE = "0.85"
MAX_RUNNING = "256"
NVLINK = {"UCX_TLS": "cuda_ipc,cuda_copy,sm,tcp,self", "UCX_NET_DEVICES": "all"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
PAIRING_S = "120"
"""How long SGLang's servers wait for one another before they give a request up."""
TURNS = "round_robin"
"""How routers choose decode servers: answers are equally long, so that turns balance best."""


@dataclass(frozen=True)
class PeerServer:
    """One process of a peer."""

    name: str
    port: int
    words: tuple[str, ...]
    """The command after the interpreter."""
    environment: Mapping[str, str] = field(default_factory=dict)
    bootstrap_port: int = 0
    num_workers: int = 0
    """A router is ready when it has found so many servers; 0: it is no router."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"


def sglang_server(
    peer: Peer, server: int, model: str, ports: Iterator[int], more_flags: Sequence[str]
) -> PeerServer:
    """Returns one of SGLang's servers. `ports` yields free ports."""
    port, bootstrap_port = next(ports), next(ports)
    role, ranks, gpu = peer.role(server), peer.ranks[server], peer.first_gpus[server]
    words = ["-m", "sglang.launch_server", "--model-path", model]
    words += ["--served-model-name", SERVED_NAME, "--load-format", "dummy", "--dtype", "bfloat16"]
    words += ["--context-length", str(CONTEXT), "--mem-fraction-static", MEMORY_SHARE]
    words += ["--max-running-requests", MAX_RUNNING, "--skip-tokenizer-init"]
    words += ["--incremental-streaming-output", "--enable-cache-report"]
    words += ["--log-level-http", "warning", "--host", HOST, "--port", str(port)]
    words += ["--nccl-port", str(next(ports)), "--tensor-parallel-size", str(ranks)]
    environment = {**OFFLINE, "SGLANG_HOST_IP": HOST}
    if not role:
        environment["CUDA_VISIBLE_DEVICES"] = _listed(range(gpu, gpu + ranks))
    else:
        words += ["--base-gpu-id", str(gpu), "--page-size", "64"]
        words += ["--disaggregation-mode", role, "--disaggregation-transfer-backend", "nixl"]
        words += ["--disaggregation-bootstrap-port", str(bootstrap_port)]
        environment |= NVLINK
        environment["SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT"] = PAIRING_S
        environment["SGLANG_DISAGGREGATION_WAITING_TIMEOUT"] = PAIRING_S
    name = f"sglang-{role or 'all'}-{server}"
    return PeerServer(name, port, (*words, *more_flags), environment, bootstrap_port)


def vllm_server(
    peer: Peer, server: int, model: str, ports: Iterator[int], more_flags: Sequence[str]
) -> PeerServer:
    """Returns one of vLLM's servers. `ports` yields free ports."""
    port, num_gpus = next(ports), sum(peer.ranks)
    role, ranks, gpu = peer.role(server), peer.ranks[server], peer.first_gpus[server]
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", model]
    words += ["--served-model-name", SERVED_NAME, "--load-format", "dummy", "--dtype", "bfloat16"]
    words += ["--max-model-len", str(CONTEXT), "--gpu-memory-utilization", MEMORY_SHARE]
    words += ["--max-num-seqs", MAX_RUNNING, "--enable-prompt-tokens-details"]
    words += ["--tensor-parallel-size", str(ranks)]
    words += ["--disable-uvicorn-access-log", "--host", HOST, "--port", str(port)]
    # Its own GPUs first: it computes there, and may open the memory of the others.
    seen = range(gpu, gpu + (num_gpus if role else ranks))
    environment = {**OFFLINE, "CUDA_VISIBLE_DEVICES": _listed(other % num_gpus for other in seen)}
    if role:
        connector = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        words += ["--kv-transfer-config", json.dumps(connector)]
        environment |= NVLINK | {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(next(ports))}
    return PeerServer(f"vllm-{role or 'all'}-{server}", port, (*words, *more_flags), environment)


def router_of(peer: Peer, servers: Sequence[PeerServer], ports: Iterator[int]) -> PeerServer:
    """Returns the router of a peer's package, for servers that answer already.

    sglang-router does not read prompts of token ids where servers are disaggregated. There it is
    told the key of each user, as a service can that knows its conversations (`RoutedSglangPairs`).
    """
    port, module = next(ports), f"{peer.package}_router.launch_router"
    words = ["-m", module, "--host", HOST, "--port", str(port)]
    words += ["--prometheus-host", HOST, "--prometheus-port", str(next(ports))]
    words += ["--request-timeout-secs", "600", "--disable-retries", "--disable-circuit-breaker"]
    words += ["--log-level", "warn" if peer.package == "sglang" else "warning"]
    if not peer.num_prefill:
        words += ["--policy", "cache_aware", "--worker-urls", *(one.url for one in servers)]
    elif peer.package == "sglang":
        words += ["--pd-disaggregation", "--decode-policy", TURNS]
        words += ["--prefill-policy", "manual", "--assignment-mode", "min_load"]
    else:
        words += ["--vllm-pd-disaggregation", "--decode-policy", TURNS]
        words += ["--prefill-policy", "cache_aware"]
    for prefill in servers[: peer.num_prefill]:
        words += ["--prefill", prefill.url]
        words += [str(prefill.bootstrap_port)] if prefill.bootstrap_port else []
    for decode in servers[peer.num_prefill :] if peer.num_prefill else ():
        words += ["--decode", decode.url]
    return PeerServer(f"{peer.package}-router", port, tuple(words), num_workers=len(servers))


def _listed(gpus: Iterable[int]) -> str:
    return ",".join(map(str, gpus))
