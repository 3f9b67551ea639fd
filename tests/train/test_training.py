"""A recipe and its folder: begun, gone on with, finished once, and never mixed with another."""

import json
from itertools import islice

import pytest
import torch

from abyssal.data.documents import DropReport
from abyssal.data.encoding import encode, write_encoded
from abyssal.errors import AbyssalError, ConfigError, DataError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import folder as place
from abyssal.train import training as module
from abyssal.train.machine import measure
from abyssal.train.metrics import read_metrics
from abyssal.train.training import Training, train

STEP = 64  # tokens of a step of the toy recipe
SHORT = {"tokens": 4 * STEP}


def steps(training, number):
    """Take so many steps and no further, as if the run was killed there."""
    assert len(list(islice(training.steps(), number))) == number


def test_a_finished_folder_holds_the_model_its_story_and_no_states(finish):
    folder = finish({**SHORT, "samples": ["fish"]}).folder
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "recipe.json", "metrics.jsonl", "report.html",
            "done.json", "tensorboard", "model.safetensors.index.json"} <= names  # fmt: skip
    assert "trainer" not in names
    assert not [name for name in names if name.startswith(".")]
    assert json.loads((folder / "done.json").read_text()) == {"step": 4, "tokens": 4 * STEP}
    assert "fish" in (folder / "report.html").read_text()


def test_a_finished_run_is_not_run_again(begin, finish):
    run = finish(SHORT)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    training = begin(SHORT)
    assert training.is_done
    assert list(training.steps()) == []
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_states_left_by_a_kill_after_the_end_are_cleared(begin, finish):
    folder = finish(SHORT).folder
    (folder / "trainer" / "step-00000004").mkdir(parents=True)
    list(begin(SHORT).steps())
    assert not (folder / "trainer").exists()


def test_a_run_killed_at_its_very_end_publishes_once_more(begin, finish, monkeypatch):
    """Each act of finishing fails once; the restart takes no step again."""
    whole = finish(SHORT, out="whole")
    acts = ((place, "write_report"), (module, "LLM"), (place, "shutil"))
    for i, (where, act) in enumerate(acts):
        changes = {**SHORT, "samples": ["fish"]}
        with monkeypatch.context() as patch:
            patch.setattr(where, act, None)
            with pytest.raises((TypeError, AttributeError)):
                list(begin(changes, out=f"run-{i}").steps())
        training = begin(changes, out=f"run-{i}")
        assert list(training.steps()) == []
        assert training.is_done
        assert finish(changes, out=f"run-{i}").weights == whole.weights
        assert not (training.folder / "trainer").exists()


def test_another_recipe_is_refused_by_the_keys_that_differ(begin, finish):
    finish(SHORT)
    with pytest.raises(ConfigError, match=r"another recipe \(seed, tokens differ\)"):
        begin({"tokens": 5 * STEP, "seed": 9})


@pytest.mark.parametrize(
    "changes", [{"save_every": 1}, {"keep": 1}, {"eval_every": 2}, {"samples": ["crab"]}]
)
def test_what_decides_no_weight_may_change_on_the_way(begin, finish, changes):
    steps(begin(SHORT), 2)
    assert len(finish({**SHORT, **changes}).metrics.steps) == 4


