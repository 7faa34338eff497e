"""GET /admin/cache/stats and /admin/nodes: what the cluster holds, in numbers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from coordinator.registry import LiveNode
from coordinator.replies import json_reply
from coordinator.service import Service

router = APIRouter(prefix="/admin")


@router.get("/cache/stats", response_model=None)
async def cache_stats(request: Request) -> Response:
    """Pages, hits and moved pages, of the cluster and per node."""
    service: Service = request.app.state.service
    nodes = {live.node.name: _node_stats(live, service) for live in service.registry.live()}
    totals = service.totals
    return json_reply(
        {
            "cluster": {
                "pages": _sum(nodes, "pages"),
                "requests": totals.requests,
                "requests_hit": totals.requests_hit,
                "request_hit_ratio": _ratio(totals.requests_hit, totals.requests),
                "prompt_tokens": totals.prompt_tokens,
                "cached_tokens": totals.cached_tokens,
                "token_hit_ratio": _ratio(totals.cached_tokens, totals.prompt_tokens),
                "completion_tokens": totals.completion_tokens,
                "transferred_pages": totals.transferred_pages,
                "retries": totals.retries,
                "failed_requests": totals.failed,
                "running_requests": service.num_running,
                "unique_owned_pages": service.index.num_unique_pages,
                "duplicate_owned_pages": service.index.num_owned_pages
                - service.index.num_unique_pages,
                "redis_connected": service.redis_connected,
            },
            "nodes": nodes,
        }
    )


@router.get("/nodes", response_model=None)
async def nodes(request: Request) -> Response:
    """Every live node with its incarnation, lease, load and rates."""
    service: Service = request.app.state.service
    now = asyncio.get_running_loop().time()
    return json_reply(
        [
            {
                "name": live.node.name,
                "incarnation": live.node.incarnation,
                "role": live.info.role,
                "control_address": live.info.control_address,
                "data_address": live.info.data_address,
                "device": live.info.device,
                "layout": msgspec.structs.asdict(live.info.layout),
                "model_fingerprint": live.info.model_fingerprint,
                "num_pages": live.info.num_pages,
                "lease_ends_in_s": round(live.lease_ends - now, 3),
                "last_heartbeat_s_ago": round(now - live.last_heartbeat, 3),
                "load": msgspec.structs.asdict(live.load),
            }
            for live in service.registry.live()
        ]
    )


def _node_stats(live: LiveNode, service: Service) -> dict[str, Any]:
    load = live.load
    return {
        "role": live.info.role,
        "pages": {
            "total": live.info.num_pages,
            "held": load.held_pages,
            "cached": load.cached_pages,
            "free": load.free_pages,
        },
        "owned_pages": service.index.num_pages(live.node),
        "tokens_computed": load.computed_tokens_total,
        "tokens_reused": load.reused_tokens_total,
        "tokens_generated": load.generated_tokens_total,
        "pages_sent": load.pages_sent_total,
        "pages_received": load.pages_received_total,
        "pages_evicted": load.pages_evicted_total,
        "requests": load.requests_total,
        "requests_hit": load.requests_hit_total,
        "transfer_failures": load.transfer_failures_total,
    }


def _sum(nodes: dict[str, dict[str, Any]], key: str) -> dict[str, int]:
    total: dict[str, int] = {"total": 0, "held": 0, "cached": 0, "free": 0}
    for node in nodes.values():
        for name in total:
            total[name] += node[key][name]
    return total


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
