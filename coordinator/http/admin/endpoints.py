"""/admin/*: what the cluster holds, why requests go where they go, and what an operator may do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from coordinator.audit import audit
from coordinator.core.hot_prefixes import MAX_PREFIXES
from coordinator.http.admin import examples
from coordinator.http.admin.examples import takes
from coordinator.http.admin.explained import asked_prompt, path_report
from coordinator.http.admin.token import require_token
from coordinator.http.documents.bodies import answers
from coordinator.http.documents.shapes import Variations
from coordinator.http.errors import BadRequest
from coordinator.http.native.intake import make_request
from coordinator.http.native.schema import tenant
from coordinator.http.replies import FAULTS, error_reply, fault_reply, json_reply
from coordinator.http.requests import object_of, service_of
from coordinator.routing.prices.candidates import Candidate
from coordinator.routing.registry import LiveNode
from coordinator.routing.route import Route
from coordinator.service import Service
from protocol.counters import NodeCounters, ratio
from protocol.messages import LinkLoad, Load
from protocol.redis.client import REDIS_ERRORS
from protocol.redis.ownership import DOES_NOT_DRAIN, KEEPS_DRAINING

FLUSH_TIMEOUT_S = 5.0
NO_NODE = {404: "no live node has that name"}
NO_REDIS = {503: "Redis is unreachable, nothing was changed"}
NOT_READY = {503: "no node could serve it"}
BY_NODE = Variations(by_name=("nodes",))
NULL_WORDS = Variations(nullable=("first_words",))
FLUSHED_PAGES = Variations(by_name=("pages",))
NULL_CHOICES = Variations(
    nullable=("prefill", "fetch_from", "leaves_at_token", "words_before", "words_behind")
)

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_token)])


@router.get(
    "/cache/stats", response_model=None, responses=answers(examples.STATS, variations=BY_NODE)
)
async def cache_stats(request: Request) -> Response:
    """Answers what the caches hold, hit and move, of the cluster and of each node, with the size
    of this coordinator's index and its lag behind Redis.

    Counts of requests are sums over all coordinators, which are asked now, since the start of each
    and of the last five minutes; `unanswered_coordinators` are those that did not tell theirs in
    time. Pages and counts of nodes are those of their newest heartbeats: no node is asked.
    `refusals` is how often this coordinator did not let a peer in, or did not believe a message.
    `refused_nodes` are those that want to join and are kept out, and why.
    """
    service = service_of(request)
    counts = await service.count_everywhere()
    nodes = {live.node.name: _node_stats(live, service) for live in service.core.registry.live()}
    index, follower = service.core.index, service.follower
    cluster = {
        **counts.lifetime.report(),
        "last_5_minutes": counts.recent.report(),
        "pages": {
            name: sum(node["pages"][name] for node in nodes.values())
            for name in ("total", "used", "held", "cached", "free")
        },
        "node_counters": _sums(live.load.counters for live in service.core.registry.live()),
        "running_requests": counts.num_running,
        "waiting_requests": counts.num_waiting,
        "coordinators": counts.num_coordinators,
        "unanswered_coordinators": sorted(counts.unanswered),
        "unique_owned_pages": index.num_unique_pages,
        "duplicate_owned_pages": index.num_owned_pages - index.num_unique_pages,
        "index_bytes": index.num_bytes,
        "index_lag_s": round(follower.mirror.lag_s, 4),
        "refusals": service.num_refusals,
        "redis_connected": follower.mirror.is_connected,
        "refused_nodes": [
            {"name": name, "why": refused.why}
            for name, refused in sorted(service.core.registry.refused.items())
        ],
        "policy": service.config.policy,
    }
    return json_reply({"cluster": cluster, "nodes": nodes})


@router.get(
    "/cache/prefixes",
    response_model=None,
    responses=answers(examples.PREFIXES, variations=NULL_WORDS),
)
async def prefixes(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_PREFIXES, description="how many at most")] = 20,
) -> Response:
    """Answers the prefixes that requests through this coordinator had in common most often.

    `first_words` are shown with --show-prompt-words, and never those of a tenant with a cache_salt.
    """
    service = service_of(request)
    now = service.now()
    index, shows_words = service.core.index, service.config.show_prompt_words
    hottest = service.core.statistics.hot_prefixes.hottest(limit)
    return json_reply(
        {
            "prefixes": [
                {
                    "page_hash": prefix.page_hash.hex(),
                    "tokens": prefix.num_tokens,
                    "hits": prefix.hits,
                    "hits_overcounted_by_at_most": prefix.error,
                    "last_hit_s_ago": round(now - prefix.last_hit, 3),
                    "owners": sorted(node.name for node in index.owners(prefix.page_hash)),
                    "salted": prefix.is_salted,
                    "first_words": service.tokenizer.decode(prefix.first_tokens, True)
                    if shows_words and not prefix.is_salted
                    else None,
                }
                for prefix in hottest
            ]
        }
    )


@router.post(
    "/cache/flush",
    response_model=None,
    responses=answers(examples.FLUSHED, NO_NODE, FLUSHED_PAGES),
    openapi_extra=takes(examples.FLUSH),
)
async def flush(request: Request) -> Response:
    """Forgets the cached pages that no request holds: of one node (`node`), of one tenant
    (`cache_salt`, "" for those without), of both, or all. Answers the pages by node."""
    service = service_of(request)
    try:
        node, cache_salt = _flush_target(await object_of(request))
    except FAULTS as error:
        return fault_reply(error)
    nodes = [live for live in service.core.registry.live() if node in (None, live.node.name)]
    if node is not None and not nodes:
        return error_reply(404, _unknown(node, service))
    pages = await service.flush_cache(nodes, cache_salt, FLUSH_TIMEOUT_S)
    unanswered = sorted({live.node.name for live in nodes} - pages.keys())
    return json_reply({"pages": pages, "unanswered": unanswered})


@router.post(
    "/cache/audit", response_model=None, responses=answers(examples.AUDIT, variations=BY_NODE)
)
async def cache_audit(
    request: Request, repair: Annotated[bool, Query(description="mend what differs")] = True
) -> Response:
    """Compares what every node really holds with its record in Redis and with the mirror here.

    A debugging aid: it reads every page hash. A difference counts if it is still there a second
    later.
    """
    audits = await audit(service_of(request), repair)
    return json_reply(
        {
            "clean": all(each.is_clean for each in audits.values()),
            "nodes": {name: each.report() for name, each in audits.items()},
        }
    )


@router.get("/nodes", response_model=None, responses=answers(examples.NODES))
async def nodes(request: Request) -> Response:
    """Answers every live node with its incarnation, lease, load, rates and links.

    `backlog_s` is how long its prompts will keep it busy, by this coordinator's estimate. `links`
    has what it sent to and received from each peer since its start; `exposed_s` of `in` is how long
    requests waited for pages while nothing was computed for them. `turn_s` of the load is for how
    long its main loop has not come round: a busy node lives.
    """
    service = service_of(request)
    now = service.now()
    return json_reply(
        [
            {
                "name": live.node.name,
                "incarnation": live.node.incarnation,
                "role": live.load.role,
                "draining": live.node.name in service.core.placement.draining,
                "control_address": live.info.control_address,
                "data_addresses": live.info.data_addresses,
                "health_address": live.info.health_address,
                "release": live.info.versions.release,
                "protocol": live.info.versions.newest,
                "device": live.info.device,
                "layout": msgspec.structs.asdict(live.info.layout),
                "model_fingerprint": live.info.model_fingerprint,
                "num_pages": live.info.num_pages,
                "owned_pages": service.core.index.num_pages(live.node),
                "lease_ends_in_s": round(live.lease_ends - now, 3),
                "last_heartbeat_s_ago": round(now - live.last_heartbeat, 3),
                "backlog_s": round(service.core.placement.queue_s(live.node, now), 4),
                "load": _load(live.load),
                "links": [_link(link) for link in live.load.links],
            }
            for live in service.core.registry.live()
        ]
    )


@router.post(
    "/nodes/{name}/drain",
    response_model=None,
    responses=answers(examples.DRAINED, NO_NODE | NO_REDIS),
)
async def drain(request: Request, name: str, keep: bool = False) -> Response:
    """Gives the node no new requests; those it has run to their end, and its pages can still be
    fetched. For all coordinators, until `undrain` or until the node restarts; with `keep` the next
    processes of that name drain too."""
    service = service_of(request)
    live = _live(name, service)
    if live is None:
        return error_reply(404, _unknown(name, service))
    mark = KEEPS_DRAINING if keep else str(live.node.incarnation)
    return await _set_drain_mark(service, name, mark)


@router.post(
    "/nodes/{name}/undrain",
    response_model=None,
    responses=answers(examples.DRAINED, NO_NODE | NO_REDIS),
)
async def undrain(request: Request, name: str) -> Response:
    """Lets the node get new requests again, from all coordinators, however it was drained."""
    service = service_of(request)
    is_marked = name in service.follower.mirror.drain_marks
    if not is_marked and _live(name, service) is None:
        return error_reply(404, _unknown(name, service))
    return await _set_drain_mark(service, name, DOES_NOT_DRAIN)


@router.post(
    "/route/explain",
    response_model=None,
    responses=answers(examples.EXPLANATION, NOT_READY, NULL_CHOICES),
    openapi_extra=takes(examples.PROMPT, is_required=True),
)
async def explain(request: Request) -> Response:
    """Answers where a request would go now, and why. Runs nothing. It is a body of /generate with
    one prompt, of a chat, of /v1/messages (with `system`) or of /v1/responses.

    `candidates` has nodes that would compute the prompt for another (`prefill`), nodes that would
    answer (`decode`), and nodes that would do both. Their terms are milliseconds.
    `cached_path` is the longest beginning of the prompt that a node owns, with the token at which
    the prompt leaves it (null: it does not) and, with --show-prompt-words and without a cache_salt,
    the words on both sides of it.
    """
    service = service_of(request)
    try:
        prompt, tokens = await asked_prompt(service, await object_of(request))
        service.core.require_ready()
        asked = make_request(prompt, tokens, 0, service.tokenizer, service.max_total_tokens)
        candidates, route, path = service.core.explain(asked, service.now())
    except FAULTS as error:
        return fault_reply(error)
    layout = [*candidates.decode, *candidates.both][0].live.info.layout
    return json_reply(
        {
            "prompt_tokens": len(tokens),
            "prompt_pages": layout.num_pages(len(tokens)),
            "policy": service.config.policy,
            "choice": {
                "prefill": route.prefill.name if route.prefill else None,
                "decode": route.decode.name,
                "fetch_from": route.fetch_from.name if route.fetch_from else None,
                "first_token_ms": _ms(route.cost.first_token_s),
            },
            "reason": route.reason,
            "runner_up": route.runner_up,
            "cached_path": path_report(service, asked, path),
            "candidates": {
                "prefill": [_candidate(c, route, "prefill") for c in candidates.prefill],
                "decode": [_candidate(c, route, "decode") for c in candidates.decode],
                "both": [_candidate(c, route, "both") for c in candidates.both],
            },
        }
    )


def _live(name: str, service: Service) -> LiveNode | None:
    """Returns the live node of a name."""
    return next((live for live in service.core.registry.live() if live.node.name == name), None)


async def _set_drain_mark(service: Service, name: str, mark: str) -> Response:
    try:
        await service.set_drain_mark(name, mark)
    except REDIS_ERRORS as error:
        return error_reply(503, f"Redis is unreachable, nothing was changed: {error}")
    queue = service.core.placement.queues.get(name)
    num_unfinished = queue.num_requests if queue is not None else 0
    is_draining = mark != DOES_NOT_DRAIN
    return json_reply(
        {
            "name": name,
            "draining": is_draining,
            "kept": mark == KEEPS_DRAINING,
            "unfinished_requests": num_unfinished,
        }
    )


def _flush_target(given: dict[str, Any]) -> tuple[str | None, str | None]:
    """Returns the node and the cache_salt to flush; None stands for any. Raises BadRequest."""
    if not given.keys() <= {"node", "cache_salt", "extra_key"}:
        raise BadRequest("the body may have node, cache_salt and extra_key, and nothing else")
    if not all(isinstance(value, str) for value in given.values()):
        raise BadRequest("node, cache_salt and extra_key are strings")
    if "cache_salt" not in given and "extra_key" not in given:
        return given.get("node"), None
    return given.get("node"), tenant(given.get("cache_salt", ""), given.get("extra_key", ""))


def _unknown(name: str, service: Service) -> str:
    names = ", ".join(live.node.name for live in service.core.registry.live())
    return f"no node is named {name!r}; there are {names or 'none'}"


def _candidate(candidate: Candidate, route: Route, task: str) -> dict[str, Any]:
    node, cost = candidate.live.node, candidate.cost
    chosen_node = {
        "prefill": route.prefill,
        "decode": route.decode if route.prefill else None,
        "both": None if route.prefill else route.decode,
    }[task]
    is_same_fetch = task == "decode" or candidate.fetch_pages == route.fetch_pages
    return {
        "node": node.name,
        "owned_pages": candidate.owned_pages,
        "fetch_from": candidate.fetch_from.node.name if candidate.fetch_from else None,
        "fetch_pages": candidate.fetch_pages,
        "queue_ms": _ms(cost.queue_s),
        "fetch_ms": _ms(cost.fetch_s),
        "compute_ms": _ms(cost.compute_s),
        "transfer_ms": _ms(cost.transfer_s),
        "wait_ms": _ms(cost.wait_s),
        "evict_ms": _ms(cost.evict_s),
        "delay_ms": _ms(cost.delay_s),
        "passing_ms": _ms(cost.passing_s),
        "first_token_ms": _ms(cost.first_token_s),
        "score_ms": _ms(candidate.score),
        "chosen": node == chosen_node and is_same_fetch,
    }


def _node_stats(live: LiveNode, service: Service) -> dict[str, Any]:
    load = live.load
    found = load.counters.reused_tokens + load.counters.fetched_tokens
    return {
        "role": live.load.role,
        "draining": live.node.name in service.core.placement.draining,
        "pages": {
            "total": live.info.num_pages,
            "used": load.held_pages + load.cached_pages,
            "held": load.held_pages,
            "cached": load.cached_pages,
            "free": load.free_pages,
        },
        "owned_pages": service.core.index.num_pages(live.node),
        "counters": msgspec.structs.asdict(load.counters),
        "token_hit_ratio": ratio(found, found + load.counters.computed_tokens),
        "request_hit_ratio": ratio(load.counters.requests_hit, load.counters.requests),
    }


def _sums(counters: Iterable[NodeCounters]) -> dict[str, float]:
    sums = msgspec.structs.asdict(NodeCounters())
    for one in counters:
        for name, value in msgspec.structs.asdict(one).items():
            sums[name] += value
    return sums


def _load(load: Load) -> dict[str, Any]:
    """Returns the load as JSON, without what is told elsewhere: links beside it, times of steps in
    the node's metrics."""
    values: dict[str, Any] = msgspec.to_builtins(load)
    del values["links"], values["step_times"]
    return values


def _link(link: LinkLoad) -> dict[str, Any]:
    return {
        "peer": link.peer,
        "direction": link.direction,
        "transport": link.transport,
        "open": link.is_open,
        "bytes": link.bytes_total,
        "pages": link.pages_total,
        "busy_s": round(link.busy_s_total, 4),
        "exposed_s": round(link.exposed_s_total, 4),
        "failures": link.failures_total,
        "opened": link.opened_total,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
