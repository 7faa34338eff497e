"""How every process writes its log on standard output: lines for people, or JSON."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone

import msgspec


def start_logging(level: str, form: str, label: str = "") -> None:
    """Writes what is logged from now on to standard output, in one of LOG_FORMATS. `label` says
    which of several processes this is."""
    # A coordinator writes a line per request, and no line names these.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stdout)
    prefix = f"{label} " if label else ""
    text = logging.Formatter(f"%(asctime)s %(levelname)s {prefix}%(name)s: %(message)s")
    handler.setFormatter(JsonLines(label) if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """Writes a record as one JSON object in a line."""

    def __init__(self, label: str = "") -> None:
        super().__init__()
        self._label = label

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, with the time in UTC. What was passed as `extra` under the name
        `x_request_id` becomes a key."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._label:
            line["process"] = self._label
        if x_request_id := getattr(record, "x_request_id", ""):
            line["x_request_id"] = x_request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