def test_a_folder_with_other_files_or_a_file_is_refused_and_left_alone(begin, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files of no run"):
        begin()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match=r"thesis\.txt is a file, expected a folder"):
        begin(out="run/thesis.txt")
    with pytest.raises(ConfigError, match="cannot be written"):
        list(begin(out="run/thesis.txt/deeper").steps())
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_an_empty_folder_or_one_where_a_run_was_killed_at_birth_is_begun(begin, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.json.writing").write_text('{"stage": "pre')
    list(begin(SHORT).steps())
    assert (tmp_path / "run" / "done.json").is_file()


def test_a_kill_while_the_recipe_is_written_again_keeps_the_old_one(begin, monkeypatch):
    steps(begin(SHORT), 2)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", None)
        with pytest.raises(TypeError):
            list(begin(SHORT).steps())
    assert len(list(begin(SHORT).steps())) == 4  # no state was saved yet


def test_a_precision_found_by_measuring_is_kept_however_busy_the_machine_becomes(
    begin, finish, monkeypatch
):
    answers = iter(["bfloat16", "float32", "float32"])

    def measured(precision):
        return measure(next(answers) if precision == "auto" else precision)

    monkeypatch.setattr(module, "measure", measured)
    changes = {**SHORT, "precision": "auto", "save_every": 1}
    steps(begin(changes), 2)
    folder = finish(changes).folder
    assert DeepSeekV3.load(folder).lm_head.weight.dtype == torch.bfloat16
    assert list(answers) == ["float32", "float32"]  # it was asked only once


# Refused at the door


def nothing_is_written(training):
    with pytest.raises(AbyssalError) as caught:
        list(training.steps())
    assert not training.folder.exists()
    return caught


def test_a_prompt_too_long_for_the_model_is_refused_before_the_first_step(begin):
    caught = nothing_is_written(begin({"samples": ["fish", "crab! " * 40]}))
    assert "samples: 'crab!" in str(caught.value)
    assert "expected at most 63" in str(caught.value)


def test_shards_of_another_tokenizer_are_refused(begin, course, tmp_path):
    Tokenizer.train(["other words entirely, other words"] * 4, 300).save(tmp_path / "other")
    caught = nothing_is_written(begin({"tokenizer": tmp_path / "other"}))
    assert caught.type is DataError
    assert "another tokenizer" in str(caught.value)


def test_held_out_shards_without_text_are_refused(begin, course, tmp_path):
    write_encoded(tmp_path / "mute", encode([""], course.tokenizer), course.tokenizer, DropReport())
    held_out = [{"name": "mute", "shards": tmp_path / "mute"}]
    caught = nothing_is_written(begin({"data": {"held_out": held_out}}))
    assert "hold no text to score" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model": {"vocab_size": 100}}, "vocab_size=100"),
     ({"batch": {"seq_len": 65}}, "seq_len=65"),
     ({"data": {"sources": []}}, "at least one")],
)  # fmt: skip
def test_a_model_that_does_not_fit_its_data_is_refused(begin, changes, named):
    assert named in str(nothing_is_written(begin(changes)).value)


# Stages


@pytest.fixture
def base(finish):
    return finish(SHORT, out="base").folder


def test_a_base_model_can_be_gone_on_with_at_other_positions(begin, base):
    model = {"max_position_embeddings": 128, "rope_scaling": {
        "factor": 2.0, "original_max_position_embeddings": 64}}  # fmt: skip
    training = begin({**SHORT, "init": base, "model": model, "batch": {"seq_len": 32}})
    (first, *_) = training.steps()
    assert first.loss < 5.5  # log(330) is 5.8
    assert DeepSeekV3.load(training.folder).config.max_position_embeddings == 128


def test_fine_tuning_needs_isolated_conversations_and_starts_from_its_base(course, base, tmp_path):
    values = {"stage": "sft", "init": base, "out": tmp_path / "chat", **SHORT}
    recipe = tmp_path / "chat.toml"
    text = course.recipe.read_text()
    recipe.write_text(text[: text.index("[model]")] + text[text.index("[data]") :])
    with pytest.raises(ConfigError, match="needs isolate = true and fim_rate = 0"):
        Training(recipe, values)
    values["data"] = {"isolate": True, "fim_rate": 0.0}
    training = Training(recipe, values | {"samples": ["fish?"]})
    list(training.steps())
    before, after = read_metrics(base), read_metrics(training.folder)
    assert after.evaluations[0].step == 0  # where the base model stands
    reached = before.evaluations[-1].bits_per_byte
    assert after.evaluations[0].bits_per_byte == pytest.approx(reached)
    assert [sample.chat for sample in after.samples] == [True]


def test_train_as_a_function_runs_to_the_end_and_answers_the_folder(course, tmp_path):
    folder = train(course.recipe, out=tmp_path / "run", **SHORT)
    assert folder == tmp_path / "run"
    assert (folder / "done.json").is_file()
