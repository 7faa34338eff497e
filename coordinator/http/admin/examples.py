"""Examples of what /admin/* answers, for its OpenAPI description (which drops what is None)."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.routing.policies import POLICIES
from protocol.counters import NodeCounters, RequestCounters
from protocol.layout import KVLayout
from protocol.messages import Load

COUNTS = RequestCounters(
    requests=1204,
    requests_hit=1011,
    prompt_tokens=913408,
    cached_tokens=610304,
    fetched_tokens=41984,
    completion_tokens=154112,
    transferred_pages=19822,
    aborted_requests=4,
    refused_requests=31,
).report()
PAGES = {"total": 16384, "used": 15900, "held": 412, "cached": 15488, "free": 484}
COUNTERS = NodeCounters(
    requests=1204,
    requests_hit=1011,
    computed_tokens=303104,
    reused_tokens=568320,
    fetched_tokens=41984,
    pages_sent=19822,
    pages_fetched=2624,
    pages_evicted=8112,
    bytes_sent=10392436736,
    busy_s=9.41,
)
NODE_STATS = {
    "role": "prefill",
    "draining": False,
    "pages": PAGES,
    "owned_pages": 15688,
    "counters": msgspec.structs.asdict(COUNTERS),
    "token_hit_ratio": 0.6682,
    "request_hit_ratio": 0.8397,
}
STATS = {
    "cluster": {
        **COUNTS,
        "last_5_minutes": COUNTS,
        "pages": PAGES,
        "node_counters": msgspec.structs.asdict(COUNTERS),
        "running_requests": 12,
        "waiting_requests": 3,
        "coordinators": 2,
        "unanswered_coordinators": [],
        "unique_owned_pages": 15688,
        "duplicate_owned_pages": 402,
        "index_bytes": 1725680,
        "index_lag_s": 0.002,
        "refusals": 0,
        "redis_connected": True,
        "refused_nodes": [
            {"name": "p7", "why": "it speaks protocol 2, this process protocol 4: upgrade it"}
        ],
        "policy": next(iter(POLICIES)),
    },
    "nodes": {"p0": NODE_STATS},
}
PREFIXES = {
    "prefixes": [
        {
            "page_hash": "5b0f2f3f8d6d0b1c6f8f4f0a8a0f9e11",
            "tokens": 208,
            "hits": 311,
            "hits_overcounted_by_at_most": 0,
            "last_hit_s_ago": 0.4,
            "owners": ["d1", "p0"],
            "salted": False,
            "first_words": "You are a helpful assistant of",
        }
    ]
}
FLUSH = {"node": "p0", "cache_salt": "tenant-7"}
FLUSHED = {"pages": {"d0": 120, "p0": 480}, "unanswered": []}
AUDIT = {
    "clean": True,
    "nodes": {
        "p0": {
            "clean": True,
            "pages": 15688,
            "missing_in_redis": 0,
            "extra_in_redis": 0,
            "missing_in_mirror": 0,
            "extra_in_mirror": 0,
            "problem": "",
            "repairs": [],
        }
    },
}
LAYOUT = KVLayout(num_layers=16, page_size=16, num_kv_heads=8, head_dim=64, dtype="bfloat16")
NODES = [
    {
        "name": "p0",
        "incarnation": 1795598400000000000,
        "role": "prefill",
        "draining": False,
        "control_address": "tcp://10.0.0.7:41233",
        "data_addresses": ["10.0.0.7:36021"],
        "health_address": "10.0.0.7:40117",
        "release": "0.2.0",
        "protocol": 4,
        "device": "cuda:0",
        "layout": msgspec.structs.asdict(LAYOUT),
        "model_fingerprint": "8a4f0c5be3d1",
        "num_pages": 16384,
        "owned_pages": 15688,
        "lease_ends_in_s": 2.81,
        "last_heartbeat_s_ago": 0.19,
        "backlog_s": 0.034,
        "load": {
            name: value
            for name, value in msgspec.to_builtins(
                Load(
                    role="prefill", num_running=2, queued_tokens=1320, prefill_tokens_per_s=38800.0
                )
            ).items()
            if name not in ("links", "step_times")
        },
        "links": [
            {
                "peer": "d0",
                "direction": "out",
                "transport": "nccl",
                "open": True,
                "bytes": 5274927104,
                "pages": 10061,
                "busy_s": 0.4312,
                "exposed_s": 0.0,
                "failures": 0,
                "opened": 1,
            }
        ],
    }
]
DRAINED = {"name": "p0", "draining": True, "kept": False, "unfinished_requests": 2}
PROMPT = {"text": "Once upon a time", "cache_salt": "tenant-7"}
CANDIDATE = {
    "node": "p0",
    "owned_pages": 2,
    "fetch_from": "d0",
    "fetch_pages": 12,
    "queue_ms": 3.1,
    "fetch_ms": 2.4,
    "compute_ms": 6.4,
    "transfer_ms": 0.0,
    "wait_ms": 0.0,
    "evict_ms": 0.0,
    "delay_ms": 0.0,
    "passing_ms": 0.0,
    "first_token_ms": 9.5,
    "score_ms": 22.3,
    "chosen": True,
}
EXPLANATION = {
    "prompt_tokens": 215,
    "prompt_pages": 14,
    "policy": "cost",
    "choice": {"prefill": "p0", "decode": "d1", "fetch_from": "d0", "first_token_ms": 15.2},
    "reason": "prefill on p0: 2 of 14 pages cached there, 10 fetched from d0 in 2 ms, queue 3 ms, "
    "compute 6 ms; decode on d1: transfer 2 ms, wait 4 ms",
    "runner_up": "p1: 0 pages cached, 51 ms more",
    "cached_path": {
        "tokens": 192,
        "owners": ["p0", "d0"],
        "leaves_at_token": 192,
        "words_before": " Today is Monday,",
        "words_behind": " the 3rd of August. You",
    },
    "candidates": {"prefill": [CANDIDATE], "decode": [CANDIDATE], "both": []},
}

REQUEST = {
    "rid": "chat-17",
    "request_id": "0f3c1c9b5a3e4d0c8f6f1f0f6b6c7d21",
    "http_id": "4be0643f-1d98-573b-97cd-ca98a65347dd",
    "coordinator": "10.0.0.5:40123",
    "state": "ended",
    "outcome": "stop",
    "error": "",
    "arrived_s_ago": 4.21,
    "prompt_tokens": 512,
    "cached_tokens": 0,
    "completion_tokens": 96,
    "transferred_pages": 32,
    "attempts": 1,
    "prefill_node": "p0",
    "decode_node": "d0",
    "route_reason": "prefill on p0: 0 of 32 pages cached there, queue 0 ms, compute 13 ms; …",
    "first_token_ms": 18.5,
    "computing_ms": 12.8,
    "total_ms": 912.4,
}
REQUESTS = {"requests": [REQUEST], "unanswered_coordinators": []}
WIRE, WIRE_ON = "coordinator ↔ d0", "d0 ↔ p0"
TIMELINE = REQUEST | {
    "spans": [
        {
            "name": name,
            "start_ms": start_ms,
            "duration_ms": duration_ms,
            "where": where,
            "attempt": attempt,
            "details": details,
        }
        for name, start_ms, duration_ms, where, attempt, details in (
            ("http_in", 0.0, 0.3, "coordinator", 0, {}),
            ("tokenize", 0.3, 0.6, "coordinator", 0, {}),
            ("route", 0.9, 0.4, "coordinator", 1, {}),
            ("wire", 1.3, 1.9, WIRE, 1, {"inbox_up_to_ms": 1.6}),
            ("admission", 3.2, 0.1, "d0", 1, {}),
            ("wire", 3.3, 0.9, WIRE_ON, 1, {}),
            ("step_wait", 4.2, 0.1, "p0", 1, {}),
            ("compute", 4.3, 12.8, "p0", 1, {"tokens": 512}),
            ("transfer", 17.1, 0.9, "d0", 1, {}),
            ("form_event", 18.0, 0.4, "coordinator", 1, {}),
            ("write_event", 18.4, 0.1, "coordinator", 1, {}),
            ("decode", 18.5, 893.5, "d0", 1, {}),
            ("reply", 912.0, 0.4, "coordinator", 0, {}),
        )
    ]
}


def takes(body: Any, is_required: bool = False) -> dict[str, Any]:
    """Returns the `openapi_extra` of a route that takes a body like `body`."""
    content = {"application/json": {"schema": {"type": "object"}, "example": body}}
    return {"requestBody": {"required": is_required, "content": content}}
