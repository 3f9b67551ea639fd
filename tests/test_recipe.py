"""Recipes: what inherits from what, what fills what, and what each mistake is told."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal import recipe
from abyssal.config import ModelConfig
from abyssal.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float
    warmup_steps: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr={self.lr}, expected a positive number; try 1e-3")


@dataclass(frozen=True, kw_only=True)
class Source:
    path: Path
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    stage: str = "pretrain"
    out: Path = Path("out")
    optim: Optim
    sources: tuple[Source, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    compile: bool = False
    tokens: int = 1000


GOOD = {"optim": {"lr": 1e-3}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write recipe files into an empty folder that is also the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package of two recipes, sea/base and sea/deep."""
    folder = tmp_path / "packaged"
    (folder / "sea").mkdir(parents=True)
    (folder / "sea" / "base.toml").write_text('stage = "pretrain"\n[optim]\nlr = 1e-3\n')
    (folder / "sea" / "deep.toml").write_text('base = "sea/base"\n[optim]\nwarmup_steps = 7\n')
    monkeypatch.setattr(recipe, "PACKAGED", folder)


def complaint(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def filled(values) -> Stage:
    return recipe.fill(Stage, values, "my.toml")


# Loading


def test_a_recipe_states_only_what_differs_from_its_base(packaged):
    assert recipe.load("sea/deep") == {
        "stage": "pretrain",
        "optim": {"lr": 1e-3, "warmup_steps": 7},
    }


def test_a_relative_base_counts_from_the_file_that_states_it(write):
    write("family/parent.toml", "seed = 1\nbetas = [0.9, 0.95]")
    write("family/kids/child.toml", 'base = "../parent.toml"\nbetas = [0.8]')
    assert recipe.load("family/kids/child.toml") == {"seed": 1, "betas": [0.8]}


def test_packaged_recipes_are_listed_by_name(packaged):
    assert recipe.names() == ["sea/base", "sea/deep"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr=2e-3", {"optim": {"lr": 2e-3}}),
        ("seed = 7", {"seed": 7}),
        ("out=out/tiny", {"out": "out/tiny"}),
        ("out=a=b", {"out": "a=b"}),
        ("out=2025-01-31", {"out": "2025-01-31"}),
        ("out=1\nseed=2", {"out": "1\nseed=2"}),
        ('out="7"', {"out": "7"}),
        ("compile=true", {"compile": True}),
        ("betas=[0.9, 0.99]", {"betas": [0.9, 0.99]}),
        ("optim={lr = 1.0}", {"optim": {"lr": 1.0}}),
    ],
)
def test_an_override_is_a_toml_value_or_a_bare_word(write, text, expected):
    write("empty.toml", "")
    assert recipe.load("empty.toml", [text]) == expected


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(packaged):
    values = recipe.load("sea/base", ["optim.lr=1", "optim.lr=2", "optim.warmup_steps=3"])
    assert values["optim"] == {"lr": 2, "warmup_steps": 3}


def test_overrides_may_be_a_nested_mapping(packaged):
    assert recipe.load("sea/base", {"optim": {"lr": 5.0}})["optim"] == {"lr": 5.0}


table = st.recursive(
    st.integers(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(st.sampled_from("abc"), table, max_size=3)


def leaves(values, key=()):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*key, name))
        else:
            yield (*key, name), value


@given(tables, tables)
def test_every_override_is_kept_and_everything_else_stays(under, over):
    merged = dict(leaves(recipe._merge(under, over)))
    kept = dict(leaves(over))
    assert merged | kept == merged
    for key, value in leaves(under):
        hidden = any(key[:n] in kept for n in range(1, len(key) + 1))
        replaced_by_a_table = isinstance(_at(over, key), dict)
        assert hidden or replaced_by_a_table or merged[key] == value
    assert recipe._merge(under, {}) == under == recipe._merge({}, under)


def _at(values, key):
    for name in key:
        if not isinstance(values, dict) or name not in values:
            return None
        values = values[name]
    return values


def test_an_unknown_recipe_is_told_the_nearest_name(packaged):
    message = complaint(recipe.load, "sea/dep")
    assert message == (
        "unknown recipe 'sea/dep'; did you mean sea/deep? (a path must end in .toml)"
    )
    assert "expected one of sea/base, sea/deep" in complaint(recipe.load, "zzz")


def test_a_missing_file_is_told_its_neighbor(write):
    write("mine.toml", "")
    assert complaint(recipe.load, "mien.toml") == (
        "mien.toml: no such recipe file; did you mean mine.toml?"
    )


def test_an_unknown_base_names_the_file_that_wants_it(write, packaged):
    write("my.toml", 'base = "sea/bass"')
    message = complaint(recipe.load, "my.toml")
    assert message.startswith("my.toml: base: unknown recipe 'sea/bass'; did you mean sea/base?")


def test_a_base_that_is_no_text_is_refused(write):
    write("my.toml", "base = 3")
    assert complaint(recipe.load, "my.toml").startswith("my.toml: base is 3, expected a recipe")


def test_a_circle_of_bases_is_spelled_out(write):
    write("a.toml", 'base = "b.toml"')
    write("b.toml", 'base = "a.toml"')
    assert "a circle, a.toml -> b.toml -> a.toml" in complaint(recipe.load, "a.toml")


def test_broken_toml_is_told_its_line(write):
    write("my.toml", "seed = 1\nlr = = 2\n")
    message = complaint(recipe.load, "my.toml")
    assert message.startswith("my.toml: not valid TOML")
    assert "line 2" in message


def test_bytes_that_are_not_text_are_told_their_place(write):
    write("my.toml", "seed = 1\n").write_bytes(b"a = '\xff'")
    assert "my.toml: not UTF-8 text at byte 5" in complaint(recipe.load, Path("my.toml"))


