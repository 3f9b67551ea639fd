"""The server's log: one JSON object a line, about requests and never with what was said in them."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

ACCESS = logging.getLogger("abyssal.serve.access")

_MAX_TEXT = 2000  # characters of one value in a line; a traceback's end is the part that tells


class JsonLines(logging.Formatter):
    """A log record as one line of JSON, ASCII only, so that nothing sent can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """time, level, logger, then the record's fields (``extra={"fields": {...}}``)."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage()[:_MAX_TEXT],
        }
        line.update(record.__dict__.get("fields", {}))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)[-_MAX_TEXT:]
        return json.dumps(line, default=str)


def log_to(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Write the log of this package and of uvicorn to stream (None: standard error).

    uvicorn's own access log stays off: the guard writes one that has ids and keys.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("abyssal", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(level)
        logger.propagate = name == "uvicorn.error"
    logging.getLogger("uvicorn.access").disabled = True


def log_request(fields: dict[str, object]) -> None:
    """One line about one request that was answered."""
    ACCESS.info("request", extra={"fields": fields})
