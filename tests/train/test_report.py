"""The report, held to what the run wrote down: all of it, escaped, once, and nothing else."""

import json
import math
import random
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.config import ModelConfig
from abyssal.errors import DataError
from abyssal.train.report import read_metrics, write_report
from abyssal.train.reproduction import toml
from tests.report.page import Page

TINY = ModelConfig.preset("tiny")


def story(num_steps: int = 60, stage: str = "pretrain", chat: bool = False) -> list[dict]:
    """The rows of a plausible run: every kind, with falling losses and evening loads."""
    rng = random.Random(stage)
    rows = [
        {"kind": "start", "stage": stage, "params_total": 1, "params_active": 1,
         "recipe": {"stage": stage, "seed": 1, "out": f"out/my {stage}",
                    "optim": {"lr": 2e-3, "clip": 1.0}, "ema": None,
                    "data": {"sources": [{"name": "stories", "weight": 0.8}]}},
         "config": TINY.to_dict(), "machine": "2 threads, bfloat16",
         "time": "2025-01-02T03:04:05"},
        {"kind": "reference", "name": "stories", "bits_per_byte": 2.11, "what": "xz -9",
         "source": "compressed size of the same text"},
        {"kind": "event", "step": num_steps // 3, "what": "loss spike skipped",
         "detail": "9.1 > 6"},
    ]  # fmt: skip
    for step in range(1, num_steps + 1):
        part, tokens = step / num_steps, step * 4096
        loss = 1.6 + 6.7 * math.exp(-6 * part) + rng.gauss(0, 0.05)
        rows.append(
            {"kind": "step", "step": step, "tokens": tokens, "loss": loss, "mtp_loss": loss + 0.7,
             "balance_loss": 1e-4 * (1 + 2 * math.exp(-9 * part)), "lr": 2e-3 * min(1, part * 10),
             "gamma": 1e-3 if part < 0.9 else 0.0, "mtp_lambda": 0.3 if part < 0.7 else 0.1,
             "batch_tokens": 4096, "grad_norm": 0.4 + 3 * math.exp(-9 * part) * rng.random(),
             "max_violation": 0.05 + 1.5 * math.exp(-9 * part) * rng.random(),
             "max_violation_worst": 0.2 + 2.5 * math.exp(-9 * part), "elapsed_s": step * 0.7,
             "tokens_per_s": 6000 + rng.gauss(0, 200), "mfu": 0.43 + rng.gauss(0, 0.01)}
        )  # fmt: skip
        if step % max(1, num_steps // 50) == 0:
            weights = [
                [1 + 3 * math.exp(-7 * part) * rng.random() for _ in range(8)] for _ in "abc"
            ]
            shares = [[w / sum(row) for w in row] for row in weights]
            rows.append({"kind": "load", "step": step, "tokens": tokens, "load": shares})
        if step % max(1, num_steps // 10) == 0:
            for name, floor in (("stories", 1.1), ("facts", 1.5)):
                bits = floor + 2.5 * math.exp(-5 * part)
                rows.append({"kind": "eval", "step": step, "tokens": tokens, "name": name,
                             "bits_per_byte": bits})  # fmt: skip
        if step % max(1, num_steps // 3) == 0:
            for prompt in ("Once upon a time", "The deep sea"):
                text = f" there was a fish ({step})" + " that swam a long way down" * 8 + "."
                rows.append({"kind": "sample", "step": step, "prompt": prompt, "text": text,
                             "chat": chat})  # fmt: skip
    last = {"step": num_steps, "tokens": num_steps * 4096, "elapsed_s": num_steps * 0.7}
    rows.append({"kind": "end", **last, "peak_rss_bytes": 1_234_000_000})
    return rows


def write(folder: Path, rows: list[dict], torn: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + torn, encoding="utf-8")
    return folder


def report(tmp_path: Path, *runs: list[dict], title: str = "A run") -> str:
    folders = [write(tmp_path / f"run{i}", rows) for i, rows in enumerate(runs)]
    write_report(tmp_path / "report.html", folders, title)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_kind_of_row_shows_up(tmp_path):
    page = Page(report(tmp_path, story(), story(stage="sft", chat=True), title="Two stages"))
    for shown in (
        "Two stages", "Pre-training", "Supervised fine-tuning", "2 threads, bfloat16",
        "2025-01-02T03:04:05", "Routed experts", "Final loss", "Held-out stories", "Held-out facts",
        "Dead experts", "0 of 24", "1.23 GB", "Loss", "Held-out text", "xz -9",
        "compressed size of the same text", "Learning rate", "Gamma", "MTP lambda",
        "Constant throughout: batch 4.1k.",
        "Gradient norm", "Throughput", "utilization", "MaxVio", "Block 1", "Block 3",
        "loss spike skipped", "9.1 > 6", "there was a fish (60)", "Earlier: 2", "optim.lr",
        "abyssal train 2-sft.toml", "abyssal chat 'out/my sft'", "Sequence balance loss",
    ):  # fmt: skip
        assert shown in page.text, shown


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page = Page(report(tmp_path, story(), story(stage="sft", chat=True)))
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not {"src", "srcset", "action"} & {name for name, _ in page.attributes}
    links = [value for name, value in page.attributes if name == "href"]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "default-src 'none'" in dict(page.attributes)["content"]


HOSTILE = "</p><script>alert('x')</script><img src=x onerror=\"y\">&amp;\x00\ud800\u202e"


@pytest.mark.parametrize("chat", [False, True])
def test_hostile_text_stays_text(tmp_path, chat):
    rows = story(3)
    rows += [{"kind": "sample", "step": 3, "prompt": HOSTILE, "text": HOSTILE, "chat": chat},
             {"kind": "event", "step": 3, "what": HOSTILE, "detail": HOSTILE},
             {"kind": "eval", "step": 3, "tokens": 12288, "name": HOSTILE,
              "bits_per_byte": 1.0}]  # fmt: skip
    rows[0] |= {"machine": HOSTILE, "time": HOSTILE, "stage": HOSTILE}
    rows[0]["recipe"] = {HOSTILE: HOSTILE, "table": {HOSTILE: [HOSTILE]}, "out": HOSTILE}
    page = Page(report(tmp_path, rows, title=HOSTILE))
    plain_page = Page(report(tmp_path, story(3), title="plain"))
    assert set(page.tags) <= set(plain_page.tags)
    assert "onerror" not in {name for name, _ in page.attributes}
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert page.text.count(shown) >= 8


def test_a_later_row_of_a_step_takes_the_place_of_an_earlier_one(tmp_path):
    rows = story(20)
    again = [row | {"loss": 42.0, "bits_per_byte": 42.0} for row in rows if row.get("step", 0) > 12]
    metrics = read_metrics(write(tmp_path, rows + again))
    assert [row.step for row in metrics.steps] == list(range(1, 21))
    assert [row.loss == 42.0 for row in metrics.steps] == [False] * 12 + [True] * 8
    assert [row.step for row in metrics.loads] == list(range(1, 21))
    assert {row.bits_per_byte == 42.0 for row in metrics.evaluations if row.step > 12} == {True}
    assert len(metrics.samples) == len({(row.step, row.prompt) for row in metrics.samples})


def test_a_resumed_run_forgets_the_future_it_left(tmp_path):
    rows = story(20)
    steps = [row for row in rows if row["kind"] == "step"]
    metrics = read_metrics(write(tmp_path, [*rows, *steps[10:13]]))
    kept = [metrics.steps, metrics.loads, metrics.evaluations, metrics.samples]
    assert [max(row.step for row in rows) for rows in kept] == [13, 11, 10, 6]
    assert metrics.end is None
    assert len(metrics.events) == 1


@given(st.lists(st.integers(1, 12), min_size=1))
def test_what_remains_is_ascending_and_ends_with_the_last_row(tmp_path_factory, order):
    template = next(row for row in story(1) if row["kind"] == "step")
    rows = [template | {"step": step, "loss": float(i)} for i, step in enumerate(order)]
    kept = read_metrics(write(tmp_path_factory.mktemp("run"), rows)).steps
    assert [row.step for row in kept] == sorted({row.step for row in kept})
    assert [row.loss for row in kept] == sorted(row.loss for row in kept)
    assert (kept[-1].step, kept[-1].loss) == (order[-1], len(order) - 1)


LINE = json.dumps({"kind": "step", "step": 99, "detail": "é"}, ensure_ascii=False)


@pytest.mark.parametrize("torn", [LINE[:1], LINE[:2], LINE[:9], LINE[:-1]])
def test_a_torn_last_line_is_ignored(tmp_path, torn):
    whole, cut = write(tmp_path / "a" / "run", story(9)), tmp_path / "b" / "run"
    write(cut, story(9), torn=torn)
    assert read_metrics(whole) == read_metrics(cut)


def test_a_line_torn_in_the_middle_is_left_out_and_said(tmp_path):
    folder = write(tmp_path / "run", story(9), torn='{"kind": "st\n')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "event", "step": 9, "what": "resumed"}) + "\n")
    metrics = read_metrics(folder)
    assert metrics.unreadable == 1
    assert metrics.events[-1].what == "resumed"
    write_report(tmp_path / "report.html", [folder], "torn")
    assert "unreadable" in (tmp_path / "report.html").read_text()


