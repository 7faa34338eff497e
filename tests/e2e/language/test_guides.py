"""What the guides and the README show runs: the python blocks of each, in their order, as one
program, and each block of calls of curl."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.clusters import Cluster

ROOT = Path(__file__).resolve().parents[3]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs/guides").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PLACE = "localhost:30000"
"""Where guides say that the cluster is."""
TIMEOUT_S = 180.0
STRICT_CURL = 'set -eu; curl() { command curl --silent --show-error --fail-with-body "$@"; }\n'


def program_of(guide: str) -> str:
    """Returns the blocks of a guide, each on the lines that it has there, so that an error names
    the line of the guide."""
    lines = [""] * (guide.count("\n") + 1)
    for block in BLOCK.finditer(guide):
        if block[1] == "python":
            begin = guide.count("\n", 0, block.start(2))
            code = block[2].splitlines()
            lines[begin : begin + len(code)] = code
    return "\n".join(lines) + "\n"


def curls_of(guide: str) -> list[str]:
    """Returns the blocks that call curl; what other commands do, they do to the machine."""
    return [code for kind, code in BLOCK.findall(guide) if kind == "bash" and "curl " in code]


def at_cluster(code: str, cluster: Cluster) -> str:
    return code.replace(PLACE, cluster.local.url.removeprefix("http://"))


def run(command: list[str], cluster: Cluster, directory: Path) -> str:
    url = {"KVRELAY_URL": cluster.local.url, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        command,
        env={**os.environ, **url},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout[-2000:]
    return ended.stdout


def test_there_are_guides_with_programs() -> None:
    assert {"client", "langchain", "language", "openai", "tools"} <= {g.stem for g in GUIDES}
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        begun = text.count("```python") + text.count("```bash")
        assert len(BLOCK.findall(text)) == begun, f"{guide}: a block has no end"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_programs_of_a_guide_run(guide: Path, tmp_path: Path, tiny_cluster: Cluster) -> None:
    program = tmp_path / f"{guide.stem}.md.py"
    text = program_of(guide.read_text(encoding="utf-8"))
    program.write_text(at_cluster(text, tiny_cluster), encoding="utf-8")
    run([sys.executable, str(program)], tiny_cluster, tmp_path)


CURLS = [
    pytest.param(curl, id=f"{guide.stem}-{i}")
    for guide in GUIDES
    for i, curl in enumerate(curls_of(guide.read_text(encoding="utf-8")))
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("curl", CURLS)
def test_the_calls_of_curl_are_answered(curl: str, tmp_path: Path, tiny_cluster: Cluster) -> None:
    assert PLACE in curl
    script = STRICT_CURL + at_cluster(curl, tiny_cluster)
    assert run(["bash", "-c", script], tiny_cluster, tmp_path).strip()
