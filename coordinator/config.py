"""Settings of one coordinator process."""

from __future__ import annotations

import re
from dataclasses import dataclass

from coordinator.conversation.choice import CALL_PARSERS, REASONING_PARSERS
from coordinator.routing.policies import POLICIES
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
from protocol.trust.options import TrustOptions

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@]+")


@dataclass(frozen=True)
class CoordinatorConfig(TrustOptions):
    """The flags of a coordinator."""

    model_path: str = option(
        "",
        "model: a directory in Hugging Face format, a GGUF file, or the hub id of either; "
        "empty: the embedded one",
        aliases=("model",),
    )
    served_model_name: str = option(
        "", "name told to clients; empty: that of the directory or file"
    )
    chat_template: str = option(
        "",
        "chat template: a file, a name of the model's, or one of chatml, first-qwen, gemma, "
        "llama-2, llama-3, mistral, phi-3, qwen; empty: the model's own",
    )
    tool_call_parser: str = option(
        "auto", "how the model writes calls of tools; auto: as its files tell", CALL_PARSERS
    )
    reasoning_parser: str = option(
        "auto", "how the model marks its thoughts; auto: as its files tell", REASONING_PARSERS
    )
    normalize_agent_headers: str = option(
        "on",
        "what agents write into their first system line anew each time is taken out of chats",
        ("on", "off"),
    )
    redis_url: str = option("redis://127.0.0.1:6379/0", "Redis that holds registry and ownership")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for all")
    advertise_host: str = option("", "address that nodes use; empty: the host, or this one's")
    port: int = option(30000, "HTTP port")
    control_port: int = option(0, "port for messages from nodes; 0: any free one")
    workers: int = option(
        1, "coordinator processes that share the HTTP port; with a control port, each has the next"
    )
    policy: str = option(
        "cost",
        "how requests are routed; cost: any node may do any work, at the least cost; disaggregate: "
        "the same, but only prefill nodes compute prompts while there are any",
        tuple(POLICIES),
    )
    routing_seed: int = option(0, "of ties in routing; 0: another one in each process")
    max_queued_requests: int = option(
        4096, "unfinished requests, running and waiting, before new ones get a 429"
    )
    max_ttft: float = option(
        0.0,
        "seconds to the first token; a request that is predicted to take longer gets a 429 with "
        "Retry-After at once; 0: off",
    )
    max_wait_s: float = option(
        120.0,
        "a request waits no longer for its turn: one that would gets a 429 with Retry-After at "
        "once, and one that does all the same gets it then",
    )
    stall_client_s: float = option(
        60.0,
        "a client that reads nothing for so long, while there is much to read, is given up, and "
        "its requests end",
    )
    max_body_bytes: int = option(32 << 20, "largest request body")
    keep_alive_s: float = option(75.0, "an idle connection of a client is closed after so long")
    request_timeout_s: float = option(600.0, "a request without an end by then fails")
    drain_timeout_s: float = option(
        25.0,
        "after SIGTERM, running requests go on for so long at most",
        aliases=("drain-timeout",),
    )
    session_ttl_s: float = option(3600.0, "a session that was not used for so long is forgotten")
    stream_output: bool = option(
        False, "events of a stream carry only the new text, ids and logprobs, not all so far"
    )
    api_key: tuple[str, ...] = option(
        (),
        "key that every path asks for but /health, /ready, /metrics and the live page; may be "
        "given several times",
        is_secret=True,
    )
    api_key_file: str = option("", "file with more such keys, one a line; # begins a comment")
    admin_token: str = option(
        "",
        "bearer token that /admin/* asks for, in place of an API key; it opens all other paths too",
        is_secret=True,
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "origin whose pages may call from a browser, as https://chat.example.com; *: any; may be "
        "given several times",
    )
    otlp_endpoint: str = option(
        "",
        "OpenTelemetry collector that traces of requests are sent to, as http://collector:4318; "
        "empty: none",
    )
    trace_share: float = option(
        0.1,
        "share of requests, 0 to 1, whose traces are sent; those that failed, were tried again or "
        "were slow always are, and those of a client's trace as it says",
    )
    trace_slow_s: float = option(5.0, "a first token that takes longer is slow")
    metric_names: tuple[str, ...] = option(
        ("sglang",),
        "whose names /metrics has beside kvrelay's own, as sglang,vllm; empty: nobody's",
    )
    show_prompt_words: bool = option(
        False,
        "/admin/cache/prefixes and /admin/route/explain show words of prompts without a cache_salt",
    )
    log_level: str = option("info", "how much to log", LOG_LEVELS, synonyms=LOG_LEVEL_SYNONYMS)
    log_format: str = option("text", "lines for people, or a JSON object in each", LOG_FORMATS)

    @property
    def takes_out_agent_headers(self) -> bool:
        """True if a chat's prompt is to be without what agents write anew into each request."""
        return self.normalize_agent_headers == "on"

    def __post_init__(self) -> None:
        require_redis_url(self.redis_url)
        self.require_trust([self.host])
        require(0 < self.port < 65536, f"--port is {self.port}; it must be between 1 and 65535")
        require_ports(self, "control_port")
        require(0 < self.workers <= 256, f"--workers is {self.workers}; it must be 1 to 256")
        require(
            not self.control_port or self.control_port + self.workers <= 65536,
            f"--control-port {self.control_port} leaves no ports for {self.workers} workers",
        )
        require(
            not self.otlp_endpoint or self.otlp_endpoint.startswith(("http://", "https://")),
            f"--otlp-endpoint is {self.otlp_endpoint!r}; it must be like http://collector:4318",
        )
        require(0 <= self.trace_share <= 1, "--trace-share must be between 0 and 1")
        require(self.trace_slow_s >= 0, "--trace-slow-s must be 0 seconds or more")
        require_families(self.metric_names)
        for origin in self.cors_origin:
            require(
                origin == "*" or ORIGIN.fullmatch(origin) is not None,
                f"--cors-origin is {origin!r}; it must be * or an origin without a path, as "
                "https://chat.example.com",
            )
        require(self.max_queued_requests > 0, "--max-queued-requests must be at least 1")
        require(self.max_ttft >= 0, "--max-ttft must be 0 (off) or more seconds")
        require(self.max_wait_s > 0, "--max-wait-s must be more than 0 seconds")
        require(self.stall_client_s > 0, "--stall-client-s must be more than 0 seconds")
        require(self.max_body_bytes > 0, "--max-body-bytes must be at least 1")
        require(self.keep_alive_s > 0, "--keep-alive-s must be more than 0 seconds")
        require(self.request_timeout_s > 0, "--request-timeout-s must be more than 0 seconds")
        require(self.drain_timeout_s >= 0, "--drain-timeout-s must be 0 seconds or more")
        require(self.session_ttl_s >= 1, "--session-ttl-s must be at least 1 second")