def test_equal_runs_give_equal_bytes(tmp_path):
    first = report(tmp_path / "here", story(), story(stage="sft"))
    assert first == report(tmp_path / "elsewhere", story(), story(stage="sft"))


@pytest.mark.parametrize(
    ("kind", "heading"),
    [("load", "Block 1"), ("eval", "Held-out"), ("event", "Events"), ("sample", "What it writes"),
     ("start", "Train it again"), ("end", "Peak memory"), ("step", "Gradient norm")],
)  # fmt: skip
def test_what_a_run_did_not_write_down_is_left_out(tmp_path, kind, heading):
    whole = Page(report(tmp_path, story())).text
    rest = [row for row in story() if row["kind"] != kind]
    assert heading in whole
    assert heading not in Page(report(tmp_path, rest)).text


def test_the_model_is_read_from_its_folder_if_the_run_does_not_say(tmp_path):
    rows = story(3)
    del rows[0]["config"]
    folder = write(tmp_path / "run", rows)
    assert read_metrics(folder).config is None
    TINY.save(folder)
    assert read_metrics(folder).config == TINY


def test_one_model_is_shown_once_and_two_models_twice(tmp_path):
    other = story(stage="sft")
    other[0]["config"] = replace(TINY, num_hidden_layers=5).to_dict()
    assert Page(report(tmp_path, story(), story(stage="sft"))).text.count("Routed experts") == 1
    assert Page(report(tmp_path, story(), other)).text.count("Routed experts") == 2


