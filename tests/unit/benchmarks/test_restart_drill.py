"""Windows of a restart drill, and that the guide shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.restarts.load import Seen
from benchmarks.restarts.picture import picture_of
from benchmarks.restarts.published import published_table
from benchmarks.restarts.restarting import Restart
from benchmarks.restarts.windows import Window, windows_of

ROOT = Path(__file__).resolve().parents[3]
SEEN = [
    Seen(0.5, 0.1, 100, 50),
    Seen(4.9, 0.3, 100, 100),
    Seen(5.0, None, 100, 0),
    Seen(6.0, 0.2, 100, 20),
    Seen(11.0, None, 100, 0),
]


def test_a_window_tells_of_the_requests_that_arrived_in_it() -> None:
    assert windows_of(SEEN, 15.0, 5.0) == [
        Window(0.0, 2, 0, 0.75, 200.0, 280.0),
        Window(5.0, 2, 1, 0.2, 200.0, 200.0),
        Window(10.0, 1, 1, None, None, None),
    ]


def test_every_request_is_in_one_window() -> None:
    assert sum(window.num_requests for window in windows_of(SEEN, 15.0, 5.0)) == len(SEEN)


def test_the_picture_marks_each_restart_and_survives_a_window_without_answers() -> None:
    windows = windows_of(SEEN, 15.0, 5.0)
    root = ElementTree.fromstring(picture_of(windows, [Restart("p0", 5.0, 1.0)], 5.0))
    assert [text.text for text in root.iter() if text.text == "p0"] == ["p0"]


@pytest.fixture
def result() -> dict[str, object]:
    file = ROOT / "benchmarks" / "results" / "restart-drill.json"
    loaded: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def test_the_guide_has_the_table_and_the_picture_of_the_result(result: dict[str, object]) -> None:
    windows = [Window(**window) for window in result["windows"]]  # type: ignore[attr-defined]
    restarts = [Restart(**one) for one in result["restarts"]]  # type: ignore[attr-defined]
    guide = (ROOT / "docs" / "guides" / "restarts.md").read_text(encoding="utf-8")
    assert "\n".join(published_table(windows, restarts, 5.0)) in guide
    picture = ROOT / "docs" / "pictures" / "restart-drill.svg"
    assert picture.read_text(encoding="utf-8") == picture_of(windows, restarts, 5.0)
