"""What the guides show runs: the python blocks of each guide, in their order, as one program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.clusters import Cluster

ROOT = Path(__file__).resolve().parents[3]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TIMEOUT_S = 180.0


def program_of(guide: str) -> str:
    """Returns the blocks of a guide, each on the lines that it has there, so that an error names
    the line of the guide."""
    lines = [""] * (guide.count("\n") + 1)
    for block in BLOCK.finditer(guide):
        begin = guide.count("\n", 0, block.start(1))
        code = block.group(1).splitlines()
        lines[begin : begin + len(code)] = code
    return "\n".join(lines) + "\n"


def test_there_are_guides_with_programs() -> None:
    assert {"client", "language"} <= {guide.stem for guide in GUIDES}
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        assert len(BLOCK.findall(text)) == text.count("```python"), f"{guide}: a block has no end"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_programs_of_a_guide_run(guide: Path, tmp_path: Path, tiny_cluster: Cluster) -> None:
    program = tmp_path / f"{guide.stem}.md.py"
    program.write_text(program_of(guide.read_text(encoding="utf-8")), encoding="utf-8")
    url = {"KVRELAY_URL": tiny_cluster.local.url, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, program],
        env={**os.environ, **url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
