"""An older release of kvrelay, built from the history of the repository, and its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.process import Process, prepare_child
from tests.support.processes.forked import PROGRAM, start_forked

REPOSITORY = Path(__file__).parents[3]
BEFORE_VERSIONS = "d2bb5d9fc48b6e8ab907fb8328f7d21e1bb20ede"
"""The release if there is no tag: a commit whose processes do not tell versions yet."""


class ReleaseStart:
    """Starts processes of kvrelay, of the older release until `is_upgraded` is set."""

    def __init__(self, python: Path, directory: Path) -> None:
        """`python` is an interpreter that finds the older release outside of the tree."""
        self.is_upgraded = False
        self.num_old = 0
        """How many processes of the older release were started."""
        self._python = python
        self._directory = directory

    def __call__(self, command: Sequence[str]) -> Process:
        if self.is_upgraded or tuple(command[: len(PROGRAM)]) != PROGRAM:
            return start_forked(command)
        self.num_old += 1
        return subprocess.Popen(
            [str(self._python), *command[1:]],
            cwd=self._directory,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=prepare_child,
        )


def last_release(directory: Path) -> ReleaseStart:
    """Builds the wheel of the last tag, installs it in `directory`, and returns
    how its processes are started. Skips the test where the history is not there."""
    commit = _git("describe", "--tags", "--abbrev=0") or BEFORE_VERSIONS
    if not _git("cat-file", "-t", commit):
        pytest.skip(f"the history of this checkout does not reach back to {commit}")
    sources, wheels = directory / "sources", directory / "wheels"
    sources.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit], cwd=REPOSITORY, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x"], cwd=sources, input=archive.stdout, check=True)
    build_wheel(sources, wheels)
    python = install_wheel(wheels, directory / "environment")
    return ReleaseStart(python, directory)


def build_wheel(sources: Path, wheels: Path) -> Path:
    """Builds the wheel of a source tree, which leaves files in the tree, and returns it."""
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*words, "-w", str(wheels), str(sources)], check=True, cwd=wheels.parent)
    (wheel,) = wheels.glob("kvrelay-*.whl")
    return wheel


def install_wheel(wheels: Path, environment: Path) -> Path:
    """Installs the wheel in a new environment, which finds all other packages in that of this
    process. Returns the interpreter."""
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / version / "site-packages"
    # Behind its own packages in the path: the kvrelay that may be installed there is not found.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = wheels.glob("kvrelay-*.whl")
    words = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*words, "--no-compile", "--ignore-installed", str(wheel)], check=True)
    return python


def clean_environment() -> dict[str, str]:
    """Returns the environment of this process without a path to the tree."""
    return {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}


def own_files() -> list[str]:
    """Returns the files of the tree that are, or are about to be, in the repository. Skips the test
    where there is no repository."""
    names = _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    if not names:
        pytest.skip("this is no checkout of the repository")
    return [name for name in names if (REPOSITORY / name).is_file()]


def _git(*words: str) -> str:
    """Returns what git says; "" if it fails."""
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
