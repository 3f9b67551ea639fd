"""Rows of a .jsonl file as questions to a model, each with sampling values of its own.

    {"prompt": "Once upon a time"}                                       a text, or tokens
    {"id": "a7", "messages": [{"role": "user", "content": "Hi"}]}        a conversation
    {"prompt": "One,", "max_tokens": 8, "temperature": 0, "stop": "."}   values for this row only

A row may have the fields of SamplingParams, and of the chat API `messages`, `tools`,
`response_format` and `thinking`. No torch.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from abyssal.data.records import ROW_SUFFIXES, find_files, read_rows
from abyssal.engine.request import Grammar, SamplingParams
from abyssal.errors import AbyssalError, DataError, RequestError
from abyssal.tokenizer.message import Message
from abyssal.tokenizer.tools import Tool

Key = tuple[str, str | int]  # ("id", the row's own) or ("index", its place in the file)

_NUM_SEEDS = 2**63
_UNTOLD = {"grammar", "insight", "prompt_logprobs"}  # what rows and their answers have no words for
_SAMPLING = {field.name for field in fields(SamplingParams)} - _UNTOLD
_OWN = {"id", "prompt", "messages", "thinking", "tools", "response_format"}
_SHAPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "id": ((str, int), "a text or an integer"),
    "prompt": ((str, list), "a text or a list of token ids"),
    "messages": (list, "a list of messages"),
    "thinking": (bool, "true or false"),
    "tools": (list, "a list of tools"),
    "response_format": (dict, "an object with a type"),
    "stop": ((str, list), "a text or a list of texts"),
    "stop_token_ids": (list, "a list of token ids"),
    "bad_words": (list, "a list of texts"),
    "logit_bias": (dict, "an object of token ids and numbers"),
    "ignore_eos": (bool, "true or false"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One row, checked as far as it can be without a model."""

    index: int  # which row, from 0; blank lines do not count
    where: str  # file:line
    id: str | int | None
    asked: dict[str, object]  # its prompt or messages, as written
    messages: tuple[Message, ...]  # empty: the prompt is a text or tokens
    params: SamplingParams
    thinking: bool
    tools: tuple[Tool, ...]

    @property
    def key(self) -> Key:
        """What an answer is told apart by."""
        return key_of(self.index, self.id)


class Questions:
    """All rows of a file, or of the files of a folder; read anew each time one goes through them.

    Without a seed of its own, row i draws with params.seed + i: equal rows get different answers.

    Raises:
        DataError: while reading, a row is no question, or two rows have the same id.
        RequestError: a sampling value of a row is impossible.
    """

    def __init__(self, path: str | Path, params: SamplingParams, *, thinking: bool = False):
        self.path, self.params, self.thinking = path, params, thinking
        self.ignored: set[str] = set()  # names of fields that say nothing to us
        self._files = find_files(path, ROW_SUFFIXES).files

    def __iter__(self) -> Iterator[Question]:
        rows = (row for file in self._files for row in read_rows(file))
        index = 0
        for where, row, fault in rows:
            if fault == "blank line":
                continue
            if fault:
                raise DataError(f"{where}: {fault}; expected {_EXPECTED}")
            try:
                yield self._question(index, where, row)
            except AbyssalError as problem:
                raise type(problem)(f"{where}: {problem}") from None
            index += 1

    def _question(self, index: int, where: str, row: dict[str, object]) -> Question:
        row = {name: value for name, value in row.items() if value is not None}
        if ("prompt" in row) == ("messages" in row):
            found = "both a prompt and messages" if "prompt" in row else "no prompt"
            raise DataError(f"the row has {found}; expected {_EXPECTED}")
        _check_shapes(row)
        self.ignored |= set(row) - _SAMPLING - _OWN
        asked = {name: value for name, value in row.items() if name in ("prompt", "messages")}
        values: dict[str, Any] = row  # shapes are known now
        return Question(
            index=index,
            where=where,
            id=values.get("id"),
            asked=asked,
            messages=tuple(Message.from_dict(turn) for turn in values.get("messages", ())),
            params=_params(self._seeded(index), values),
            thinking=values.get("thinking", self.thinking),
            tools=tuple(Tool.from_dict(tool) for tool in values.get("tools", ())),
        )

    def _seeded(self, index: int) -> SamplingParams:
        seed = self.params.seed
        if seed is None:
            return self.params
        return replace(self.params, seed=(seed + index) % _NUM_SEEDS)


_EXPECTED = 'a JSON object {"prompt": "..."} or {"messages": [...]}'


def key_of(index: int, row_id: str | int | None) -> Key:
    """The row's own id if it has one, else its place."""
    return ("index", index) if row_id is None else ("id", row_id)


def digest(asked: Mapping[str, object]) -> bytes:
    """What a prompt or messages are recognized by: 16 bytes."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()[:16]


def _check_shapes(row: Mapping[str, object]) -> None:
    for name, (kind, expected) in _SHAPES.items():
        value = row.get(name)
        is_wrong_bool = isinstance(value, bool) and kind is not bool  # True is an int in Python
        if name in row and (is_wrong_bool or not isinstance(value, kind)):
            raise DataError(f"{name}={json.dumps(value):.60}; {expected} was expected")


def _params(params: SamplingParams, row: Mapping[str, Any]) -> SamplingParams:
    changes = {name: row[name] for name in _SAMPLING & set(row)}
    if "logit_bias" in changes:
        changes["logit_bias"] = _by_token(changes["logit_bias"])
    if "response_format" in row:
        changes["grammar"] = _grammar(row["response_format"])
    return replace(params, **changes)


def _by_token(biases: Mapping[str, float]) -> dict[int, float]:
    """JSON has texts for keys."""
    wrong = [token for token in biases if not token.isdecimal()]
    if wrong:
        raise RequestError(f"logit_bias has the key {wrong[0]!r:.60}; token ids were expected")
    return {int(token): bias for token, bias in biases.items()}


def _grammar(wanted: Mapping[str, Any]) -> Grammar | None:
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    make: dict[object, Callable[[], Grammar | None]] = {
        "text": lambda: None,
        "json_object": lambda: Grammar(kind="json_object"),
        "json_schema": lambda: Grammar(kind="json_schema", source=json.dumps(schema)),
    }
    kind = wanted.get("type")
    if not isinstance(kind, str) or kind not in make or (kind == "json_schema" and schema is None):
        raise RequestError(
            f"response_format={json.dumps(wanted):.80}; expected the type text, json_object, or "
            "json_schema with json_schema.schema"
        )
    return make[kind]()
