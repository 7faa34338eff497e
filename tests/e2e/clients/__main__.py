"""Runs the tests of clients, and writes what was seen into the file that docs/compatibility.md is
made from: `python -m tests.e2e.clients`.

Exits with an error if a test fails, and if the file was not what was seen; it is then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coordinator.http.documents.seen import FILE
from tests.e2e.clients.environment import PYTHON
from tests.e2e.clients.titles import SECTIONS, title

HERE = Path(__file__).parent


class Seen:
    """Gathers the outcome of every test under its title (a pytest plugin)."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, list[str]]] = {key: {} for key in SECTIONS.values()}
        self.num_skipped = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function, call: Any) -> Any:
        report = yield
        if report.when == "call":
            outcomes = self.outcomes[SECTIONS[item.path.stem]]
            outcomes.setdefault(title(item.function), []).append(self._outcome(report))
        elif report.skipped:
            self.num_skipped += 1
        return report

    def _outcome(self, report: Any) -> str:
        if report.passed:
            return "works"
        reason = getattr(report, "wasxfail", None)
        return f"not met: {reason}" if reason is not None else "fails"

    def document(self) -> dict[str, Any]:
        """Returns one line for each title, with the number of its cases."""
        return {"sglang": front_end_version()} | {
            section: {
                name: {"cases": len(cases), "outcome": cases[0]} for name, cases in outcomes.items()
            }
            for section, outcomes in self.outcomes.items()
        }


def front_end_version() -> str:
    """Returns the version of SGLang's package that is installed for the tests."""
    program = "from importlib.metadata import version; print(version('sglang'))"
    return subprocess.check_output([PYTHON, "-c", program], text=True).strip()


def main() -> int:
    seen = Seen()
    code = pytest.main([str(HERE), "-m", "verify"], plugins=[seen])
    if code != 0:
        return int(code)
    if seen.num_skipped:
        print("Nothing is written: a part of these tests was skipped.")
        return 0
    written = json.dumps(seen.document(), indent=1, ensure_ascii=False) + "\n"
    if FILE.exists() and FILE.read_text(encoding="utf-8") == written:
        return 0
    FILE.write_text(written, encoding="utf-8")
    print(f"{FILE} was stale and is written anew; run coordinator.http.documents.compatibility")
    return 1


if __name__ == "__main__":
    sys.exit(main())
