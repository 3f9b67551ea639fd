"""Values as TOML has them -> frozen dataclasses, every mistake explained.

A field's annotation says what is expected: a whole number, text, a list, one of some words, a table
for a dataclass of its own. TOML has no null, so the word ``"none"`` stands for None wherever a
field allows it.
"""

import dataclasses
import difflib
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from abyssal.errors import ConfigError

T = TypeVar("T")


def fill(cls: type[T], values: Mapping[str, object], where: str) -> T:
    """An instance of the dataclass cls, nested ones included, made of a recipe's values.

    ``where`` is the file or name that opens every message. Accepts an integral float for an int
    (``6e6``), an int for a float, text for a Path, a list for a tuple, and a ready instance where a
    table would stand.

    Raises:
        ConfigError: a key is unknown or missing, a value has the wrong type, or the dataclass
            refused it; the message names the key as written and what was expected.
    """
    return _Form(where, tuple(_keys(cls))).fill(cls, values, "")


@dataclasses.dataclass(frozen=True)
class _Form:
    """One recipe being poured into dataclasses: how messages begin, and every key there is."""

    where: str
    keys: tuple[str, ...]  # dotted

    def fill(self, cls: type[T], values: Mapping[str, object], table: str) -> T:
        assert dataclasses.is_dataclass(cls)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        kinds = get_type_hints(cls)
        for key in values:
            if key not in fields:
                self._refuse_unknown(key, table, tuple(fields))
        arguments = {
            name: self._value(kinds[name], value, _join(table, name))
            for name, value in values.items()
        }
        for name, field in fields.items():  # what is written is judged before what is missing
            if name not in values and _is_required(field):
                arguments[name] = self._absent(kinds[name], name, table)
        try:
            return cls(**arguments)
        except ConfigError as problem:
            section = f"[{table}] " if table else ""
            raise ConfigError(f"{self.where}: {section}{problem}") from None

    def _value(self, kind: Any, value: object, key: str) -> object:
        """value as the annotated kind wants it."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            (inner,) = (argument for argument in arguments if argument is not types.NoneType)
            return None if value is None or value == "none" else self._value(inner, value, key)
        if origin is Literal:
            if not any(value == one and type(value) is type(one) for one in arguments):
                self._refuse(kind, value, key)
            return value
        if origin is tuple:
            return self._sequence(kind, value, key)
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            if isinstance(value, Mapping):
                return self.fill(kind, value, key)
            if not isinstance(value, kind):
                self._refuse(kind, value, key)
            return value
        return self._scalar(kind, value, key)

    def _sequence(self, kind: Any, value: object, key: str) -> tuple[object, ...]:
        inner = get_args(kind)
        if not isinstance(value, list | tuple):
            self._refuse(kind, value, key)
        if inner[-1] is Ellipsis:
            inner = (inner[0],) * len(value)
        if len(inner) != len(value):
            self._refuse(kind, value, key)
        pairs = zip(inner, value, strict=True)
        return tuple(self._value(one, item, f"{key}[{i}]") for i, (one, item) in enumerate(pairs))

    def _scalar(self, kind: Any, value: object, key: str) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if kind is float and value == value:  # anything but nan
                return float(value)
            if kind is int and (isinstance(value, int) or value.is_integer()):
                return int(value)
        if kind is Path and isinstance(value, str | Path) and str(value):
            return Path(value).expanduser()
        if kind in (str, bool) and isinstance(value, kind):
            return value
        self._refuse(kind, value, key)

    # Refusals

    def _refuse(self, kind: Any, value: object, key: str) -> NoReturn:
        raise ConfigError(f"{self.where}: {key} is {shown(value)}, expected {_described(kind)}")

    def _refuse_unknown(self, key: str, table: str, siblings: Collection[str]) -> NoReturn:
        written = _join(table, key)
        here = nearest(key, siblings)
        elsewhere = [known for known in self.keys if known.split(".")[-1] == key]
        meant = _join(table, here) if here else elsewhere[0] if elsewhere else None
        known = [_join(table, sibling) for sibling in siblings]
        raise ConfigError(f"{self.where}: unknown key {written}; {advice(meant, known)}")

    def _absent(self, kind: Any, name: str, table: str) -> object:
        """What a required key is when nobody wrote it: a table's own required keys are named."""
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self.fill(kind, {}, _join(table, name))
        place = f"under [{table}]" if table else "at the top"
        raise ConfigError(
            f"{self.where}: missing key {_join(table, name)}; "
            f"add a line {name} = ... {place}, {_described(kind)}"
        )


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _keys(cls: Any, table: str = "") -> Iterator[str]:
    """Every dotted key a recipe for the dataclass cls may state, tables after their own keys."""
    kinds = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield _join(table, field.name)
        for kind in (kinds[field.name], *get_args(kinds[field.name])):
            if dataclasses.is_dataclass(kind):
                yield from _keys(kind, _join(table, field.name))


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
    Path: "a path in quotes",
}


def _described(kind: Any) -> str:
    """The annotated kind in words, for `expected ...`."""
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (one for one in get_args(kind) if one is not types.NoneType)
        return f'{_described(inner)}, or "none"'
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(shown(one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if inner[-1] is Ellipsis:
            return f"a list, each entry {_described(inner[0])}"
        return f"a list of {len(inner)}: " + ", ".join(_described(one) for one in inner)
    if dataclasses.is_dataclass(kind):
        return "a table"
    return _WORDS[kind]


def shown(value: object) -> str:
    """A value as a person wrote it, long ones shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def advice(meant: str | None, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the likely one, or all there are."""
    return f"did you mean {meant}?" if meant else f"expected one of {', '.join(known)}"


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.split("_"))


def _join(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known name that word most likely meant, a misspelling or an abbreviation; or None."""
    if close := difflib.get_close_matches(word, known, n=1):
        return close[0]
    return next((one for one in known if one == _initials(word) or word == _initials(one)), None)
