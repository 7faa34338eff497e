"""The `kvrelay` command and its subcommands.

Errors that a person can mend are printed as a sentence on standard error, with exit code 1 and
without a traceback.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from coordinator.config import CoordinatorConfig
from infra import models
from infra.command.client_settings import ClientConfig, first_of, settings
from infra.command.foreign_flags import heed
from infra.command.operators import add_operators
from infra.command.parser import (
    FOREIGN,
    CommandParser,
    add_foreign_flags,
    explain_unknown,
    flags_known_to,
)
from infra.command.sglang_flags import SGLANG_FLAGS
from infra.ports import require_free
from infra.up import UpConfig, up
from infra.workers import run_workers
from kvrelay.bench.config import BenchConfig, add_to
from node.config import NodeConfig
from node.model_check import check_model
from node.stop_signals import StopSignals
from protocol.config import add_flags, option, require, resolve
from protocol.errors import UserError
from protocol.ids import Role
from protocol.telemetry.logs import start_logging
from protocol.trust.versions import RELEASE

if TYPE_CHECKING:
    pass

Command = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Settings of `kvrelay demo`."""

    port: int = option(30000, "HTTP port")
    admin_token: str = option("", "a token for /admin/*; empty: none", is_secret=True)

    def __post_init__(self) -> None:
        require(0 < self.port < 65536, f"--port is {self.port}; it must be between 1 and 65535")