@pytest.mark.parametrize("text", ["optim.lr", "=3", "optim..lr=3", ".lr=3", ""])
def test_an_override_without_key_or_value_is_refused(packaged, text):
    assert f"override {text!r} is not key=value" in complaint(recipe.load, "sea/base", [text])


# Filling


def test_every_kind_of_field_is_filled():
    stage = filled(
        {
            "out": "runs/one",
            "optim": {"lr": 1, "schedule": "constant"},
            "sources": [{"path": "a"}, {"path": "b", "weight": 3}],
            "betas": [0.8, 0.9],
            "clip": "none",
            "compile": True,
            "tokens": 6e6,
        }
    )
    assert stage == Stage(
        out=Path("runs/one"),
        optim=Optim(lr=1.0, schedule="constant"),
        sources=(Source(path=Path("a")), Source(path=Path("b"), weight=3.0)),
        betas=(0.8, 0.9),
        clip=None,
        compile=True,
        tokens=6_000_000,
    )
    assert type(stage.tokens) is int
    assert type(stage.optim.lr) is float


def test_filling_inverts_asdict():
    for config in (ModelConfig.preset("deepseek-v3"), ModelConfig.preset("tiny")):
        assert recipe.fill(ModelConfig, dataclasses.asdict(config), "here") == config


def test_a_ready_instance_may_stand_where_a_table_would():
    assert filled({"optim": Optim(lr=2.0)}).optim == Optim(lr=2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lr": 1.0, "warmup_stebs": 3}},
         "unknown key optim.warmup_stebs; did you mean optim.warmup_steps?"),
        ({"optim": {"learning_rate": 1.0}},
         "unknown key optim.learning_rate; did you mean optim.lr?"),
        ({"lr": 1.0}, "unknown key lr; did you mean optim.lr?"),
        ({"weight": 1.0}, "unknown key weight; did you mean sources.weight?"),
        ({"optimizer": {"lr": 1.0}}, "unknown key optimizer; did you mean optim?"),
        ({"optim": {"zzz": 1}},
         "unknown key optim.zzz; expected one of optim.lr, optim.warmup_steps, optim.schedule"),
        ({"sources": [{"path": "a"}, {"paht": "b"}]},
         "unknown key sources[1].paht; did you mean sources[1].path?"),
        ({}, "missing key optim.lr; add a line lr = ... under [optim], a number"),
        ({"optim": {}}, "missing key optim.lr; add a line lr = ... under [optim], a number"),
        ({"optim": {"lr": "fast"}}, "optim.lr is 'fast', expected a number"),
        ({"optim": {"lr": True}}, "optim.lr is true, expected a number"),
        ({"optim": {"lr": float("nan")}}, "optim.lr is nan, expected a number"),
        ({"optim": {"lr": -1}}, "[optim] lr=-1.0, expected a positive number; try 1e-3"),
        ({"optim": 3}, "optim is 3, expected a table"),
        ({"optim": {"lr": 1.0, "schedule": "cosin"}},
         "optim.schedule is 'cosin', expected one of 'cosine', 'constant'"),
        (GOOD | {"tokens": 1.5}, "tokens is 1.5, expected a whole number"),
        (GOOD | {"tokens": float("inf")}, "tokens is inf, expected a whole number"),
        (GOOD | {"tokens": "6e6"}, "tokens is '6e6', expected a whole number"),
        (GOOD | {"tokens": [1]}, "tokens is a list of 1, expected a whole number"),
        (GOOD | {"tokens": {"a": 1}}, "tokens is a table, expected a whole number"),
        (GOOD | {"compile": 1}, "compile is 1, expected true or false"),
        (GOOD | {"stage": 1}, "stage is 1, expected text in quotes"),
        (GOOD | {"out": ""}, "out is '', expected a path in quotes"),
        (GOOD | {"clip": "off"}, "clip is 'off', expected a number"),
        (GOOD | {"betas": [0.9]}, "betas is a list of 1, expected a list of 2: a number, a number"),
        (GOOD | {"betas": 0.9}, "betas is 0.9, expected a list of 2: a number, a number"),
        (GOOD | {"sources": {"path": "a"}},
         "sources is a table, expected a list, each entry a table"),
        (GOOD | {"sources": ["a"]}, "sources[0] is 'a', expected a table"),
    ],
)  # fmt: skip
def test_every_mistake_is_explained_in_the_words_of_the_file(values, message):
    assert complaint(filled, values) == f"my.toml: {message}"


def test_a_refusal_by_the_model_config_names_file_and_table():
    @dataclass(frozen=True)
    class Run:
        model: ModelConfig

    message = complaint(recipe.fill, Run, {"model": {"n_group": 7}}, "my.toml")
    assert message.startswith("my.toml: [model] n_routed_experts=256 is not divisible by n_group=7")


@given(st.integers())
def test_an_integral_float_is_an_int_and_an_int_is_itself(number):
    assert filled(GOOD | {"tokens": number}).tokens == number
    if float(number) == number if abs(number) < 2**53 else False:
        assert filled(GOOD | {"tokens": float(number)}).tokens == number


# Stages


def test_a_stage_is_one_of_the_known_ones():
    known = ("pretrain", "sft", "grpo")
    assert recipe.stage_of({"stage": "sft"}, known, "my.toml") == "sft"
    assert complaint(recipe.stage_of, {"stage": "pertrain"}, known, "my.toml") == (
        "my.toml: unknown stage 'pertrain'; did you mean pretrain?"
    )
    assert complaint(recipe.stage_of, {"stage": 3}, known, "my.toml").endswith(
        "unknown stage 3; expected one of pretrain, sft, grpo"
    )
    assert "my.toml: missing key stage" in complaint(recipe.stage_of, {}, known, "my.toml")
