"""A run is a recipe: TOML on disk, frozen dataclasses in memory, and every mistake explained.

``load`` reads a recipe, follows its ``base`` line, and applies overrides; ``fill`` (filling.py)
turns the result into any dataclass. A stage declares its own dataclass in its own file; neither
module knows any of them. TOML is the standard library's: ``2.2e-4`` is a float and tables map one
to one onto dataclasses.
"""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from abyssal.errors import ConfigError
from abyssal.filling import advice, nearest, shown
from abyssal.filling import fill as fill

PACKAGED = Path(__file__).with_name("recipes")


def names() -> list[str]:
    """The packaged recipes, such as ``tiny/base``, in alphabetical order."""
    return sorted(
        path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.rglob("*.toml")
    )


def load(
    recipe: str | Path, overrides: Sequence[str] | Mapping[str, object] = ()
) -> dict[str, object]:
    """The values of a recipe, with those of its base recipes under them and overrides on top.

    A recipe is a packaged name (``tiny/base``) or a path ending in ``.toml``; so is its ``base``,
    where a relative path counts from the file that states it. Tables merge key by key, anything
    else (lists too) is replaced. Overrides are ``key=value`` texts (dotted keys; values as in TOML,
    bare words as text) or one nested mapping.

    Raises:
        ConfigError: a file or base is unknown, unreadable or circular, or an override has no key.
    """
    values = _inherit(_locate(recipe, Path(), ""), ())
    if isinstance(overrides, Mapping):
        return _merge(values, overrides)
    for text in overrides:
        values = _merge(values, _read_override(text))
    return values


def stage_of(values: Mapping[str, object], known: Collection[str], where: str) -> str:
    """The ``stage`` a recipe names, which must be one of the known ones."""
    if "stage" not in values:
        raise ConfigError(
            f'{where}: missing key stage; add a line such as stage = "{min(known)}" '
            f"(one of {', '.join(sorted(known))})"
        )
    stage = values["stage"]
    if not isinstance(stage, str) or stage not in known:
        raise ConfigError(
            f"{where}: unknown stage {shown(stage)}; {advice(nearest(str(stage), known), known)}"
        )
    return stage


# Files


def _locate(recipe: str | Path, beside: Path, said_by: str) -> Path:
    """The file of a recipe; relative paths count from `beside`, said_by opens the message."""
    if isinstance(recipe, Path) or recipe.endswith(".toml"):
        path = beside / Path(recipe).expanduser()
        if path.is_file():
            return path
        siblings = [other.name for other in path.parent.glob("*.toml")]
        hint = nearest(path.name, siblings)
        remedy = f"did you mean {path.parent / hint}?" if hint else "check the path"
        raise ConfigError(f"{said_by}{path}: no such recipe file; {remedy}")
    if recipe not in names():
        remedy = advice(nearest(recipe, names()), names())
        raise ConfigError(
            f"{said_by}unknown recipe {recipe!r}; {remedy} (a path must end in .toml)"
        )
    return PACKAGED / f"{recipe}.toml"


def _label(path: Path) -> str:
    """What a person calls this recipe: the packaged name, or the path they gave."""
    if path.is_relative_to(PACKAGED):
        return path.relative_to(PACKAGED).with_suffix("").as_posix()
    return str(path)


def _inherit(path: Path, heirs: tuple[Path, ...]) -> dict[str, object]:
    """The values of a file over those of its base; heirs are the files that led here."""
    chain = (*heirs, path)
    if path.resolve() in [heir.resolve() for heir in heirs]:
        circle = " -> ".join(_label(step) for step in chain)
        raise ConfigError(
            f"{_label(chain[0])}: base recipes form a circle, {circle}; remove one base line"
        )
    values = _read(path)
    if "base" not in values:
        return values
    base = values.pop("base")
    if not isinstance(base, str):
        raise ConfigError(
            f'{_label(path)}: base is {shown(base)}, expected a recipe such as base = "tiny/base"'
        )
    return _merge(_inherit(_locate(base, path.parent, f"{_label(path)}: base: "), chain), values)


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise ConfigError(
            f"{_label(path)}: cannot be read ({problem.strerror}); check the file's permissions"
        ) from None
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{_label(path)}: not UTF-8 text at byte {problem.start}; save the file as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{_label(path)}: not valid TOML: {problem}; correct that line") from None


def _merge(under: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """Both tables in one; where both have a key, tables merge and anything else is replaced."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping):
            value = _merge(below if isinstance(below, Mapping) else {}, value)
        merged[key] = value
    return merged


def _read_override(text: str) -> dict[str, object]:
    """``optim.lr=1e-3`` as ``{"optim": {"lr": 0.001}}``."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"override {text!r} is not key=value; write for example optim.lr=1e-3 or seed=2"
        )
    nested: object = _read_value(value.strip())
    for part in reversed(parts):
        nested = {part: nested}
    assert isinstance(nested, dict)
    return nested


def _read_value(text: str) -> object:
    """A TOML value; what is none, and dates, which no field holds, is text as it stands."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table.pop("value")
    return (
        value if not table and isinstance(value, bool | int | float | str | list | dict) else text
    )
