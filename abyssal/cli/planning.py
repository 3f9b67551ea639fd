"""What the command line of `plan` means: models, hardware and layouts by name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abyssal import recipe as recipes
from abyssal.cli import console
from abyssal.config import PRESETS, ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan import config_of, hardware
from abyssal.plan import search as searches
from abyssal.plan import serving as servings
from abyssal.plan.hardware import Accelerator
from abyssal.plan.layout import Layout
from abyssal.plan.schedules import least_micro_batches
from abyssal.plan.training import TrainingPlan, plan_training

if TYPE_CHECKING:
    from abyssal.train.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A model, and what its recipe says about training it."""

    config: ModelConfig
    seq_len: int
    precision: Any
    moments: Any
    micro_sequences: int
    sequences: int | None
    tokens: float | None = None
    recompute: Any = "none"


def read(
    model: str,
    seq_len: int,
    precision: str,
    moments: str,
    micro_sequences: int,
    sequences: int | None,
) -> Asked:
    """A preset, a model folder, or a recipe, which then decides what is asked here."""
    if seq_len < 1:
        raise ConfigError(f"seq_len={seq_len}, expected at least 1 token")
    if model in PRESETS or Path(model).is_dir() or not _is_recipe(model):
        return Asked(
            config=config_of(model), seq_len=seq_len, precision=precision, moments=moments,
            micro_sequences=micro_sequences, sequences=sequences,
        )  # fmt: skip
    from abyssal.train.training import Training

    run = Training(model).run
    rows = round(max(max(part.to, part.start or 0) for part in run.batch.sequences))
    return Asked(
        config=_config_of_run(run),
        seq_len=run.batch.seq_len,
        precision=precision if run.precision == "auto" else run.precision,
        moments=run.optim.moments,
        micro_sequences=run.batch.micro_sequences,
        sequences=rows if sequences is None else sequences,
        tokens=run.tokens,
        recompute="blocks" if run.recompute else "none",
    )


def check_needs_none(names: Sequence[str], given: Sequence[object]) -> None:
    """Refuse options that mean nothing without hardware."""
    used = [name for name, value in zip(names, given, strict=True) if value]
    if used:
        raise ConfigError(f"{', '.join(used)} needs hardware; add --hardware H800, say")


def _is_recipe(model: str) -> bool:
    """A file by its name; anything else if a packaged recipe has that name."""
    if model.endswith(".toml"):
        return True
    try:
        recipes.load(model)
    except ConfigError:
        return False
    return True


def _config_of_run(run: "Run") -> ModelConfig:
    from abyssal.train.pretrain import Pretrain
    from abyssal.train.run import Tuning

    if isinstance(run, Pretrain):
        return run.model
    assert isinstance(run, Tuning)
    return config_of(run.init)


def on(
    name: str,
    asked: Asked,
    price: float | None,
    intra_node: float | None,
    inter_node: float | None,
    processes: int,
) -> Accelerator:
    """The hardware of that name, with what else was said of it."""
    if name == "this":
        from abyssal.train import rates

        console.note("measuring this machine, some ten seconds")
        size = asked.seq_len, asked.micro_sequences
        found = rates.this_machine(asked.config, asked.precision, *size, processes)
    else:
        found = hardware.accelerator(name)
    return replace(
        found,
        dollars_per_hour=found.dollars_per_hour if price is None else price,
        intra_node=intra_node or found.intra_node,
        inter_node=inter_node or found.inter_node,
    )


def layout(asked: Asked, devices: int | None, *, dp: int | None, **given: Any) -> Layout:
    """The layout as given; dp from the number of devices, sequences enough to fill it."""
    pp, schedule = given["pp"], given["schedule"]
    ranks = pp // 2 if schedule == "dualpipev" else pp
    if dp is None:
        if devices is not None and devices % max(1, ranks):
            raise ConfigError(
                f"--devices {devices} do not divide over the {ranks} ranks of a pipeline "
                f"(pp={pp}); take a multiple of {ranks}"
            )
        dp = 1 if devices is None else devices // max(1, ranks)
    elif devices is not None and devices != dp * ranks:
        raise ConfigError(
            f"--devices {devices}, but dp={dp} x {ranks} ranks of a pipeline are {dp * ranks}; "
            "leave one of them out"
        )
    if given["recompute"] == "none":
        given["recompute"] = asked.recompute
    least = 1 if pp == 1 else max(least_micro_batches(schedule, pp), 2 * pp)
    sequences = asked.sequences or least * dp * asked.micro_sequences
    made = Layout(
        dp=dp, sequences=sequences, precision=asked.precision, moments=asked.moments,
        micro_sequences=asked.micro_sequences, seq_len=asked.seq_len, **given,
    )  # fmt: skip
    made.check(asked.config)
    return made


def search(
    asked: Asked, on: Accelerator, devices: int | None, efficiency: float, reserve: float
) -> list[searches.Found]:
    """Every layout that fits, the fastest first."""
    if devices is None:
        raise ConfigError("--search needs to know over how many; add --devices N")
    like = Layout(
        precision=asked.precision, moments=asked.moments, seq_len=asked.seq_len,
        micro_sequences=asked.micro_sequences,
        sequences=(asked.sequences or 8 * devices) * asked.micro_sequences,
    )  # fmt: skip
    return searches.search(asked.config, on, devices, like, efficiency=efficiency, reserve=reserve)


def serving(
    asked: Asked,
    on: Accelerator,
    devices: int | None,
    context: int,
    users: int | None,
    efficiency: float,
    reserve: float,
) -> servings.Serving:
    """A unit of so many devices; of 144 and 32, with the replicas of the online service."""
    number = on.devices_per_node if devices is None else devices
    experts = asked.config.n_routed_experts
    unit = servings.unit_for(asked.config, number)
    for known in servings.UNITS.values():
        if known.devices == number and experts == 256:
            unit = known
    return servings.plan_serving(
        asked.config, on, unit, context=context, batch=users, precision=asked.precision,
        efficiency=efficiency, reserve=reserve,
    )  # fmt: skip


def training(
    asked: Asked,
    layout: Layout,
    on: Accelerator,
    stage: str,
    tokens: float | None,
    efficiency: float,
    reserve: float,
) -> TrainingPlan:
    """The whole plan."""
    return plan_training(
        asked.config, layout, on, stage=stage, tokens=asked.tokens if tokens is None else tokens,
        efficiency=efficiency, reserve=reserve,
    )  # fmt: skip
