"""Settings of one prefill or decode process. Names are SGLang's where they mean the same."""

from __future__ import annotations

from dataclasses import dataclass

from engine.options import EngineOptions
from node.core.leaving import DRAIN_TIMEOUT_S
from protocol.config import (
    LOG_FORMATS,
    LOG_LEVEL_SYNONYMS,
    LOG_LEVELS,
    option,
    require,
    require_ports,
    require_redis_url,
)
from protocol.telemetry.familiar import require_families
from protocol.trust.bounds import MAX_LEASE_S, MAX_NAME_CHARACTERS
from protocol.trust.options import TrustOptions, is_loopback

KV_BACKENDS = ("auto", "nccl", "shm", "tcp", "gloo")
GPU_CHUNK = 2048
"""Tokens of a step; long enough to keep a GPU busy."""
CPU_CHUNK = 512
"""One core gains nothing from a longer one, and a cancelled step is computed to its end."""


@dataclass(frozen=True)
class NodeConfig(TrustOptions, EngineOptions):
    """The flags of a node, those of its engine among them."""

    model_path: str = option(
        "",
        "model: a directory in Hugging Face format, a GGUF file, or the hub id of either; "
        "empty: the embedded one",
        aliases=("model",),
    )
    redis_url: str = option("redis://127.0.0.1:6379/0", "Redis that holds registry and ownership")
    name: str = option("", "name of this node, unique in the cluster; empty: role, host and pid")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for all")
    advertise_host: str = option("", "address that other nodes use; empty: the host, or this one's")
    control_port: int = option(0, "port for control messages; 0: any free one")
    data_port: int = option(0, "port for KV pages; 0: any free one")
    health_port: int = option(0, "port of GET /live, /ready and /metrics; 0: any free one")
    metric_names: tuple[str, ...] = option(
        ("sglang",),
        "whose names /metrics has beside kvrelay's own, as sglang,vllm; empty: nobody's",
    )
    device: str = option(
        "auto",
        "auto, cpu, cuda or cuda:N, of the first rank; with auto or cuda, `kvrelay up` spreads "
        "its nodes over the GPUs",
    )
    tensor_parallel_size: int = option(
        1,
        "processes that compute the model together, each with a part of it; one device each",
        aliases=("tp-size", "tp"),
    )
    max_total_tokens: int = option(0, "tokens in the KV pool; 0: from --mem-fraction-static")
    mem_fraction_static: float = option(0.8, "share of memory for weights and KV pool")
    memory_share: float = option(
        1.0, "share of the memory that is this node's, if several share it"
    )
    cpu_threads: int = option(1, "threads of a step on the CPU")
    chunked_prefill_size: int = option(
        0, f"prompt tokens computed in one step; 0: {GPU_CHUNK} on GPUs, {CPU_CHUNK} on CPUs"
    )
    max_itl_ms: float = option(
        0.0,
        "how long a step may take that computes prompts beside answers: it gets as many of their "
        "tokens as the measured rates allow; 0: --chunked-prefill-size",
    )
    max_queued_requests: int = option(1024, "requests that may wait for pages")
    lease_s: float = option(3.0, "a node that is silent for so long owns nothing any more")
    stall_s: float = option(
        60.0, "a node whose main loop does not come round for so long gives up its lease"
    )
    receive_timeout_s: float = option(60.0, "how long a decode node waits for a prefill")
    drain_timeout_s: float = option(
        DRAIN_TIMEOUT_S,
        "after SIGTERM, running requests go on for so long at most",
        aliases=("drain-timeout",),
    )
    kv_checksum: bool = option(False, "verify a checksum of every received page set")
    kv_min_send_bytes: int = option(
        0, "layers of a chunk are sent together until they have so many bytes; 0: as pages travel"
    )
    kv_idle_close_s: float = option(
        300.0,
        "a link for pages that nobody has used for so many seconds is closed, and made again when "
        "it is needed; over nccl each holds memory of both GPUs",
    )
    kv_backend: str = option(
        "auto",
        "how pages travel; auto, between two nodes: nccl if each has a GPU of its own, shm (shared "
        "memory) on one host, else tcp; gloo only if it is named",
        KV_BACKENDS,
    )
    log_level: str = option("info", "how much to log", LOG_LEVELS, synonyms=LOG_LEVEL_SYNONYMS)
    log_format: str = option("text", "lines for people, or a JSON object in each", LOG_FORMATS)
    trust_remote_code: bool = option(
        False, "changes nothing: no code from a model directory is ever run"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_redis_url(self.redis_url)
        self.require_trust([self.host])
        require_ports(self, "control_port", "data_port", "health_port")
        require_families(self.metric_names)
        require(
            self.kv_backend != "gloo" or self.insecure or is_loopback(self.host),
            "--kv-backend gloo listens on a port that asks nobody for the cluster secret, and "
            "whoever reaches it can stop the node; choose tcp or auto, or say --insecure",
        )
        require(
            0 < self.mem_fraction_static < 1,
            f"--mem-fraction-static is {self.mem_fraction_static}; it must be between 0 and 1",
        )
        require(
            0 < self.memory_share <= 1,
            f"--memory-share is {self.memory_share}; it must be more than 0 and at most 1",
        )
        for name in ("chunked_prefill_size", "kv_min_send_bytes", "max_itl_ms"):
            flag = "--" + name.replace("_", "-")
            require(getattr(self, name) >= 0, f"{flag} must be 0 or more")
        for name in (
            "max_queued_requests",
            "cpu_threads",
            "tensor_parallel_size",
        ):
            flag = "--" + name.replace("_", "-")
            require(getattr(self, name) > 0, f"{flag} must be at least 1")
        for name in ("lease_s", "stall_s", "receive_timeout_s", "kv_idle_close_s"):
            flag = "--" + name.replace("_", "-")
            require(getattr(self, name) > 0, f"{flag} must be more than 0 seconds")
        require(self.drain_timeout_s >= 0, "--drain-timeout-s must be 0 seconds or more")
        require(self.lease_s <= MAX_LEASE_S, f"--lease-s must be at most {MAX_LEASE_S:g} seconds")
        require(
            len(self.name) <= MAX_NAME_CHARACTERS,
            f"--name has {len(self.name)} characters; it may have {MAX_NAME_CHARACTERS}",
        )
        require(self.name.isprintable(), f"--name is {self.name!r}; it must be printable")
        require(self.max_total_tokens >= 0, "--max-total-tokens must not be negative")

    def chunk_tokens(self, device: str) -> int:
        """Returns the most prompt tokens of one step: `chunked_prefill_size`, or the default for
        `device`."""
        default = GPU_CHUNK if device.startswith("cuda") else CPU_CHUNK
        return self.chunked_prefill_size or default
