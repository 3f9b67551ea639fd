"""Verbs that build: a tokenizer, shards, a model, and the whole path in one go."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abyssal.cli import DEMO, Verb, console, reinforce

if TYPE_CHECKING:
    from abyssal.train.history import Reinforce, Step
    from abyssal.train.reinforcement import Reinforcement
    from abyssal.train.training import Training

Json = Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, such as optim.lr=1e-3.")
]


def tokenizer(
    texts: Annotated[
        list[Path] | None, typer.Argument(help="Text files and folders to train one on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the new tokenizer to.")] = None,
    vocab_size: Annotated[int, typer.Option(help="Tokens, control tokens included.")] = 4096,
    inspect: Annotated[
        str | None, typer.Option(help="Show how this text is cut, and train nothing.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Tokenizer or model folder to inspect with.")] = Path(
        DEMO
    ),
    json: Json = False,
) -> None:
    """Train a tokenizer, or see how one cuts a text."""
    from abyssal.data.documents import DropReport, read_documents
    from abyssal.errors import ConfigError
    from abyssal.tokenizer.bpe import Tokenizer

    if inspect is not None:
        loaded = Tokenizer.load(folder)
        ids = loaded.encode(inspect)
        pieces = [loaded.decode([i]) for i in ids]
        console.show({"tokens": len(ids), "ids": ids, "pieces": pieces}, as_json=json)
        return
    if not texts or out is None:
        raise ConfigError("nothing to do; name text files and --out FOLDER, or give --inspect TEXT")
    report = DropReport()
    documents = (document.text for document in read_documents(texts, report))
    trained = Tokenizer.train(documents, vocab_size)
    trained.save(out)
    console.show(
        {"folder": out, "vocab_size": trained.vocab_size, **report.to_dict()}, as_json=json
    )


def prepare(
    out: Annotated[Path, typer.Option(help="Shard folder to write; must not exist.")],
    paths: Annotated[
        list[Path] | None, typer.Argument(help=".txt and .jsonl files (.gz, .zst), folders.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder.")] = None,
    puzzles: Annotated[
        bool,
        typer.Option(
            "--puzzles", help="No paths: exercises, sums and stories, and a tokenizer, for r1/base."
        ),
    ] = False,
    needles: Annotated[
        bool,
        typer.Option(
            "--needles",
            help="No paths: long texts that hide a key, and a tokenizer, for long/base.",
        ),
    ] = False,
    chats: Annotated[
        bool, typer.Option("--chats", help='Rows are {"messages": [...]}, for fine-tuning.')
    ] = False,
    layout: Annotated[Literal["v3", "r1", "v3.1"], typer.Option(help="Chat layout.")] = "v3",
    field: Annotated[str, typer.Option(help="Field of a row that holds the text.")] = "text",
    split_rate: Annotated[
        float, typer.Option(help="Share of joined punctuation tokens to split.")
    ] = 0.0,
    json: Json = False,
) -> None:
    """Clean, deduplicate and encode text into shards to train on."""
    if puzzles or needles:
        _prepare_shipped(out, json, puzzles, needles)
        return
    from abyssal.data.prepare import prepare_chats, prepare_texts
    from abyssal.errors import DataError
    from abyssal.tokenizer.bpe import Tokenizer

    if not paths or tokenizer is None:
        raise DataError(
            "nothing to prepare; name files and --tokenizer FOLDER, or give --puzzles or --needles"
        )
    loaded = Tokenizer.load(tokenizer)
    if chats:
        shards, report = prepare_chats(paths, loaded, out, layout=layout)
    else:
        shards, report = prepare_texts(paths, loaded, out, field=field, split_rate=split_rate)
    result = {"folder": out, "documents": len(shards), "tokens": shards.num_tokens}
    console.show({**result, **report.to_dict()}, as_json=json)


def _prepare_shipped(out: Path, as_json: bool, puzzles: bool, needles: bool) -> None:
    """What recipes of this package read, made of the text in it."""
    from abyssal.errors import DataError
    from abyssal.train import haystacks, worked

    if puzzles and needles:
        raise DataError("--puzzles and --needles are two; give them folders of their own")
    for doing in (worked if puzzles else haystacks).prepare(out):
        console.note(doing)
    made = {"tokenizer": out / "tokenizer", "data": out / "data"}
    console.show(made, as_json=as_json, title="made")


def train(
    recipe: Annotated[
        str, typer.Argument(help="A packaged name such as tiny/base, or a .toml file.")
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Reinforcement: what the untouched model earns, no more."),
    ] = False,
    json: Json = False,
) -> None:
    """Run a recipe, or go on with it where it stopped.

    In several processes: torchrun --nproc-per-node 2 -m abyssal train RECIPE (docs/training.md).
    """
    _settle_threads()
    from abyssal.errors import ConfigError
    from abyssal.train.reinforcement import Reinforcement
    from abyssal.train.training import Training, begin

    run = begin(recipe, overrides or ())
    if dry_run and not isinstance(run, Reinforcement):
        raise ConfigError(f"{recipe} has nothing to draw; --dry-run is for stages with rewards")
    if dry_run and isinstance(run, Reinforcement):
        reinforce.show_look(run, json)
        return
    if isinstance(run, Training) and not run.ranks.is_first:
        _accompany(run)
        return
    last = _follow(run)
    done = {"folder": run.folder, "finished": run.is_done, "last_step": last}
    if isinstance(run, Training):
        done |= {"world": run.ranks.world, "peak_memory_bytes": run.peak_memory_bytes}
    if json:
        console.show_json(done)
    else:
        console.say(f"{run.folder}: the model folder; its report is {run.folder / 'report.html'}")


def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path(
        "out/demo"
    ),
    json: Json = False,
) -> None:
    """From the text in this package to a model that talks, and one that calculates: ten minutes."""
    _settle_threads()
    from abyssal.train import demo as path

    folders = path.Folders(out)
    for doing in path.prepare(folders):
        console.note(doing)
    for stage in path.STAGES:
        _follow(path.training(stage, folders, overrides or ()))
    messages, learned = path.finish(folders), path.learned(folders)
    if json:
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        reasoning = [task._asdict() for task in learned]
        console.show_json({**folders.made(), "conversation": conversation, "reasoning": reasoning})
        return
    for message in messages:
        console.say(f"{message.role:>9}: {message.content}")
    console.say("")
    rows = [
        (one.task, f"{one.before / one.asked:.1%}", f"{one.after / one.asked:.1%}")
        for one in learned
    ]
    console.table(
        f"sums never seen in training, right of {learned[0].asked}",
        ("task", "before rewards", "after"),
        rows,
    )
    console.say("")
    console.show(folders.made(), as_json=False, title="made")
    console.say(f"\ntalk to it: abyssal chat {folders.model}")
    console.say(f"in a browser: abyssal serve {folders.model} --open")


def _settle_threads() -> None:
    """Give each OpenMP thread a core, and let idle ones sleep soon; before torch is imported.

    Unbound, two threads may share a core; left spinning, they starve when another process is busy.
    A run that is told to take fewer threads is not alone: bound, all such runs would begin to
    count at the same core. Of several processes on a machine each takes its share, but torchrun
    tells them to take one thread where nobody says otherwise.
    """
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if beside != "1" and beside.isdecimal():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(beside))))
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OMP_PROC_BIND", "true")
        os.environ.setdefault("OMP_PLACES", "cores")
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")


def _follow(run: "Training | Reinforcement") -> "Step | Reinforce | None":
    """Any run to its end, as its kind is watched."""
    from abyssal.train.training import Training

    return _watch(run) if isinstance(run, Training) else reinforce.watch(run)


def _watch(run: "Training") -> "Step | None":
    """Follow a run to its end; a run stopped by a signal ends the command with 128 + its number."""
    if run.is_done:
        console.note(f"{run.folder} is done already")
        return None
    last = None
    with console.progress(f"{run.where} {run.stage}", run.run.tokens) as bar:
        for last in run.steps():
            bar.at(last.tokens, total=run.planned_tokens, note=_figures(last))
    if run.stopped_by is not None:
        console.note(f"stopped and saved in {run.folder}; run the same command to go on")
        raise typer.Exit(128 + run.stopped_by)
    return last


def _accompany(run: "Training") -> None:
    """Take the steps of a run of which another process tells: the first one."""
    logging.disable(logging.WARNING)
    for _ in run.steps():
        pass
    if run.stopped_by is not None:
        raise typer.Exit(128 + run.stopped_by)


def _figures(step: "Step") -> str:
    """Loss, speed and utilization of one step, in a line."""
    mfu = "" if step.mfu is None else f" MFU {step.mfu:.0%}"
    return f"loss {step.loss:.3f}  {console.quantity(step.tokens_per_s, 'tok/s')}{mfu}"


VERBS = (
    Verb(
        demo,
        ("abyssal demo", "abyssal demo --out /tmp/try tokens=4e5"),
    ),
    Verb(
        tokenizer,
        (
            "abyssal tokenizer books/ --out out/tokenizer --vocab-size 8192",
            'abyssal tokenizer --inspect "Once upon a time" --folder out/demo/model',
        ),
    ),
    Verb(
        prepare,
        (
            "abyssal prepare books/ --tokenizer out/tokenizer --out out/data/books",
            "abyssal prepare --puzzles --out out/r1",
            "abyssal prepare --needles --out out/long",
            "abyssal prepare chats.jsonl.gz --chats --tokenizer out/tokenizer --out out/data/chats",
        ),
    ),
    Verb(
        train,
        (
            "abyssal train tiny/base",
            "abyssal train tiny/base optim.lr=5e-3 tokens=2e6 out=out/try",
            "abyssal train my-recipe.toml --json",
            "abyssal train r1/zero --dry-run",
        ),
    ),
)