def test_a_dead_expert_is_counted(tmp_path):
    rows = story()
    for row in rows:
        if row["kind"] == "load":
            row["load"][1] = [0.0, *[1 / 7] * 7]
    assert "1 of 24" in Page(report(tmp_path, rows)).text


def test_a_loss_that_is_not_a_number_leaves_a_gap(tmp_path):
    rows = story()
    for row in rows:
        if row["kind"] == "step" and 20 <= row["step"] < 25:
            row["loss"] = row["grad_norm"] = math.nan
    page = report(tmp_path, rows)
    drawn = re.findall(r' d="([^"]*)"', page)
    assert drawn
    assert not any("nan" in path for path in drawn)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"loss": "high"}, "loss is 'high'"), ({"step": 1.5}, "step is 1.5"),
     ({"tokens": True}, "True"),
     ({"tokens": math.nan}, "tokens is nan")],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_its_line(tmp_path, change, said):
    rows = [row for row in story(1) if row["kind"] == "step"]
    with pytest.raises(DataError, match=f"line 1.*{re.escape(said)}"):
        read_metrics(write(tmp_path, [rows[0] | change]))


def test_a_missing_value_is_named(tmp_path):
    with pytest.raises(DataError, match="line 1: a step row without 'tokens'"):
        read_metrics(write(tmp_path, [{"kind": "step", "step": 1}]))


def test_loads_of_different_shapes_are_refused(tmp_path):
    rows = story(2)
    rows.append({"kind": "load", "step": 3, "tokens": 9, "load": [[0.5, 0.5], [1.0]]})
    with pytest.raises(DataError, match=r"rows of \[2, 1\] experts, expected \[8, 8, 8\]"):
        read_metrics(write(tmp_path, rows))


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        write_report(tmp_path / "report.html", [tmp_path], "nothing")
    with pytest.raises(DataError, match="no start and no step"):
        read_metrics(write(tmp_path, [], torn='{"kind"'))
    with pytest.raises(DataError, match="no runs"):
        write_report(tmp_path / "report.html", [], "nothing")
    assert not (tmp_path / "report.html").exists()


def test_the_report_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    run = write(tmp_path / "run", story(3))
    write_report(tmp_path / "new" / "report.html", [run], "one")
    write_report(tmp_path / "new" / "report.html", [run], "two")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    with pytest.raises(DataError, match="cannot be written"):
        write_report(run / "metrics.jsonl" / "report.html", [run], "under a file")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), values))
def test_a_recipe_written_as_toml_reads_back_as_itself(recipe):
    assert tomllib.loads(toml(recipe)) == _none_as_text(recipe)


def _none_as_text(value):
    if isinstance(value, dict):
        return {key: _none_as_text(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_none_as_text(one) for one in value]
    return "none" if value is None else value
