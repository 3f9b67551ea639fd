"""Conversations for fine-tuning: rows of messages in, tokens and what to learn of them out.

A row is ``{"messages": [{"role": "user", "content": "..."}, ...]}``: the messages of the chat
completions API.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from abyssal.data.documents import DropReport, text_fault
from abyssal.data.records import MAX_RECORD_BYTES, ROW_SUFFIXES, find_files, read_rows
from abyssal.errors import DataError
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Layout, Message, render


def read_conversations(
    paths: Iterable[str | Path] | str | Path,
    report: DropReport,
    max_bytes: int = MAX_RECORD_BYTES,
) -> Iterator[list[Message]]:
    """Conversations from .jsonl files, plain or packed (.gz, .zst), and folders of them.

    Raises:
        DataError: at once, if a path does not exist, cannot be read or is of a type not known.
    """
    found = find_files(paths, ROW_SUFFIXES)
    for path in found.unknown:
        report.total += 1
        report.drop("file type not known", str(path))
    return _read_conversations(found.files, report, max_bytes)


def _read_conversations(
    files: list[Path], report: DropReport, max_bytes: int
) -> Iterator[list[Message]]:
    for path in files:
        for where, row, fault in read_rows(path, max_bytes):
            report.total += 1
            messages: list[Message] = []
            if not fault:
                try:
                    messages = _messages(row)
                except DataError as error:
                    fault, where = "bad message", f"{where} ({error})"
            fault = fault or _fault(messages)
            if fault:
                report.drop(fault, where)
            else:
                yield messages


def _messages(row: dict[str, object]) -> list[Message]:
    """The messages of a row; DataError where one is none."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"messages={messages!r:.60}; a list of at least one message was expected")
    return [Message.from_dict(message) for message in messages]


def _fault(messages: Sequence[Message]) -> str:
    """Why nothing can be learned from these messages, or nothing if something can."""
    for message in messages:
        calls = [part for call in message.tool_calls for part in (call.name, call.arguments)]
        for text in (message.content or "", message.reasoning or "", *calls):
            if fault := text_fault(text):
                return fault
    if any(message.prefix for message in messages):
        return "unfinished message"
    if not any(message.role == "assistant" for message in messages):
        return "no assistant message"
    return ""


def unfold(messages: Sequence[Message], layout: Layout) -> list[list[Message]]:
    """The conversations to learn a conversation from: one for each question, where answers think.

    The layouts show only the thoughts of the last answer. So that every thought is learned, and
    every answer in the context it is written in, a conversation whose earlier answers think is
    cut behind each answer. Others stay whole.
    """
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    earlier = messages[: asked[-1]] if asked else []
    if layout == "v3" or not any(message.reasoning is not None for message in earlier):
        return [list(messages)]
    ends = [i for i in asked if any(m.role == "assistant" for m in messages[:i])]
    return [list(messages[:end]) for end in [*ends, len(messages)]]


def encode_conversation(
    messages: Sequence[Message], tokenizer: Tokenizer, layout: Layout = "v3"
) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation, and for each whether the assistant writes it: what to learn.

    Of a conversation whose earlier answers think, only the last is; `unfold` gives the others. V3.1
    thinks where the messages hold reasoning.

    Raises:
        DataError: there are no messages, or the tokenizer lacks a control token of the layout.
    """
    reasons = any(message.reasoning is not None for message in messages)
    rendered = render(
        messages,
        tokenizer,
        layout,
        thinking=layout == "v3.1" and reasons,
        add_generation_prompt=False,
    )
    if len(unfold(messages, layout)) == 1:
        return rendered.tokens, rendered.trained
    asked = max(i for i, message in enumerate(messages) if message.role == "user")
    known = len(
        render(
            messages[: asked + 1],
            tokenizer,
            layout,
            thinking=layout == "v3.1",
            add_generation_prompt=False,
        ).tokens
    )
    return rendered.tokens, [False] * known + rendered.trained[known:]
