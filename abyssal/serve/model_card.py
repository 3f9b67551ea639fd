"""What is known of the model being served: its config, its parameters, and how it was trained.

The folder may be anybody's. Of its files only those are read that lie in it, links out of it are
not followed, and one that is missing or broken leaves its part out.
"""

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from abyssal.engine.llm import LLM
from abyssal.plan.count import count
from abyssal.serve.curves import NAME, Curves, read_curves
from abyssal.serve.faults import Fault
from abyssal.serve.settings import Settings
from abyssal.serve.thinking import REASONER, aliases
from abyssal.tokenizer.template import Layout

REPORT = "report.html"
MOST_REPORT_BYTES = 64 * 2**20
MOST_CONFIG_BYTES = 2**20
MOST_CONFIG_DEPTH = 8

# The report shows itself: no script, nothing loaded, no origin to act in.
REPORT_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox"
    ),
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
}

_logger = logging.getLogger(__name__)


class ModelCard:
    """The facts of one model; reads files, so not on the event loop."""

    def __init__(self, llm: LLM, settings: Settings):
        self._llm, self._settings = llm, settings
        self._read: tuple[tuple[int, ...], Curves] | None = None  # of which file, and what

    def to_dict(self) -> dict[str, Any]:
        """The facts, ready for JSON; the parts of the parameters sum to the total."""
        llm, layout = self._llm, self._settings.layout
        counts = count(llm.config)
        parts = [{"name": k, "count": v} for k, v in asdict(counts.total).items() if v]
        return {
            "id": self._settings.name,
            "folder": None if llm.folder is None else _shown(llm.folder),
            "config": {**self._published(), **llm.config.to_dict()},
            "parameters": {
                "total": counts.params_total,
                "active": counts.params_active_with_embedding,
                "parts": parts,
                "mtp": counts.params_mtp,
            },
            "tokenizer": {
                "vocab_size": llm.tokenizer.vocab_size,
                "sha256": llm.tokenizer.sha256,
            },
            "layout": layout,
            "layouts": list(get_args(Layout)),
            "thinking": REASONER in aliases(layout),
            "max_model_len": llm.config.max_position_embeddings,
            "curves": self._curves(),
            "report": self._file(REPORT) is not None,
        }

    def report(self) -> bytes:
        """The page that training wrote.

        Raises:
            Fault: the folder has none.
        """
        path = self._file(REPORT)
        if path is not None:
            try:
                with path.open("rb") as file:
                    page = file.read(MOST_REPORT_BYTES + 1)
                if len(page) <= MOST_REPORT_BYTES:
                    return page
            except OSError as problem:
                _logger.warning("the report cannot be read: %s", problem)
        message = f"the model's folder has no {REPORT}; training writes one at its end"
        raise Fault(404, message, code="no_report")

    def _published(self) -> dict[str, Any]:
        """What config.json says beside the values that are in use: precision, quantization."""
        path = self._file("config.json")
        if path is None:
            return {}
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(MOST_CONFIG_BYTES))
        except (OSError, ValueError, RecursionError) as problem:
            _logger.warning("config.json cannot be read: %s", problem)
            return {}
        if not isinstance(found, dict):
            return {}
        return {k: v for k, v in found.items() if _is_plain({k: v})}

    def _curves(self) -> Curves:
        """The curves of the folder's run, read anew when its file has changed."""
        path = self._file(NAME)
        if path is None:
            return {}
        try:
            stat = path.stat()
            state = stat.st_ino, stat.st_size, stat.st_mtime_ns
            if self._read is None or self._read[0] != state:
                self._read = state, read_curves(path)
        except OSError as problem:
            _logger.warning("the curves cannot be read: %s", problem)
            return {}
        return self._read[1]

    def _file(self, name: str) -> Path | None:
        """A file of the folder; None where there is none, or where it lies elsewhere."""
        if self._llm.folder is None:
            return None
        try:
            folder = self._llm.folder.resolve()
            path = (folder / name).resolve(strict=True)
            return path if path.is_relative_to(folder) and path.is_file() else None
        except (OSError, RuntimeError):  # a link to itself is either, by Python's version
            return None


def _is_plain(value: object, depth: int = MOST_CONFIG_DEPTH) -> bool:
    """Whether a parsed value can be written as JSON again, and is not too deep."""
    if isinstance(value, str):
        return value.isprintable()  # which half of a surrogate pair is not
    if isinstance(value, int | float):
        return abs(value) < 2**63
    if isinstance(value, list | dict) and depth:
        keys = value if isinstance(value, dict) else ()
        values = value.values() if isinstance(value, dict) else value
        inner = (*keys, *values)
        return all(_is_plain(one, depth - 1) for one in inner)
    return value is None


def _shown(path: Path) -> str:
    """A path as text, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "replace")
