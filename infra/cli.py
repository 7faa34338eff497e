"""The `kvrelay` command and its subcommands.

Errors that a person can mend are printed as a sentence on standard error, with exit code 1 and
without a traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from coordinator.config import CoordinatorConfig
from infra import models
from infra.ports import require_free
from infra.up import UpConfig, up
from infra.workers import run_workers
from node.config import NodeConfig
from protocol.config import add_flags, option, resolve
from protocol.errors import UserError

if TYPE_CHECKING:
    from kvrelay.client import Client

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ClientConfig:
    """Settings of the commands that talk to a running cluster."""

    url: str = option("http://127.0.0.1:30000", "where the coordinator listens")


@dataclasses.dataclass(frozen=True)
class OperatorConfig(ClientConfig):
    """Settings of the commands for operators."""

    admin_token: str = option("", "the cluster's admin token, if it has one", is_secret=True)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Settings of `kvrelay demo`."""

    port: int = option(30000, "HTTP port")
    admin_token: str = option("", "a token for /admin/*; empty: none", is_secret=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that `arguments` (None: those of the process) name."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    command: Callable[[dict[str, Any]], None] = given.pop("run")
    try:
        command(given)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # as in `kvrelay generate … | head`
        # Python flushes standard output once more at exit, which would fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        print(f"kvrelay: {error}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; the attribute `run` is the function of the one given."""
    parser = argparse.ArgumentParser(
        prog="kvrelay",
        description="Disaggregated LLM serving: prefill nodes, decode nodes, one coordinator.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, help: str, run: Callable[[dict[str, Any]], None], *configs: type) -> Any:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        seen: set[str] = set()
        for config in configs:
            seen = add_flags(sub, config, seen)
        sub.set_defaults(run=run)
        return sub

    add("up", "start a whole cluster on this host", up, UpConfig, CoordinatorConfig, NodeConfig)
    add("coordinator", "start one coordinator", _coordinator, CoordinatorConfig)
    add("prefill", "start one prefill node", _prefill, NodeConfig)
    add("decode", "start one decode node", _decode, NodeConfig)
    generate = add("generate", "send a prompt and stream the answer", _generate, ClientConfig)
    generate.add_argument("text")
    generate.add_argument("--max-new-tokens", type=int, default=128)
    generate.add_argument("--temperature", type=float, default=0.0)
    stats = add("stats", "show nodes and caches of a running cluster", _stats, OperatorConfig)
    stats.add_argument("--watch", action="store_true", help="again each second, until Ctrl-C")
    explain = add(
        "explain",
        "tell where a prompt would go and why, without running it",
        _explain,
        OperatorConfig,
    )
    explain.add_argument("text")
    explain.add_argument("--cache-salt", default="", help="the tenant whose prompt it is")
    audit = add(
        "audit",
        "compare what nodes hold with the records of it; exit code 1 if they differ",
        _audit,
        OperatorConfig,
    )
    audit.add_argument("--no-repair", action="store_true", help="only tell what differs")
    demo = add("demo", "start a cluster, show what it does, keep serving", _demo, DemoConfig)
    demo.add_argument("--once", action="store_true", help="exit after the show")
    return parser


def _coordinator(flags: dict[str, Any]) -> None:
    """Fetches the tokenizer if the hub has it, and serves until the coordinator is stopped."""
    # Here and below: a command imports only what it needs. A coordinator must run where torch is
    # not installed, and `kvrelay stats` would wait seconds for imports that it does not use.
    from coordinator.http import server

    config = resolve(CoordinatorConfig, flags, os.environ)
    _start_logging(config.log_level)
    config = dataclasses.replace(
        config,
        model_path=models.path(config.model_path, with_weights=False),
        served_model_name=config.served_model_name or models.served_name(config.model_path),
    )
    if config.workers == 1:
        return server.run(config)
    # First without sharing: two clusters must not share a port by mistake.
    require_free(config.host, config.port)
    # Bound, though it never listens: nobody else gets the port while workers start again.
    with server.listen(config.host, config.port, is_shared=True):
        run_workers(config.workers, partial(_serve_as_worker, config))


def _serve_as_worker(config: CoordinatorConfig, worker: int) -> None:
    """Serves as one of several coordinator processes behind one HTTP port."""
    from coordinator.http import server

    _start_logging(config.log_level, f"worker {worker} ")
    control_port = config.control_port + worker if config.control_port else 0
    server.run(dataclasses.replace(config, control_port=control_port), worker)


def _prefill(flags: dict[str, Any]) -> None:
    from prefill import node

    node.run(_node_config(flags))


def _decode(flags: dict[str, Any]) -> None:
    from decode import node

    node.run(_node_config(flags))


def _node_config(flags: dict[str, Any]) -> NodeConfig:
    """Returns the settings of a node whose model is there; starts its logging."""
    config = resolve(NodeConfig, flags, os.environ)
    _start_logging(config.log_level)
    with_weights = config.load_format != "dummy"
    return dataclasses.replace(config, model_path=models.path(config.model_path, with_weights))


def _generate(flags: dict[str, Any]) -> None:
    """Prints the answer to a prompt as it grows."""
    from kvrelay.client import Client

    with Client(_settings(ClientConfig, flags).url) as client:
        shown = 0
        for update in client.stream(
            flags["text"],
            max_new_tokens=flags["max_new_tokens"],
            temperature=flags["temperature"],
        ):
            print(update.text[shown:], end="", flush=True)
            shown = len(update.text)
        print()


def _stats(flags: dict[str, Any]) -> None:
    from infra.stats import new_console, show_stats, watch_stats

    with _operator(flags) as client:
        if flags["watch"]:
            watch_stats(client, new_console())
        else:
            show_stats(client.cache_stats(), new_console())


def _explain(flags: dict[str, Any]) -> None:
    from infra.stats import new_console, show_explanation

    with _operator(flags) as client:
        show_explanation(client.explain(flags["text"], flags["cache_salt"]), new_console())


def _audit(flags: dict[str, Any]) -> None:
    """Prints an audit; exits with code 1 if something differed, even if it was repaired."""
    from infra.stats import new_console, show_audit

    with _operator(flags) as client:
        audit = client.audit(repair=not flags["no_repair"])
    show_audit(audit, new_console())
    if not audit["clean"]:
        sys.exit(1)


def _demo(flags: dict[str, Any]) -> None:
    from infra.demo import demo

    config = _settings(DemoConfig, flags)
    demo(config.port, config.admin_token, flags["once"])


def _operator(flags: dict[str, Any]) -> Client:
    """Returns a client with the operator's token."""
    from kvrelay.client import Client

    config = _settings(OperatorConfig, flags)
    return Client(config.url, config.admin_token)


def _settings(config: type[T], flags: dict[str, Any]) -> T:
    """Returns the settings `config` of a command; `flags` may have other arguments besides them."""
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    return resolve(config, {k: v for k, v in flags.items() if k in names}, os.environ)


def _start_logging(level: str, label: str = "") -> None:
    """Writes a line to standard output for what is logged. `label` stands before the name of the
    one who logs it."""
    # A coordinator writes a line per request, and no line names these.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s %(levelname)s {label}%(name)s: %(message)s",
        stream=sys.stdout,
        force=True,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
