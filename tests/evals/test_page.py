"""The page of an evaluation: all that was measured, escaped, and nothing else."""

import json
import random

import pytest
import torch

from abyssal.errors import DataError
from abyssal.evals import catalog, experts, needle
from abyssal.evals.needle import Search
from abyssal.evals.page import page, write_page
from abyssal.evals.summary import summary
from tests.report.page import Page

HOSTILE = "</p><script>alert('x')</script><img src=x onerror=\"y\">&amp;\x00"


def choice_rows(name: str, count: int = 40, text: str = "a {}") -> list[dict]:
    rng = random.Random(name)
    rows = []
    for i in range(count):
        acc = float(rng.random() < 0.7)
        rows.append(
            {"index": i, "id": f"{name}-{i}", "domain": f"part {i % 3}",
             "prompt": text.format(f"prompt {i}"),
             "endings": [f" good {i}", text.format(f"bad {i}")], "right": 0,
             "logprobs": [-1.0, -2.0 if acc else -0.5], "acc": acc}
        )  # fmt: skip
    return rows


def answer_rows(count: int = 20, text: str = "{}") -> list[dict]:
    return [
        {"index": i, "id": f"q-{i}", "prompt": f"What is {i} + {i}?",
         "answers": [{"text": text.format(2 * i if i % 4 else 0), "end": "stop" if i else "length",
                      "grade": float(i % 4 > 0), "vote": None}], "pass@1": float(i % 4 > 0)}
        for i in range(count)
    ]  # fmt: skip


def write(out, rows: dict[str, list[dict]], **more) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (out / f"{name.replace(':', '-')}.jsonl").write_text(text)
    tasks = {name: summary(catalog.task(name), lines) for name, lines in rows.items()}
    found = {"model": "0123456789abcdef", "settings": {"seed": 7}, "tasks": tasks}
    (out / "results.json").write_text(json.dumps(found | more))


def stories(count: int = 5) -> list[dict]:
    return [
        {"index": i, "id": f"s-{i}", "prompt": "Once", "nats": 3.0 + i, "bytes": 4}
        for i in range(count)
    ]


def expert_section() -> dict:
    generator = torch.Generator().manual_seed(0)
    loads = {name: torch.randint(1, 99, (2, 8), generator=generator) for name in ("en", "fr")}
    return experts.section(loads)


def needle_results() -> dict:
    what = Search(lengths=(64, 128), depths=(0.0, 1.0), trials=1)
    rows = [
        {"length": length, "depth": depth, "exact": 0.0, "choice": float(length == 64)}
        for length in what.lengths
        for depth in what.depths
    ]
    return needle.results(what, rows)


def full(out, text: str = "{}") -> str:
    rows = {"blimp": choice_rows("blimp", text=text), "gsm8k": answer_rows(text=text),
            "stories": stories()}  # fmt: skip
    drafts = [{"ahead": 1, "drafted": 10, "accepted": 8, "share": 0.8, "low": 0.5, "high": 0.9},
              {"ahead": 2, "drafted": 0, "accepted": 0, "share": None, "low": 0,
               "high": 1}]  # fmt: skip
    write(out, rows, experts=expert_section(), mtp=drafts)
    (out / "needle").mkdir(exist_ok=True)
    (out / "needle" / "results.json").write_text(json.dumps(needle_results()))
    return page(out, "All of it")


def test_all_that_was_measured_is_on_the_page(tmp_path):
    shown = Page(full(tmp_path))
    for said in (
        "All of it", "Model 0123456789ab", "seed 7", "blimp", "gsm8k", "stories", "bits_per_byte",
        "95% interval", "40/66,799", "part 0", "part 2", "CC BY 4.0", "Right", "Wrong",
        "What is 1 + 1?", "grade 1", "blimp-0 · part 0", "good 0", "-2.00", "longest: 1.",
        "MoE layer 1", "even shares", "1 ahead", "64 tokens, exact", "Needle in a haystack, choice",
        "of the domain", "80.0% (50.0 to 90.0)",
    ):  # fmt: skip
        assert said in shown.text, said
    assert shown.tags.count("svg") == 2 + 2
    assert "2 ahead" not in shown.text


def test_it_loads_nothing_and_runs_nothing_whatever_the_samples_hold(tmp_path):
    plain, hostile = Page(full(tmp_path / "a")), Page(full(tmp_path / "b", text=HOSTILE + "{}"))
    assert set(hostile.tags) == set(plain.tags)
    assert not {"script", "link", "img", "iframe", "object"} & set(hostile.tags)
    assert not {"src", "onerror", "action"} & {name for name, _ in hostile.attributes}
    assert hostile.text.count("<script>alert") >= 12
    assert "default-src 'none'" in dict(hostile.attributes)["content"]


def test_at_most_three_right_and_three_wrong_samples_of_a_task_are_shown(tmp_path):
    write(tmp_path, {"blimp": choice_rows("blimp", 40)})
    assert Page(page(tmp_path, "x")).tags.count("article") == 6
    rows = [row | {"acc": 1.0} for row in choice_rows("blimp", 2)]
    write(tmp_path, {"blimp": rows})
    assert Page(page(tmp_path, "x")).tags.count("article") == 2


def test_equal_folders_give_equal_pages(tmp_path):
    assert full(tmp_path / "a") == full(tmp_path / "b")


def test_a_long_sample_is_cut_in_its_middle(tmp_path):
    rows = answer_rows(1)
    rows[0]["prompt"] = "begin " + "x" * 100_000 + " end"
    write(tmp_path, {"rg:gcd": rows})
    text = Page(page(tmp_path, "x")).text
    assert len(text) < 20_000
    assert "begin xx" in text
    assert "xx end" in text


def test_a_search_alone_has_a_page(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(needle_results()))
    assert "Needle in a haystack" in Page(page(tmp_path, "x")).text


def test_bars_lie_within_their_tracks_and_say_their_values(tmp_path):
    write(tmp_path, {"blimp": [row | {"acc": 1.0} for row in choice_rows("blimp", 3)]})
    shown = page(tmp_path, "x")
    assert 'style="width:100.00%"' in shown
    assert '<s style="left:50.00%">' in shown  # chance
    assert "100.0% (43.9 to 100.0)" in shown


def test_what_cannot_be_shown_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no results\.json"):
        write_page(tmp_path)
    write(tmp_path, {"blimp": choice_rows("blimp", 3)})
    assert write_page(tmp_path, "x").read_text() == page(tmp_path, "x")
    with (tmp_path / "blimp.jsonl").open("a") as file:
        file.write('{"index"')
    with pytest.raises(DataError, match="broken line"):
        write_page(tmp_path)
    (tmp_path / "blimp.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        write_page(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="broken"):
        write_page(tmp_path)
