"""The main job: from the text in the package to a model that talks, on two CPU cores in ten
minutes, and to a smaller one that learns to calculate from rewards alone.

    corpus -> tokenizer -> shards -> base model -> chat model -> report -> a conversation
    sums   -> tokenizer -> shards -> base model -> reasoner   ->

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
from abyssal.parallel.ranks import Ranks
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message
from abyssal.train import worked
from abyssal.train.metrics import read_metrics
from abyssal.train.reinforcement import Reinforcement
from abyssal.train.report import write_report
from abyssal.train.training import Training, begin

VOCAB_SIZE = 4096
PASSES = 4  # over the stories, each with other requests, before the shards repeat
CHATS = 12_000  # conversations to fine-tune on
RECAST = {"stories": 0.3, "chat": 0.5}  # requested stories told about something else (recast.py)
SEED = 1
STAGES = ("base", "chat", "sums", "reason")
SUMS = worked.Mixture(
    stories=300, sums=3000, exercises=30_000, tasks=(worked.SUMS,), writers=(0.4, 0.4), chats=False
)  # more who show steps than r1/base has: there is less time to choose
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
    def reasoning(self) -> Path:
        """A tokenizer, shards and two models of its own: base, and model, which reasons."""
        return self.root / "reasoning"

    @property
    def reasoner(self) -> Path:
        """The model that learned from rewards."""
        return self.reasoning / "model"

    @property
    def report(self) -> Path:
        """One page about all runs."""
        return self.root / "report.html"

    def runs(self) -> dict[str, Path]:
        """The folder of each stage."""
        folders = (self.base, self.model, self.reasoning / "base", self.reasoner)
        return dict(zip(STAGES, folders, strict=True))

    def made(self) -> dict[str, Path]:
        """What a user looks for afterwards."""
        return {
            "base": self.base, "model": self.model, "reasoner": self.reasoner,
            "report": self.report,
        }  # fmt: skip


class Learned(NamedTuple):
    """Questions of one task that are held out, and how many of them the reasoner got right."""

    task: str
    asked: int
    before: int  # by the base model
    after: int


def prepare(folders: Folders) -> Iterator[str]:
    """Train the tokenizer and write the shards; says what it does next."""
    Ranks.of_environment().check_alone("the demo, which runs stages that do not divide,")
    if not (folders.tokenizer / "tokenizer.json").is_file():
        yield f"training a tokenizer of {VOCAB_SIZE:,} words"
        Tokenizer.train(_texts_for_tokenizer(), VOCAB_SIZE).save(folders.tokenizer)
    yield from worked.prepare(folders.reasoning, SEED, SUMS)
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


def training(stage: str, folders: Folders, overrides: Sequence[str]) -> Training | Reinforcement:
    """The run of a stage in the demo's folders; overrides are not for ``reason``."""
    lines = [f'out="{folders.runs()[stage]}"', *_places(stage, folders)]
    return begin(f"tiny/{stage}", lines if stage == "reason" else [*lines, *overrides])


def _places(stage: str, folders: Folders) -> list[str]:
    """Where a stage finds its model, its tokenizer and its data."""
    if stage == "reason":
        return [f'init="{folders.runs()["sums"]}"']
    home = folders.reasoning if stage == "sums" else folders.root
    source = {"base": "stories", "chat": "chat", "sums": "base"}[stage]
    lines = [
        f'tokenizer="{home / "tokenizer"}"',
        f'data.sources=[{{name="{source}", shards="{home / "data" / source}"}}]',
        f'data.held_out=[{{name="stories", shards="{home / "data" / "valid"}"}}]',
    ]
    return [*lines, f'init="{folders.base}"'] if stage == "chat" else lines


def learned(folders: Folders) -> list[Learned]:
    """What the reasoner learned, task by task."""
    rows = read_metrics(folders.reasoner).examinations
    tasks = dict.fromkeys(row.name for row in rows)
    found = [[row for row in rows if row.name == task] for task in tasks]
    return [Learned(some[0].name, some[0].asked, some[0].right, some[-1].right) for some in found]


def finish(folders: Folders) -> list[Message]:
    """Write the report, and let the chat model answer a few turns."""
    write_report(folders.report, list(folders.runs().values()), "Abyssal: from text to chat")
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
