"""The `kvrelay` command as people run it, to its end or in the background."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.process import prepare_child
from tests.support.processes.forked import PROGRAM, ForkedProcess

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def kvrelay(*arguments: str) -> Ended:
    """Runs a command in a forked process until its end; one that takes too long is killed."""
    process = ForkedProcess([*PROGRAM, *arguments], errors_apart=True)
    assert process.stdout is not None and process.stderr is not None
    last_resort = threading.Timer(TIMEOUT_S, process.kill)
    last_resort.start()
    with process.stdout, process.stderr:
        output, errors = process.stdout.read(), process.stderr.read()
    returncode = process.wait()
    last_resort.cancel()
    return Ended(returncode, output, errors)


def started_kvrelay(*arguments: str) -> Ended:
    """Runs a command as a shell does, with an interpreter of its own, until its end."""
    process = start_kvrelay(*arguments)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    return Ended(process.returncode, output, errors)


def start_kvrelay(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a command that a SIGINT ends, even where the tests themselves ignore it."""
    return _start_module("infra.cli", arguments, environment or {})


def start_program_of_sglang(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Starts what users of SGLang type for `kvrelay up`, as `start_kvrelay` does."""
    return _start_module("kvrelay.launch_server", arguments, environment)


def _start_module(
    module: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare_child,
    )


def assert_refused(result: Ended, *words: str) -> None:
    """It failed with a sentence that has these words, and without a traceback."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.startswith("kvrelay: ")
    for word in words:
        assert word in result.stderr
