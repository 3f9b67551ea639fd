"""Numbers as people read them, and the same result for people and machines."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.cli import console


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (671_026_419_200, "671,026,419,200"),
        (0, "0"),
        (3.0, "3"),
        (-1234.5, "-1234"),
        (0.027414, "0.02741"),
        (12345.67, "12,346"),
        (2.2e-4, "0.00022"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_have_thousands_separators_and_four_digits(value, text):
    assert console.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (70_272, "70.27 kB"),
        (999_960, "1 MB"),
        (1_342_052_838_400, "1.342 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_quantities_have_prefixes(value, text):
    assert console.quantity(value, "B") == text


@given(st.floats(1e-3, 1e30))
def test_a_quantity_says_its_value_to_four_digits(value):
    mantissa, unit = console.quantity(value, "B").split(" ")
    assert float(mantissa) * 1000 ** console._SI.index(unit[:-1]) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.03117, "0.0312 s"),
        (45.25, "45.2 s"),
        (59.9, "59.9 s"),
        (723, "12 min 03 s"),
        (3599.7, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (4_935_600, "57 d 3 h"),
    ],
)
def test_durations_use_two_units_at_most(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("cache_bytes_per_token", 70_272, "70.27 kB"),
        ("flops_per_token", 250_456_015_872, "250.5 GFLOP"),
        ("elapsed_s", 723.0, "12 min 03 s"),
        ("tokens_per_s", 12_345.6, "12,346"),
        ("latency_ms", 3.5, "3.5 ms"),
        ("cost_dollars", 5_576_000, "$5,576,000.00"),
        ("steps", 12_000, "12,000"),
        ("is_finished", True, "yes"),
        ("limit", None, "-"),
        ("tasks", ["a", "b"], "a, b"),
    ],
)
def test_the_end_of_a_name_says_the_unit(name, value, text):
    assert console.written(name, value) == text


@dataclass
class Report:
    out: Path
    loss: float
    by_task: dict[str, tuple[int, ...]]


REPORT = Report(Path("out/a[b]"), math.nan, {"sums": (1, 2)})


def test_json_is_one_object_with_null_for_what_json_lacks(capsys):
    console.show(REPORT, as_json=True)
    written = capsys.readouterr().out
    assert json.loads(written) == {
        "out": "out/a[b]",
        "loss": None,
        "by_task": {"sums": [1, 2]},
    }
    assert written.count("\n") == 1


def test_people_see_every_name_and_value_as_it_is(capsys):
    console.show(REPORT, as_json=False, title="a [red] title")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["a", "[red]", "title"], ["out", "out/a[b]"], ["loss", "nan"],
                     ["by_task"], ["sums", "1,", "2"]]  # fmt: skip


def test_a_long_line_in_a_pipe_stays_one_line(capsys):
    console.table("", ("", ""), [("x" * 300, "y" * 300)])
    console.fail(ValueError("z" * 300 + " [red]\nend"))
    captured = capsys.readouterr()
    assert captured.out.count("\n") == captured.err.count("\n") == 1
    assert captured.err == f"error: {'z' * 300} [red] end\n"


def test_progress_is_silent_where_nobody_looks(capsys):
    with console.progress("reading", 3) as bar:
        bar.at(1, total=3, note="")
    assert capsys.readouterr() == ("", "")