GROUPS = {UpConfig: "the cluster", CoordinatorConfig: "HTTP and routing", NodeConfig: "nodes"}
"""The headings in the help of a command that takes settings of several kinds."""
FOREIGN_HELP = "What flags of SGLang do that are not listed here: docs/sglang-flags.md."


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that `arguments` (None: those of the process) name."""
    try:
        command, given = read_arguments(arguments)
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


def read_arguments(arguments: Sequence[str] | None) -> tuple[Command, dict[str, Any]]:
    """Returns the command that `arguments` name, and its settings as text. Says on standard error
    which flags of SGLang have no effect. Raises ConfigError for one that is refused, and SystemExit
    for what is no flag of the command."""
    parsers: dict[str, CommandParser] = {}
    parsed, unknown = _parser(parsers).parse_known_args(arguments)
    given = vars(parsed)
    command: Command = given.pop("run")
    parser: CommandParser = given.pop("parser")
    if unknown:
        known = {name: flags_known_to(other) for name, other in parsers.items()}
        elsewhere = [(f"`kvrelay {name}`", flags) for name, flags in known.items()]
        parser.error(explain_unknown(unknown, flags_known_to(parser), elsewhere))
    heeded = heed(given.pop(FOREIGN, ()), given)
    for note in heeded.notes:
        print(f"kvrelay: {note}", file=sys.stderr)
    return command, {**given, **heeded.settings}


def _parser(parsers: dict[str, CommandParser]) -> CommandParser:
    """Returns the parser of all commands, and adds that of each to `parsers`. The attribute `run`
    of what it parses is the function of the command, `parser` its parser."""
    top = CommandParser(
        prog="kvrelay",
        description="Disaggregated LLM serving: prefill nodes, decode nodes, one coordinator.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"kvrelay {RELEASE}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, help: str, run: Command, *configs: type) -> CommandParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        seen: set[str] = set()
        for config in configs:
            group = sub.add_argument_group(GROUPS[config]) if len(configs) > 1 else sub
            seen = add_flags(group, config, seen)
        sub.set_defaults(run=run, parser=sub)
        parsers[name] = sub
        return sub

    def add_server(name: str, help: str, run: Command, *configs: type) -> None:
        sub = add(name, help, run, *configs)
        add_foreign_flags(sub, SGLANG_FLAGS)
        sub.usage, sub.epilog = f"kvrelay {name} [--flag VALUE …]", FOREIGN_HELP

    kinds = (UpConfig, CoordinatorConfig, NodeConfig)
    add_server("up", "start a whole cluster on this host", up, *kinds)
    add_server("coordinator", "start one coordinator", _coordinator, CoordinatorConfig)
    add_server("prefill", "start one prefill node", _prefill, NodeConfig)
    add_server("decode", "start one decode node", _decode, NodeConfig)
    generate = add("generate", "send a prompt and stream the answer", _generate, ClientConfig)
    generate.add_argument("text", help="the prompt, as the model is to see it")
    generate.add_argument(
        "--max-new-tokens", type=int, default=128, help="longest answer in tokens (default: 128)"
    )
    generate.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="how much chance there is in the answer; 0: none, the likeliest tokens (default: 0)",
    )
    add_operators(add)
    demo = add("demo", "start a cluster, show what it does, keep serving", _demo, DemoConfig)
    demo.add_argument("--once", action="store_true", help="exit after the show")
    demo.add_argument(
        "--counts-only",
        action="store_true",
        help="check what is computed, and not how long it takes: for machines that are busy",
    )
    serve = add_to(commands, _bench)
    serve.set_defaults(parser=serve)
    parsers["bench serve"] = serve
    return top


def _coordinator(flags: dict[str, Any]) -> None:
    """Fetches the tokenizer if the hub has it, and serves until the coordinator is stopped."""
    # Here and below: a command imports only what it needs. A coordinator must run where torch is
    # not installed, and `kvrelay stats` would wait seconds for imports that it does not use.
    from coordinator.http import server

    config = resolve(CoordinatorConfig, flags, os.environ)
    start_logging(config.log_level, config.log_format)
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
        run_workers(config.workers, partial(_serve_as_worker, config), config.drain_timeout_s)


def _serve_as_worker(config: CoordinatorConfig, worker: int) -> None:
    """Serves as one of several coordinator processes behind one HTTP port."""
    from coordinator.http import server

    start_logging(config.log_level, config.log_format, f"worker {worker}")
    control_port = config.control_port + worker if config.control_port else 0
    server.run(dataclasses.replace(config, control_port=control_port), worker)


def _prefill(flags: dict[str, Any]) -> None:
    _run_node("prefill", flags)


def _decode(flags: dict[str, Any]) -> None:
    _run_node("decode", flags)


def _run_node(role: Role, flags: dict[str, Any]) -> None:
    """Runs a node until it is told to stop. Any node does any work; `role` is what it prefers."""
    signals = StopSignals()  # first: imports take seconds, and weights may be fetched for minutes
    from decode.answers import Answers
    from node.build import run_node
    from prefill.handovers import Handovers

    run_node(role, _node_config(flags), [Answers, Handovers], signals)


def _node_config(flags: dict[str, Any]) -> NodeConfig:
    """Returns the settings of a node whose model is there; starts its logging."""
    config = resolve(NodeConfig, flags, os.environ)
    start_logging(config.log_level, config.log_format)
    small = models.path(config.model_path, with_weights=False)
    if note := check_model(dataclasses.replace(config, model_path=small)):
        log.info(note)
    with_weights = config.load_format != "dummy"
    return dataclasses.replace(config, model_path=models.path(config.model_path, with_weights))


def _generate(flags: dict[str, Any]) -> None:
    """Prints the answer to a prompt as it grows."""
    from kvrelay.client import Client

    config = settings(ClientConfig, flags)
    with Client(config.url, api_key=first_of(config.api_key)) as client:
        shown = 0
        for update in client.stream(
            flags["text"],
            max_new_tokens=flags["max_new_tokens"],
            temperature=flags["temperature"],
        ):
            print(update.text[shown:], end="", flush=True)
            shown = len(update.text)
        print()


def _demo(flags: dict[str, Any]) -> None:
    from infra.demo.demo import demo

    config = settings(DemoConfig, flags)
    demo(config.port, config.admin_token, flags["once"], not flags["counts_only"])


def _bench(config: BenchConfig) -> None:
    from kvrelay.bench.command import run

    run(config)


if __name__ == "__main__":
    main()
