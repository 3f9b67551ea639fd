"""An evaluation is the same whatever stops it, and its scores are the model's own."""

import json
import random
import shutil

import pytest

from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.errors import DataError, RequestError
from abyssal.evals import catalog, drafts, experts, run
from abyssal.evals.intervals import wilson
from abyssal.evals.run import Evaluation, Settings, sample
from abyssal.evals.summary import table

NAMES = "clams,arc_easy,xcopa,stories,rg:chain_sum"
SETTINGS = Settings(samples=2, max_tokens=6, seed=5)


@pytest.fixture(autouse=True, scope="module")
def _small_sections():
    """Experts and drafts are measured on little: here they need only be the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "TOKENS", 256)
        patch.setattr(drafts, "PROMPTS", 2)
        yield


def evaluation(llm, folder, out, names=NAMES, limit=6, settings=SETTINGS) -> Evaluation:
    return Evaluation(llm, folder, catalog.tasks(names), out, settings, limit)


def finished(llm, folder, out, **changes) -> Evaluation:
    whole = evaluation(llm, folder, out, **changes)
    for _ in whole.run():
        pass
    whole.results()
    return whole


def told(evaluation: Evaluation) -> dict[str, dict]:
    return json.loads((evaluation.out / "results.json").read_text())["tasks"]


def files(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def whole(evaluated, folder, tmp_path_factory, _small_sections) -> Evaluation:
    return finished(evaluated, folder, tmp_path_factory.mktemp("whole") / "eval")


def test_a_run_stopped_anywhere_ends_with_the_same_bytes(
    evaluated, folder, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "CHUNK", 3)
    draw = random.Random(1)
    out = tmp_path / "eval"
    for _ in range(4):
        steps = evaluation(evaluated, folder, out).run()
        for _ in range(draw.randint(1, 4)):
            next(steps, None)
        steps.close()
        halved = max(out.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        halved.write_bytes(halved.read_bytes()[: -draw.randint(1, 30)])  # a dying machine
    finished(evaluated, folder, out)
    assert files(out) == files(whole.out)


def test_a_larger_limit_goes_on_behind_a_smaller_one(evaluated, folder, whole, tmp_path):
    out = tmp_path / "eval"
    finished(evaluated, folder, out, limit=4)
    few = json.loads((out / "results.json").read_text())
    assert few["tasks"]["clams"]["items"] == 4
    finished(evaluated, folder, out)
    assert files(out) == files(whole.out)
    assert evaluation(evaluated, folder, out, limit=4).rows(catalog.task("clams")) == [
        row for row in whole.rows(catalog.task("clams")) if row["index"] < 4
    ]


def test_a_sample_s_line_does_not_depend_on_the_others(evaluated, folder, whole, tmp_path):
    alone = finished(evaluated, folder, tmp_path / "eval", names="rg:chain_sum,arc_easy", limit=1)
    for task in alone.tasks:
        assert alone.rows(task) == whole.rows(task)[:1]


def test_choices_are_those_of_the_reference(evaluated, folder, whole):
    tokenizer = evaluated.tokenizer
    for name, separator in (("clams", ""), ("arc_easy", " ")):
        task = catalog.task(name)
        for row, item in zip(whole.rows(task), whole.items(task), strict=True):
            choice = task.choice(item, lambda prompt: True)
            assert all(ending.startswith(separator) for ending in choice.endings)
            expected = []
            for ending in choice.endings:
                before = tokenizer.encode(choice.context, bos=True)
                tokens = tokenizer.encode(choice.context + ending, bos=True)
                scored = evaluated.score([tokens[:1] + tokens[1:][-127:]])[0]
                expected.append(sum(scored[len(before) - len(tokens) :]))
            assert row["logprobs"] == pytest.approx(expected, abs=2e-3)
            best = max(range(len(expected)), key=expected.__getitem__)
            assert row["acc"] == float(best == choice.right)
            norms = [value / len(n) for value, n in zip(expected, choice.names, strict=True)]
            best = max(range(len(norms)), key=norms.__getitem__)
            assert row.get("acc_norm", row["acc"]) == float(
                (best if "acc_norm" in row else row["logprobs"].index(max(row["logprobs"])))
                == choice.right
            )


def test_bits_per_byte_are_those_of_the_texts(evaluated, whole):
    from abyssal.evals.harness import bits_per_byte

    task = catalog.task("stories")
    texts = [item.text for item in whole.items(task)]
    expected = bits_per_byte(evaluated, evaluated.tokenizer, texts).bits_per_byte
    found = told(whole)["stories"]["metrics"]["bits_per_byte"]
    assert found["value"] == pytest.approx(expected, rel=1e-4)
    assert found["low"] < found["value"] < found["high"]


def test_answers_are_graded_one_by_one_and_together(whole):
    rows = whole.rows(catalog.task("rg:chain_sum"))
    for row in rows:
        marks = [answer["grade"] for answer in row["answers"]]
        assert len(marks) == 2
        assert row["pass@1"] == sum(marks) / 2
        assert row["pass@2"] == max(marks)
        assert row["cons@2"] in marks
    texts = {answer["text"] for row in rows for answer in row["answers"]}
    assert len(texts) > 6  # each has random numbers of its own


def test_a_random_model_scores_as_chance_does(evaluated, folder, tmp_path):
    names = "blimp,clams,arc_easy,arc_challenge_pairs,xcopa"
    out = finished(evaluated, folder, tmp_path / "eval", names=names, limit=120)
    for name, scores in told(out).items():
        chance, found = scores["about"]["chance"], scores["metrics"]["acc"]
        assert found["low"] - 0.05 < chance < found["high"] + 0.05, name
        rows = out.rows(catalog.task(name))
        assert found["value"] == wilson(sum(int(row["acc"]) for row in rows), 120).value


def test_another_model_or_other_settings_are_refused(evaluated, folder, whole, tmp_path):
    other = Settings(samples=3, max_tokens=6, seed=5)
    with pytest.raises(DataError, match=r"samples=2, not 3; choose another folder with --out"):
        evaluation(evaluated, folder, whole.out, settings=other)
    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    (weights,) = copied.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match="holds scores with model="):
        evaluation(evaluated, copied, whole.out)
    (tmp_path / "text.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="no folder of scores"):
        evaluation(evaluated, folder, tmp_path)


def test_a_line_that_answers_something_else_is_refused(evaluated, folder, whole, tmp_path):
    out = tmp_path / "eval"
    shutil.copytree(whole.out, out)
    path = out / "clams.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(row | {"prompt": "something else"}) + "\n")
    with pytest.raises(DataError, match="answers another question"):
        finished(evaluated, folder, out)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(evaluated, folder, tmp_path, limit):
    with pytest.raises(RequestError, match=f"limit={limit}, expected at least 1"):
        evaluation(evaluated, folder, tmp_path / "eval", limit=limit)


@pytest.mark.parametrize("changes", [{"samples": 0}, {"samples": 2000}, {"max_tokens": 0}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(RequestError, match="expected"):
        Settings(**changes)


def test_samples_are_drawn_from_all_of_a_task_and_always_the_same():
    task = catalog.task("blimp")
    items = sample(task, 500)
    assert len({item.data["paradigm"] for item in items}) == 67
    assert sample(task, 100) == items[:100]


def test_questions_too_long_to_be_asked_count_as_wrong(folder, tmp_path):
    llm = LLM(folder, options=EngineOptions(deterministic=True))
    whole = finished(llm, folder, tmp_path / "eval", names="math500", limit=6)
    scores = told(whole)["math500"]
    errors = [row for row in whole.rows(catalog.task("math500")) if "error" in row]
    assert scores["errors"] == len(errors) > 0
    assert all(row["pass@1"] == row["pass@2"] == 0.0 for row in errors)


def test_the_table_names_every_metric_with_its_interval(whole):
    rows = table(whole.results()["tasks"])
    assert [(row[0], row[2]) for row in rows] == [
        ("clams", "acc"), ("arc_easy", "acc"), ("arc_easy", "acc_norm"), ("xcopa", "acc"),
        ("xcopa", "acc_norm"), ("stories", "bits_per_byte"), ("rg:chain_sum", "pass@1"),
        ("rg:chain_sum", "pass@2"), ("rg:chain_sum", "cons@2"),
    ]  # fmt: skip
    assert rows[0][1] == "6/3,480"
