"""Compiles the C files of this folder for this CPU into one library, once per cache directory, and
loads it.

The library lies there under a name that says what it was made of: source,
flags, CPU. It gets there by renaming, so that processes which compile at once do not meet.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from engine.compile_cache import cache_directory

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    *("-std=gnu11", "-O3", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wno-psabi", "-Wno-unknown-pragmas"),
)
VARIANTS = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
"""Further flags, best first. The first of them that a compiler takes are used."""
COMPILE_TIMEOUT_S = 120.0

_POINTER, _SIZE, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
ARGUMENTS = {
    "linear": [_POINTER] * 5 + [_SIZE] * 3 + [_INT] * 2,
    "rms_norm": [_POINTER] * 3 + [_SIZE] * 2 + [_FLOAT],
    "add_rms_norm": [_POINTER] * 4 + [_SIZE] * 2 + [_FLOAT],
    "activate_and_mul": [_POINTER] * 2 + [_SIZE] * 2 + [_INT],
    "split_heads": [_POINTER] * 8 + [_FLOAT] + [_SIZE] * 6,
    "attention": [_POINTER] * 5 + [_SIZE] * 7 + [_FLOAT] * 2 + [_INT],
    "fp8_write": [_POINTER] * 5 + [_SIZE] * 5,
    "fp8_read": [_POINTER] * 4 + [_SIZE] * 6,
    "fp8_attention": [_POINTER] * 6 + [_SIZE] * 8 + [_FLOAT] * 2 + [_INT],
    "forbid": [_POINTER] + [_SIZE] * 2 + [_POINTER] * 2 + [_SIZE] * 2,
    "packed_linear": [_POINTER] * 4 + [_SIZE, _INT],
    "packed_linear_int8": [_POINTER] * 4 + [_SIZE, _INT],
    "round_inputs": [_POINTER] * 2 + [_SIZE] * 2 + [_INT],
}


class CannotCompile(Exception):
    """The native kernels cannot be compiled here. The message says why, and what helps."""


_built: list[Path] = []
"""The libraries that this process has compiled."""


def num_native_builds() -> int:
    """Returns how many times this process has compiled the kernels."""
    return len(_built)


@lru_cache(maxsize=1)
def native_library(directory: Path | None = None) -> ctypes.CDLL | None:
    """Returns the functions of the library, which run without the GIL, and keeps the compiled ones
    in `directory` (None: this user's). Where they cannot be had it writes a line to the log and
    returns None."""
    directory = directory or cache_directory("")
    try:
        return load_library(directory)
    except (CannotCompile, subprocess.SubprocessError) as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error}; make {directory} writable, or name another one with --compile-cache"
    log.warning("decoding on this CPU will be slower, as its kernels are not there: %s", reason)
    return None


def load_library(directory: Path) -> ctypes.CDLL:
    """Loads the library from `directory`, where it compiles it first if it is not there yet.

    Raises CannotCompile, OSError and SubprocessError.
    """
    path = directory / f"kernels-{_fingerprint()}.so"
    if not path.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as private:
            compiled = Path(private) / path.name
            compile_library(compiled)
            os.replace(compiled, path)
            _built.append(path)
    return opened(path)


def opened(path: Path) -> ctypes.CDLL:
    """Opens a library that has been compiled."""
    library = ctypes.CDLL(str(path))
    for name, arguments in ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def compile_library(target: Path, variants: Sequence[Sequence[str]] = VARIANTS) -> None:
    """Compiles the library with those flags of `variants` that a compiler takes first.

    Raises CannotCompile and SubprocessError.
    """
    compilers = list(_compilers())
    if not compilers:
        raise CannotCompile("no C compiler is installed; install gcc, or name one in CC")
    sources = sorted(FOLDER.glob("*.c"))
    complaint = ""
    for compiler in compilers:
        for variant in variants:
            command = [*compiler, *FLAGS, *variant, *map(str, sources), "-o", str(target), "-lm"]
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S
            )
            if result.returncode == 0:
                return
            complaint = f"{compiler[0]} says {result.stderr.strip()[-300:]!r}"
    raise CannotCompile(f"{complaint}; install gcc, or name another compiler in CC")


def _compilers() -> Iterator[list[str]]:
    chosen = os.environ.get("CC", "").split()
    for command in (chosen, *([name] for name in COMPILERS)):
        if command and shutil.which(command[0]):
            yield command


def _fingerprint() -> str:
    files = sorted((*FOLDER.glob("*.c"), *FOLDER.glob("*.h")))
    texts = [(file.name, file.read_text(encoding="utf-8")) for file in files]
    made_of = (texts, FLAGS, VARIANTS, _cpu())
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]


def _cpu() -> tuple[str, ...]:
    """Returns what a compiler chooses instructions by. It is part of the library's name because
    unlike machines may share a cache directory."""
    known = (platform.system(), platform.machine(), platform.processor())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return known
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return (*known, *sorted({line for line in lines if line.startswith(names)}))
