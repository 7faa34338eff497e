"""What a release is made of: an sdist, and the wheel of it, which runs without the repository."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from infra.ports import free_port
from tests.support.processes.releases import (
    REPOSITORY,
    build_wheel,
    clean_environment,
    install_wheel,
    own_files,
)

pytestmark = pytest.mark.verify
BUILD_SDIST = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has kvrelay installed from the wheel of the sdist of this tree."""
    directory = tmp_path_factory.mktemp("release")
    tree, unpacked = directory / "tree", directory / "unpacked"
    for name in own_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([sys.executable, "-c", BUILD_SDIST, str(directory)], cwd=tree, check=True)
    (sdist,) = directory.glob("kvrelay-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (sources,) = unpacked.iterdir()
    build_wheel(sources, directory / "wheels")
    return install_wheel(directory / "wheels", directory / "environment")


def test_the_demo_runs_in_an_empty_directory(python: Path, tmp_path: Path) -> None:
    words = ["demo", "--once", "--counts-only", "--port", str(free_port()), "--admin-token", "a"]
    shown = subprocess.run(
        [str(python.parent / "kvrelay"), *words],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300.0,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for said in ("The code is 4271.", "Zorin", "were there", "was killed", "Every step held"):
        assert said in shown.stdout
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_it_is_imported_from_where_it_is_installed(python: Path, tmp_path: Path) -> None:
    program = "import infra.models as m; print(m.__file__); print(m.EMBEDDED)"
    told = subprocess.run(
        [str(python), "-c", program],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith(str(python.parent.parent)) for line in told.stdout.splitlines())
