"""The main job: from the text in the package to a model that talks, on two CPU cores in ten
minutes.

    corpus -> tokenizer -> shards -> base model -> chat model -> report -> a conversation

Every step is what the other verbs do, and a step that is done is not done again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from abyssal.data import corpus
from abyssal.data.chat_mixture import finetuning_chats, pretraining_texts
from abyssal.data.documents import DropReport
from abyssal.data.encoding import encode, write_encoded
from abyssal.data.requests import Requests
from abyssal.engine.llm import LLM
from abyssal.errors import DataError
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message
from abyssal.train.report import write_report
from abyssal.train.training import Training

VOCAB_SIZE = 4096
PASSES = 4  # over the stories, each with other requests, before the shards repeat
CHATS = 12_000  # conversations to fine-tune on
RECAST = {"stories": 0.3, "chat": 0.5}  # requested stories told about something else (recast.py)
SEED = 1
STAGES = ("base", "chat")
QUESTIONS = ("Hello! How are you?", "Please tell me a story about a little rabbit.", "Thank you!")


class Folders(NamedTuple):
    """Where the demo puts things."""

    root: Path

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json and its config."""
        return self.root / "tokenizer"

    @property
    def data(self) -> Path:
        """Shard folders: stories, chat, valid."""
        return self.root / "data"

    @property
    def base(self) -> Path:
        """The base model."""
        return self.root / "base"

    @property
    def model(self) -> Path:
        """The chat model."""
        return self.root / "model"

    @property
    def report(self) -> Path:
        """One page about both runs."""
        return self.root / "report.html"

    def made(self) -> dict[str, Path]:
        """What a user looks for afterwards."""
        return {"base": self.base, "model": self.model, "report": self.report}


def prepare(folders: Folders) -> Iterator[str]:
    """Train the tokenizer and write the shards; says what it does next."""
    if not (folders.tokenizer / "tokenizer.json").is_file():
        yield f"training a tokenizer of {VOCAB_SIZE:,} words"
        Tokenizer.train(_texts_for_tokenizer(), VOCAB_SIZE).save(folders.tokenizer)
    tokenizer = Tokenizer.load(folders.tokenizer)
    wanted = [name for name in ("stories", "chat", "valid") if not (folders.data / name).is_dir()]
    if not wanted:
        return
    yield "learning what the stories are about"
    stories = corpus.stories("train")
    requests = Requests(stories)
    for name in wanted:
        yield f"encoding {name}"
        items: Sequence[str | list[Message]] = _documents(name, stories, requests)
        report = DropReport(total=len(items))
        masked = name == "chat"
        write_encoded(
            folders.data / name, encode(items, tokenizer, masked=masked), tokenizer, report
        )


def training(stage: str, folders: Folders, overrides: Sequence[str]) -> Training:
    """The run of a stage, ``base`` or ``chat``, in the demo's folders."""
    places = {"base": folders.base, "chat": folders.model}
    lines = [f'out="{places[stage]}"', f'tokenizer="{folders.tokenizer}"']
    source = {"base": "stories", "chat": "chat"}[stage]
    lines += [
        f'data.sources=[{{name="{source}", shards="{folders.data / source}"}}]',
        f'data.held_out=[{{name="stories", shards="{folders.data / "valid"}"}}]',
    ]
    if stage == "chat":
        lines.append(f'init="{folders.base}"')
    return Training(f"tiny/{stage}", [*lines, *overrides])


def finish(folders: Folders) -> list[Message]:
    """Write the report, and let the chat model answer a few turns."""
    write_report(folders.report, [folders.base, folders.model], "Abyssal: from text to chat")
    llm = LLM(folders.model)
    messages: list[Message] = []
    for turn, question in enumerate(QUESTIONS):
        messages.append(Message("user", question))
        answer = llm.chat(messages, max_tokens=200, temperature=0.6, top_p=0.9, seed=turn).text
        messages.append(Message("assistant", answer))
    return messages


def _texts_for_tokenizer() -> Iterator[str]:
    yield from corpus.stories("train")
    for chat in finetuning_chats(SEED, 4000, story_share=0.0):
        yield from (message.content or "" for message in chat)


def _documents(
    name: str, stories: Sequence[str], requests: Requests
) -> Sequence[str | list[Message]]:
    if name == "valid":
        return corpus.stories("valid")
    if name == "chat":
        return list(
            finetuning_chats(
                SEED, CHATS, stories=stories, requests=requests, recast_share=RECAST[name]
            )
        )
    if name == "stories":
        passes = [
            pretraining_texts(
                SEED + i,
                stories=stories,
                requests=requests,
                talk_share=0.03,
                recast_share=RECAST[name],
            )
            for i in range(PASSES)
        ]
        return [document for documents in passes for document in documents]
    raise DataError(f"the demo has no shards named {name!r}; expected stories, chat or valid")
