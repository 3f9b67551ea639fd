"""The paper map names what exists, and misses no equation the code is marked with."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")

NAME = re.compile(r"`((?:abyssal|tests)/[\w/.-]+\.\w+)(?::([\w.]+))?`")
ROW = re.compile(r"^\| ([\d, -]+) \|(.*)\|$", re.MULTILINE)
MARK = re.compile(r"\beqs?\. (\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)")


def numbers(text: str) -> set[int]:
    """{17, 18, 19, 24} for "17-19, 24"."""
    ends = [part.split("-") for part in text.split(", ")]
    return {number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)}


def marks(source: str) -> set[int]:
    """The equations that a source says it implements."""
    return {number for found in MARK.findall(source) for number in numbers(found)}


def equations() -> dict[int, set[str]]:
    """The files beside each equation of the map."""
    section = MAP[MAP.index("## Equations") : MAP.index("## Sections")]
    files: dict[int, set[str]] = {}
    for which, beside in ROW.findall(section):
        for number in numbers(which.strip()):
            assert number not in files, f"equation {number} has two rows"
            files[number] = {file for file, _ in NAME.findall(beside)}
    return files


@cache
def names_in(file: str) -> set[str]:
    """What a file defines: functions, classes, their methods and fields, and constants."""
    return set(_names(ast.parse((ROOT / file).read_text(encoding="utf-8")).body, ""))


def _names(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from _names(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield prefix + node.name
        elif isinstance(node, ast.AnnAssign):
            yield prefix + ast.unparse(node.target)
        elif isinstance(node, ast.Assign):
            yield from (prefix + ast.unparse(target) for target in node.targets)


@pytest.mark.parametrize(("file", "name"), sorted(set(NAME.findall(MAP))))
def test_every_file_and_function_of_the_map_exists(file, name):
    assert (ROOT / file).is_file()
    if name:
        assert name in names_in(file), f"{file} defines no {name}"


def test_the_map_has_a_row_for_each_of_the_28_equations():
    assert sorted(equations()) == list(range(1, 29))


@pytest.mark.parametrize(
    "file",
    sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "abyssal").rglob("*.py")),
)
def test_an_equation_marked_in_a_file_has_that_file_in_its_row(file):
    rows = equations()
    marked = marks((ROOT / file).read_text(encoding="utf-8"))
    absent = {number for number in marked if file not in rows.get(number, set())}
    assert not absent, f"docs/paper.md does not name {file} beside equations {sorted(absent)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1  # (T, E)  eq. 15", {15}),
        ("turned (eq. 6-9).", {6, 7, 8, 9}),
        ("L = L_main        eq. 17-19, 24-25", {17, 18, 19, 24, 25}),
        ("eqs. 2, 4, 5", {2, 4, 5}),
        ("section 2.1, seq. 3", set()),
    ],
)
def test_every_way_to_mark_an_equation_is_seen(source, expected):
    assert marks(source) == expected
