"""The terminal's part of reinforcement: a look, a refusal, a panel."""

import io
from types import SimpleNamespace

import pytest

from abyssal.cli import reinforce
from abyssal.cli.reinforce import Panel, sparkline
from abyssal.train import history
from abyssal.train.reinforcement import Look

LOOK = Look(4, 2, {0.0: 6, 1.0: 1, 2.0: 1}, 0.125, 0.25, 2, "1 + 1 =\n2\x1b[31m")


def step(number: int, **changes: object) -> history.Reinforce:
    values = dict.fromkeys(history.Reinforce.__dataclass_fields__, 0.5)
    return history.Reinforce(**values | {"step": number, "answers": 8, "kl": None, **changes})


def test_a_look_is_a_histogram(capsys):
    reinforce.show_look(SimpleNamespace(look=lambda: LOOK), False)
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["0", "6", "█" * 40] in lines
    assert ["1", "1", "█" * 7] in lines
    assert "12.5%" in out
    assert "\x1b" not in out


def test_a_look_in_json_says_the_same(capsys):
    reinforce.show_look(SimpleNamespace(look=lambda: LOOK), True)
    out = capsys.readouterr().out
    assert '"histogram": [[0.0, 6], [1.0, 1], [2.0, 1]]' in out


@pytest.mark.parametrize("histogram", [{1.0: 8}, {0.0: 2, 1.0: 6}])
def test_where_all_earn_the_same_it_ends_with_the_remedy(histogram, monkeypatch, abyssal_command):
    from abyssal.train import training

    alike = LOOK._replace(histogram=histogram, differing=0)
    real = training.begin

    def begun(*given):
        run = real(*given)
        run.look = lambda: alike
        return run

    monkeypatch.setattr(training, "begin", begun)
    ran = abyssal_command("train", "r1/zero", "--dry-run", "out=nowhere")
    assert ran.code == 2
    assert "take easier tasks" in ran.err


def test_only_rewards_can_be_looked_at(abyssal_command):
    ran = abyssal_command("train", "tiny/base", "--dry-run", "out=nowhere")
    assert ran.code == 2
    assert "--dry-run is for stages with rewards" in ran.err


def test_prepare_says_what_it_wants(abyssal_command, tmp_path):
    ran = abyssal_command("prepare", "--out", str(tmp_path / "x"))
    assert ran.code == 2
    assert "--puzzles" in ran.err


def test_a_sparkline_has_the_lowest_and_the_highest():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█" or sparkline([0.0, 0.5, 1.0]) == "▁▄█"
    assert sparkline([3.0]) == "▁"
    assert len(sparkline([float(i) for i in range(1000)])) <= 48


@pytest.mark.parametrize(("minutes", "planned"), [(None, 300), (60, 300), (8, 160), (0.5, 20)])
def test_the_steps_to_come_are_what_the_minutes_allow(minutes, planned):
    panel = Panel("r1/zero grpo", 300, minutes)
    assert panel.planned == 300
    panel.add(step(20))
    panel.add(history.Step(step=20, tokens=9, loss=0.0, lr=0.0, gamma=0.0, batch_tokens=9,
                           grad_norm=0.0, tokens_per_s=1.0, elapsed_s=60.0))  # fmt: skip
    assert panel.planned == planned


def test_a_panel_shows_what_it_was_told():
    from rich.console import Console

    panel = Panel("r1/zero grpo", 10)
    console = Console(width=120, record=True, file=io.StringIO())
    assert panel.line() == ""
    console.print(panel.drawn())
    for row in (
        step(1, reward=0.25),
        step(2, reward=0.75, kl=0.01, accepted=0.5),
        history.Examination(step=2, tokens=9, name="sums", right=3, asked=4, formatted=4),
        history.Load(step=2, tokens=9, load=((0.25, 0.75), (0.5, 0.5))),
        history.Sample(step=2, prompt="1 + 1 =", text="<think> 2\x1b </think>"),
        history.Event(step=2, what="resumed"),
    ):
        panel.add(row)
    assert "reward 0.75" in panel.line()
    assert "sums 75%" in panel.line()
    console.print(panel.drawn())
    text = console.export_text()
    for part in ("2 of 10 steps", "▁█", "75.0% (30% to 95%) of 4 held out", "50% (MTP)", "<think>"):
        assert part in text
    assert "\x1b" not in text
