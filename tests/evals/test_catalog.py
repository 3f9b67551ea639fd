"""Every task is what it says it is, and every question is whole."""

import gzip
import json

import pytest

from abyssal.errors import DataError, RequestError
from abyssal.evals import catalog, data
from abyssal.evals.task import AnswerTask, ChoiceTask, TextTask

MANIFEST = json.loads((data.FOLDER / "manifest.json").read_text())
SOURCES = (data.FOLDER / "SOURCES.md").read_text()
QUICK = [name for name in catalog.names() if name not in ("rg:countdown", "rg:simple_equations")]


@pytest.mark.parametrize("name", MANIFEST)
def test_every_file_is_whole_and_its_source_and_license_are_told(name):
    assert len(data.rows(name)) == MANIFEST[name]["records"]
    section = SOURCES.split(f"## `{name}.jsonl.gz`")[1].split("\n## ")[0]
    assert {line.split(":")[0] for line in section.splitlines() if line.startswith("- ")} == {
        "- Source", "- License", "- Changed",
    }  # fmt: skip


def test_the_files_are_those_of_the_manifest_and_weigh_less_than_6_megabytes():
    files = {path.name for path in data.FOLDER.glob("*.gz")}
    assert files == {f"{name}.jsonl.gz" for name in MANIFEST}
    assert sum(path.stat().st_size for path in data.FOLDER.iterdir()) < 6_000_000


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text(json.dumps({"xcopa": {"sha256": "0" * 64}}))
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    data.rows.cache_clear()
    with pytest.raises(DataError, match="install abyssal again"):
        data.rows("xcopa")
    (tmp_path / "xcopa.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(DataError, match="SHA-256"):
        data.rows("xcopa")


@pytest.mark.parametrize("name", QUICK)
def test_items_have_names_of_their_own_and_questions_that_fit_their_kind(name):
    task = catalog.task(name)
    items = task.items()
    assert len({item.id for item in items}) == len(items) > 0
    assert all(item.text for item in items)
    for item in items[:: max(len(items) // 40, 1)]:
        if isinstance(task, ChoiceTask):
            choice = task.choice(item, lambda prompt: True)
            assert 0 <= choice.right < len(choice.endings) == len(choice.names)
            assert task.about.chance == pytest.approx(1 / len(choice.endings))
        elif isinstance(task, AnswerTask):
            plain = task.question(item, "text", lambda prompt: True)
            assert isinstance(plain.prompt, str)
            assert item.text in plain.prompt
            (message,) = task.question(item, "chat", lambda prompt: True).prompt
            assert message.role == "user"
            zero = task.question(item, "r1-zero", lambda prompt: True).prompt
            assert zero.endswith("Assistant:")
        else:
            assert isinstance(task, TextTask)


def test_examples_are_dropped_from_the_end_until_the_prompt_fits():
    task = catalog.task("mmlu")
    assert isinstance(task, ChoiceTask)
    item = task.items()[0]
    lengths = [
        len(task.choice(item, lambda prompt, most=most: len(prompt) <= most).context)
        for most in (0, 1000, 1500, 10**6)
    ]
    assert lengths == sorted(lengths)
    whole = task.choice(item, lambda prompt: True).context
    assert whole.count("Answer:") == 6
    none = task.choice(item, lambda prompt: False).context
    assert none.count("Answer:") == 1
    assert none.startswith("The following are multiple choice questions")


def test_right_answers_are_right_and_no_answer_is_not():
    for name in ("rg:chain_sum", "rg:gcd", "rg:syllogism"):
        task = catalog.task(name)
        assert isinstance(task, AnswerTask)
        for item in task.items()[:5]:
            answer = item.data["puzzle"].answer
            assert task.grade(item, f"<think>hm</think> <answer>{answer}</answer>") == 1.0
            assert task.grade(item, f" {answer}") == 1.0
            assert task.grade(item, "") == 0.0


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        ("blmp", "did you mean blimp"),
        ("blimp,nothing", "'nothing'"),
        ("rg:nothing", "'rg:nothing'"),
        (" , ", "name some"),
    ],
)
def test_a_task_that_is_not_there_is_told_with_a_remedy(names, remedy):
    with pytest.raises(RequestError, match=remedy):
        catalog.tasks(names)


def test_names_are_taken_once_and_in_order():
    assert [task.name for task in catalog.tasks("xcopa, blimp,xcopa")] == ["xcopa", "blimp"]
