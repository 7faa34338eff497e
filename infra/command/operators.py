"""The commands for operators of a running cluster, and the one that makes its secret."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from infra.command.client_settings import OperatorConfig, operator
from infra.command.parser import CommandParser
from protocol.errors import UserError
from protocol.timelines.request_reports import MAX_LISTED, RequestState
from protocol.trust.secrets import make_secret_file

AS_IT_IS = "what the coordinator answers, as JSON"


def add_operators(add: Callable[..., CommandParser]) -> None:
    """Adds, by the `add` of the command's parser, the commands for operators."""
    _add_views(add)
    _add_requests(add)
    _add_actions(add)


def _add_views(add: Callable[..., CommandParser]) -> None:
    stats = add("stats", "show nodes and caches of a running cluster", _stats, OperatorConfig)
    stats.add_argument("--watch", action="store_true", help="again each second, until Ctrl-C")
    stats.add_argument("--json", action="store_true", help=AS_IT_IS)
    top = add("top", "watch nodes, requests and rates, until q or Ctrl-C", _top, OperatorConfig)
    top.add_argument("--once", action="store_true", help="print it once; this needs no terminal")
    explain = add(
        "explain",
        "tell where a prompt would go and why, without running it",
        _explain,
        OperatorConfig,
    )
    explain.add_argument("text", help="the prompt, as the model is to see it")
    explain.add_argument(
        "--cache-salt", default="", help="the tenant whose prompt it is (default: none)"
    )
    audit = add(
        "audit",
        "compare what nodes hold with the records of it; exit code 1 if they differ",
        _audit,
        OperatorConfig,
    )
    audit.add_argument("--no-repair", action="store_true", help="only tell what differs")


def _add_requests(add: Callable[..., CommandParser]) -> None:
    requests = add(
        "requests",
        "list the requests that run, and those that ended lately",
        _requests,
        OperatorConfig,
    )
    requests.add_argument(
        "--state",
        choices=("all", "unfinished", *get_args(RequestState)),
        default="all",
        help="which ones (default: all)",
    )
    requests.add_argument("--node", default="", help="only those that were sent to this node")
    requests.add_argument(
        "--older-than-s", type=float, default=0.0, help="only those that arrived so long ago"
    )
    requests.add_argument(
        "--limit", type=int, default=50, help=f"how many, at most {MAX_LISTED} (default: 50)"
    )
    requests.add_argument("--json", action="store_true", help=AS_IT_IS)
    trace = add(
        "trace",
        "tell where the time of one request went, while it runs and for a while after",
        _trace,
        OperatorConfig,
    )
    trace.add_argument("rid", help="`meta_info.id` of /generate, `id` of the other dialects")
    trace.add_argument("--json", action="store_true", help=AS_IT_IS)
    abort = add("abort", "end a request, with what it has answered so far", _abort, OperatorConfig)
    abort.add_argument("rid", help="its name; `kvrelay requests` lists them")


def _add_actions(add: Callable[..., CommandParser]) -> None:
    secret = add("secret", "make a cluster secret, in a file for --cluster-secret-file", _secret)
    secret.add_argument("file", help="where to write it; a file that is there stays as it is")
    drain = add("drain", "keep new requests from a node, until it restarts", _drain, OperatorConfig)
    drain.add_argument("name", help="the node's name; `kvrelay stats` lists them")
    drain.add_argument("--keep", action="store_true", help="also when it restarts, until `undrain`")
    undrain = add("undrain", "let a node get requests again", _undrain, OperatorConfig)
    undrain.add_argument("name", help="the node's name")


def _stats(flags: dict[str, Any]) -> None:
    from infra.tables.stats import new_console, show_stats, watch_stats

    with operator(flags) as client:
        if flags["json"]:
            _print_json(client.cache_stats())
        elif flags["watch"]:
            watch_stats(client, new_console())
        else:
            show_stats(client.cache_stats(), new_console())


def _top(flags: dict[str, Any]) -> None:
    """Shows the cluster in the terminal, live."""
    from infra.command.live_view import print_top, watch_top
    from infra.tables.stats import new_console

    with operator(flags) as client:
        if flags["once"]:
            print_top(client, new_console())
        elif not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UserError("`kvrelay top` needs a terminal; --once prints it anywhere")
        else:
            watch_top(client, new_console())


def _requests(flags: dict[str, Any]) -> None:
    from infra.tables.requests import show_requests
    from infra.tables.stats import new_console

    names = ("state", "node", "older_than_s", "limit")
    with operator(flags) as client:
        found = client.requests(**{name: flags[name] for name in names})
    if flags["json"]:
        _print_json(found)
    else:
        show_requests(found, new_console())


def _abort(flags: dict[str, Any]) -> None:
    with operator(flags) as client:
        client.abort(flags["rid"])
    print(f"{flags['rid']} ends, if it runs, with what it has answered so far")


def _explain(flags: dict[str, Any]) -> None:
    from infra.tables.stats import new_console, show_explanation

    with operator(flags) as client:
        show_explanation(client.explain(flags["text"], flags["cache_salt"]), new_console())


def _trace(flags: dict[str, Any]) -> None:
    from infra.tables.stats import new_console
    from infra.tables.waterfall import show_timeline

    with operator(flags) as client:
        timeline = client.timeline(flags["rid"])
    if flags["json"]:
        _print_json(timeline)
    else:
        show_timeline(timeline, new_console())


def _audit(flags: dict[str, Any]) -> None:
    """Prints an audit; exits with code 1 if something differed, even if it was repaired."""
    from infra.tables.stats import new_console, show_audit

    with operator(flags) as client:
        audit = client.audit(repair=not flags["no_repair"])
    show_audit(audit, new_console())
    if not audit["clean"]:
        sys.exit(1)


def _secret(flags: dict[str, Any]) -> None:
    """Makes a cluster secret, unless the file is there."""
    file = Path(flags["file"])
    try:
        make_secret_file(file)
    except FileExistsError:
        print(f"{file} is there already and stays as it is")
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}); name another file"
        ) from error


def _drain(flags: dict[str, Any]) -> None:
    with operator(flags) as client:
        drained = client.drain(flags["name"], flags["keep"])
    until = "`kvrelay undrain`" if drained["kept"] else "it restarts, or `kvrelay undrain`"
    print(
        f"{drained['name']} gets no new requests until {until}; "
        f"requests of this coordinator that still run there: {drained['unfinished_requests']}"
    )


def _undrain(flags: dict[str, Any]) -> None:
    with operator(flags) as client:
        print(f"{client.undrain(flags['name'])['name']} gets requests again")


def _print_json(answer: Any) -> None:
    print(json.dumps(answer, indent=2, ensure_ascii=False))
