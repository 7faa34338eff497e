"""Logs as JSON: one object a line, whatever is logged."""

from __future__ import annotations

import json
import logging

from protocol.telemetry.logs import JsonLines


def test_a_record_is_one_json_object_in_a_line() -> None:
    record = logging.LogRecord("node.shell", logging.WARNING, "f.py", 1, "a %s\nb", ("“x”",), None)
    record.x_request_id = "of-my-client"
    line = JsonLines("rank 1").format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert told["message"] == "a “x”\nb" and told["level"] == "warning"
    assert told["logger"] == "node.shell" and told["process"] == "rank 1"
    assert told["x_request_id"] == "of-my-client"
    assert told["time"].endswith("+00:00")


def test_an_exception_is_in_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("a", logging.ERROR, "f.py", 1, "it failed", (), info)
    told = json.loads(JsonLines().format(record))
    assert "ValueError: no" in told["exception"] and "process" not in told
