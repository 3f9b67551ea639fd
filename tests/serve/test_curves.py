"""Curves of any file: bounded, finite, in order, with their first and last points."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.serve import curves
from abyssal.serve.curves import MOST_POINTS, read_curves
from abyssal.train import history, journal
from abyssal.train.metrics import read_metrics


def step(number: int, **changes: Any) -> dict[str, Any]:
    required = {"lr": 0.1, "batch_tokens": 10, "grad_norm": 1.0, "tokens_per_s": 5.0}
    row = {"kind": "step", "step": number, "tokens": 10 * number, "loss": 1 / (number + 1)}
    return {**row, **required, "elapsed_s": 0.5, **changes}


def written(folder: Path, *lines: object) -> Path:
    path = folder / curves.NAME
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def test_what_a_run_writes_is_what_is_shown(tmp_path):
    figures = {"accuracy": 0.5}
    with journal.Journal(tmp_path) as run:
        for i in range(1, 4):
            row = step(i, figures=figures, mtp_loss=2.0 + i)
            run.write(history.Step(**{k: v for k, v in row.items() if k != "kind"}))
        run.write(history.Load(step=3, tokens=30, load=((0.5, 0.5),)))
        run.write(history.Evaluation(step=3, tokens=30, name="stories", bits_per_byte=0.9))
        run.write(history.Measure(step=3, tokens=30, name="pairs", value=0.7))
        run.write(
            history.Examination(step=3, tokens=30, name="sums", right=3, asked=4, formatted=4)
        )
        run.write(history.Sample(step=3, prompt="a", text="b"))
    found = read_curves(tmp_path / curves.NAME)
    assert found == {
        "loss": [(10, 1 / 2), (20, 1 / 3), (30, 1 / 4)],
        "mtp_loss": [(10, 3.0), (20, 4.0), (30, 5.0)],
        "accuracy": [(10, 0.5), (20, 0.5), (30, 0.5)],
        "lr": [(10, 0.1), (20, 0.1), (30, 0.1)],
        "grad_norm": [(10, 1.0), (20, 1.0), (30, 1.0)],
        "tokens_per_s": [(10, 5.0), (20, 5.0), (30, 5.0)],
        "held_out/stories": [(30, 0.9)],
        "held_out/pairs": [(30, 0.7)],
        "examined/sums": [(30, 0.75)],
    }


@given(jumps=st.lists(st.integers(1, 12), min_size=1, max_size=40))
@settings(max_examples=30)
def test_detours_are_out_of_them_as_they_are_out_of_the_report(tmp_path_factory, jumps):
    folder = tmp_path_factory.mktemp("run")
    rows: list[dict[str, Any]] = []
    for i, number in enumerate(jumps):
        rows.append(step(number, loss=float(i)))
        rows.append({"kind": "eval", "step": number, "tokens": 10 * number, "name": "text",
                     "bits_per_byte": float(i)})  # fmt: skip
    found = read_curves(written(folder, *rows))
    expected = read_metrics(folder)
    assert found["loss"] == [(row.tokens, row.loss) for row in expected.steps]
    told = [(row.tokens, row.bits_per_byte) for row in expected.evaluations]
    assert found.get("held_out/text", []) == told


@pytest.mark.parametrize("count", [1, 399, 400, 401, 801, 5000])
def test_long_curves_keep_first_and_last_and_their_order(tmp_path, count):
    path = written(tmp_path, *(step(i) for i in range(count)))
    loss = read_curves(path)["loss"]
    assert len(loss) <= MOST_POINTS
    assert len(loss) >= min(count, MOST_POINTS // 2)
    assert loss[0] == (0, 1.0)
    assert loss[-1] == (10 * (count - 1), 1 / count)
    assert loss == sorted(loss, key=lambda point: point[0])
    assert len(set(loss)) == len(loss)


def test_of_a_file_without_end_pieces_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "MOST_BYTES", 2**16)
    monkeypatch.setattr(curves, "EDGE_BYTES", 2**13)
    monkeypatch.setattr(curves, "PIECES", 64)
    path = written(tmp_path, *(step(i) for i in range(9000)))
    assert path.stat().st_size > 10 * curves.MOST_BYTES
    loss = read_curves(path)["loss"]
    assert (loss[0], loss[-1]) == ((0, 1.0), (89990, 1 / 9000))
    assert 100 < len(loss) <= MOST_POINTS
    gaps = [after[0] - before[0] for before, after in pairwise(loss)]
    assert 0 < min(gaps) <= max(gaps) < 90_000 / 32  # no part of the run is left out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ODD = st.fixed_dictionaries(
    {"kind": st.sampled_from(["step", "eval", "measure", "exam", "reinforce", "load", "x"]) | JSON},
    optional=dict.fromkeys(
        ("step", "tokens", "name", "loss", "value", "figures", "right", "asked", "\ud800"), JSON
    ),
)


@given(rows=st.lists(ODD | JSON, max_size=8), tail=st.binary(max_size=20))
def test_any_file_has_curves_that_json_can_carry(tmp_path_factory, rows, tail):
    path = written(tmp_path_factory.mktemp("odd"), *(json.dumps(row) for row in rows))
    path.write_bytes(path.read_bytes() + tail)
    found = read_curves(path)
    assert json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    for points in found.values():
        assert 0 < len(points) <= MOST_POINTS


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"kind": "step", "step": 1, "tokens": 1, "loss": ' + "9" * 5000 + "}",
        '{"kind": "step", "step": 1, "tokens": 1, "loss": 1' + "0" * 400 + "}",
        '{"kind": "step", "step": 1, "tokens": 1, "loss": 1e999}',
        '{"kind": "step", "step": 1, "tokens": 1, "loss": NaN}',
        '{"kind": "step", "step": Infinity, "tokens": 1, "loss": 2}',
        '{"kind": "step", "step": 1, "loss": "2"}',
        '{"kind": "step", "step": true, "loss": 2}',
        '{"kind": "step", "step": 1, "' + "x" * 200 + '": 2}',
        '{"kind": "step", "step": 1, "\\u0000": 2, "\\ud800": 3, "": 4, "\\u202e": 5}',
        '{"kind": "eval", "step": 1, "name": ["loss"], "bits_per_byte": 2}',
        '{"kind": "exam", "step": 1, "name": "a", "right": 1, "asked": 0}',
        "{" + " " * 2**20 + '"kind": "step", "step": 1, "loss": 2}',
    ],
)  # fmt: skip
def test_hostile_lines_are_passed_over(tmp_path, line):
    good = {"kind": "eval", "step": 5, "tokens": 7, "name": "text", "bits_per_byte": 1.5}
    path = written(tmp_path, line, good)
    assert read_curves(path) == {"held_out/text": [(7, 1.5)]}


def test_there_are_only_so_many_curves(tmp_path):
    row = {"kind": "step", "step": 1, **{f"x{i}": i for i in range(1000)}}
    assert len(read_curves(written(tmp_path, row))) == curves.MOST_CURVES


def test_steps_stand_where_tokens_are_not_written_down(tmp_path):
    path = written(tmp_path, {"kind": "step", "step": 3, "loss": 2.5})
    assert read_curves(path) == {"loss": [(3, 2.5)]}
