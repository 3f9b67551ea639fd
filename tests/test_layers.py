"""Imports run downward: a package may import only from the floors below its own.

Imports inside functions and under TYPE_CHECKING count, and so do relative ones. On one floor,
neighbors do not know each other. The roof (``abyssal/__init__.py`` and ``__main__.py``) sees all.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import abyssal

ROOT = Path(abyssal.__file__).parent

FLOORS = [
    {"errors", "collector"},
    {"published"},
    {"config", "batch", "filling", "float8"},
    {"recipe"},
    {"plan", "tokenizer", "kernels", "checkpoint", "report"},
    {"data", "model"},
    {"quant", "parallel"},
    {"engine"},
    {"evals", "vision"},
    {"train", "serve"},
    {"cli"},
]
ROOF = {"__init__", "__main__"}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def package_of(file: Path) -> str:
    """moe for model/moe.py is model; for recipe.py it is recipe."""
    return file.parts[0].removesuffix(".py")


def modules_imported_by(source: str, file: Path) -> set[str]:
    """Dotted names of what a file imports, its relative imports made absolute."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ("abyssal", *file.parts)[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            # A name imported from the root is a package, or a public name that lives in one.
            names = [alias.name for alias in node.names] if module == "abyssal" else []
            found |= {abyssal._HOMES.get(name, f"abyssal.{name}") for name in names} or {module}
    return found


def packages_imported_by(source: str, file: Path) -> set[str]:
    """The packages of ours a file imports; a bare ``import abyssal`` reaches all: `abyssal`."""
    parts = [name.split(".") for name in modules_imported_by(source, file)]
    return {part[1] if len(part) > 1 else "abyssal" for part in parts if part[0] == "abyssal"}


def allowed_to(package: str) -> set[str]:
    (level,) = (i for i, floor in enumerate(FLOORS) if package in floor)
    return {package}.union(*FLOORS[:level], {"abyssal"} if package == "cli" else ())


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_run_downward(file):
    if package_of(file) in ROOF:
        return
    upward = packages_imported_by((ROOT / file).read_text(), file) - allowed_to(package_of(file))
    assert not upward, f"abyssal/{file} may not import {sorted(upward)}"


def test_every_package_has_exactly_one_floor():
    packages = {package_of(file) for file in FILES} - ROOF
    assert packages <= set.union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(set.union(*FLOORS))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch, numpy.random", set()),
        ("import abyssal.engine.llm as llm", {"engine"}),
        ("import abyssal", {"abyssal"}),
        ("from abyssal import config, batch", {"config", "batch"}),
        ("from abyssal import LLM", {"engine"}),
        ("from abyssal.train.loss import chunked", {"train"}),
        ("from .layers import RMSNorm", {"model"}),
        ("from . import layers", {"model"}),
        ("from .. import engine", {"engine"}),
        ("from ..engine import llm", {"engine"}),
        ("def f():\n    from abyssal.cli import main", {"cli"}),
        ("if TYPE_CHECKING:\n    from abyssal.cli import main", {"cli"}),
    ],
)
def test_every_way_to_import_is_seen(source, expected):
    assert packages_imported_by(source, Path("model/moe.py")) == expected


def test_the_ground_floors_and_the_command_line_import_no_torch():
    light = [
        file
        for file in FILES
        if package_of(file) in {"errors", "collector", "config", "filling", "recipe", "plan", "cli"}
    ]
    names = [f"abyssal.{'.'.join(file.with_suffix('').parts)}" for file in light]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name.removesuffix(".__init__"))
print(sorted({{"torch", "numpy", "tokenizers", "matplotlib"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(light) > 8
    assert run.stdout.strip() == "[]"


def test_a_start_from_a_packed_file_imports_no_more_than_a_first_token_needs():
    waiting = [
        "abyssal.checkpoint",
        "abyssal.engine.grammar",
        "abyssal.engine.packing",
        "abyssal.model.transformer",
        "abyssal.tokenizer.chat",
        "abyssal.tokenizer.tools",
        "fastapi",
        "llguidance",
        "matplotlib",
        "numpy.random",
        "rich",
    ]
    code = (
        f"import sys, torch, abyssal; abyssal.LLM; print(sorted({set(waiting)} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
