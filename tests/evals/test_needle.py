"""Needles: hidden where they should be, found by whoever reads, remembered over an interruption."""

import json
import re
from dataclasses import replace

import pytest

from abyssal.config import RopeScaling
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.errors import ConfigError, DataError, RequestError
from abyssal.evals import needle
from abyssal.evals.needle import KEYS, Search, figure, search, table
from tests.report.page import Page

WORDS = ["there is a pass key hidden in this text. find it and remember it. what is the pass "
         "key? The pass key is 0 1 2 3 4 5 6 7 8 9. Once there was a girl\n"]  # fmt: skip
SMALL = Search(lengths=(512, 300), depths=(0.0, 0.5, 1.0), trials=1)


@pytest.fixture(scope="module")
def folder(make_folder):
    return make_folder(WORDS * 8, 400, max_position_embeddings=512)


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, options=EngineOptions(deterministic=True))


def rows_of(out):
    return [json.loads(line) for line in (out / "needle.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("keys", ["numbers", "words"])
def test_the_needle_is_where_it_should_be_in_a_text_as_long_as_it_should_be(llm, keys):
    for item in needle._items(replace(SMALL, keys=keys)):
        text = needle.prompt(llm, item, 9)
        key = item.data["keys"][item.data["right"]]
        tokens = len(llm.tokenizer.encode(text, bos=True))
        assert item.data["length"] - 150 < tokens <= item.data["length"] - 9
        words = re.findall(r"\w+", text)
        assert words.count(key) == 2
        assert not any(other in words for other in item.data["keys"] if other != key)
        body = text[len(needle.OPENING) : -len(needle.QUESTION)]
        before = body.index(" The pass key is") / (len(body) - len(needle.NEEDLE))
        assert before == pytest.approx(item.data["depth"], abs=0.35)
        if item.data["depth"] in (0, 1):
            assert before == pytest.approx(item.data["depth"], abs=0.02)


def test_every_trial_has_keys_of_its_own_and_the_same_ones_every_time():
    items = needle._items(SMALL)
    assert len({item.text for item in items}) == len(items) == 2 * 3
    assert items == needle._items(SMALL)
    assert items != needle._items(Search(lengths=(300, 512), depths=SMALL.depths, trials=1, seed=1))
    assert {len(item.data["keys"]) for item in items} == {KEYS}


class Reader(LLM):
    """Writes what it read: the key and more."""

    def generate(self, prompts, *args, **changes):
        key = re.search(r"pass key is (\w+)", prompts).group(1)
        return replace(super().generate(prompts, *args, **changes), text=f" {key}. And")


def test_who_reads_finds_all(folder, tmp_path):
    reader = Reader(folder, options=EngineOptions(deterministic=True))
    *_, last = search(reader, folder, tmp_path, SMALL)
    assert last.found["exact"] == 1.0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["exact"]["map"] == [[1.0] * 3] * 2
    assert found["exact"]["all"]["value"] == 1.0


def test_a_search_goes_on_where_it_was_stopped(llm, folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    steps = list(search(llm, folder, whole, SMALL))
    assert [step.done for step in steps] == list(range(1, 7))
    for _ in zip(range(3), search(llm, folder, cut, SMALL), strict=False):
        pass
    assert 0 < len(rows_of(cut)) < 6
    assert not (cut / "results.json").exists()
    list(search(llm, folder, cut, SMALL))
    assert rows_of(cut) == rows_of(whole)
    assert (cut / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    with pytest.raises(DataError, match="trials"):
        list(search(llm, folder, cut, Search(lengths=(300, 512), depths=SMALL.depths, trials=3)))


def test_the_map_is_the_mean_of_the_trials(llm, folder, tmp_path):
    list(search(llm, folder, tmp_path, SMALL))
    rows, found = rows_of(tmp_path), json.loads((tmp_path / "results.json").read_text())
    assert found["lengths"] == [300, 512]
    for x, length in enumerate(found["lengths"]):
        for y, depth in enumerate(found["depths"]):
            here = [r["choice"] for r in rows if (r["length"], r["depth"]) == (length, depth)]
            assert found["choice"]["map"][x][y] == sum(here) / 1
    shown = table(found, "choice")
    assert shown[0] == ("depth", "300", "512")
    assert [row[0] for row in shown[1:]] == ["0%", "50%", "100%"]
    assert {len(row) for row in shown} == {3}
    page = Page(figure(found, "choice"))
    assert page.tags.count("svg") == 1
    assert "lengths 300, 512 tokens" in page.text


@pytest.mark.parametrize(
    ("what", "said"),
    [({"lengths": (1024,)}, "1,024 tokens; the model reads 512"),
     ({"lengths": (20,)}, "the question alone takes"),
     ({"lengths": ()}, "at least one length"),
     ({"lengths": (300,), "depths": (1.5,)}, "from 0 to 1"),
     ({"lengths": (300, 300)}, "twice"),
     ({"lengths": (300,), "trials": 0}, "one trial")],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(llm, folder, tmp_path, what, said):
    with pytest.raises(RequestError, match=said):
        list(search(llm, folder, tmp_path, Search(**what)))


# Positions that a model was not trained with


def test_a_model_is_searched_beyond_what_it_was_made_to_read(folder, tmp_path):
    what = Search(lengths=(300, 700), depths=(0.5,), trials=1)
    *_, last = search(needle.opened(folder, 700), folder, tmp_path, what)
    assert (last.done, last.total) == (2, 2)
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["context"], found["rope"]) == (512, "plain")
    assert [row["length"] for row in rows_of(tmp_path)] == [300, 700]


def test_within_its_length_a_model_opened_so_is_the_folder_s(folder, llm, tmp_path):
    what = Search(lengths=(300,), depths=(0.5,), trials=1)
    for out, asked in (("own", llm), ("raised", needle.opened(folder, 700))):
        list(search(asked, folder, tmp_path / out, what))
    own, raised = (rows_of(tmp_path / out)[0] for out in ("own", "raised"))
    assert raised["text"] == own["text"]
    assert raised["logprobs"] == pytest.approx(own["logprobs"], abs=0.05)


def test_other_positions_are_another_search(folder, tmp_path):
    what = Search(lengths=(300,), depths=(0.5,), trials=1)
    slow = RopeScaling(type="linear", factor=4.0, original_max_position_embeddings=512)
    list(search(needle.opened(folder, 300, slow), folder, tmp_path, what))
    assert json.loads((tmp_path / "results.json").read_text())["rope"] == "linear:4"
    with pytest.raises(DataError, match="rope=linear:4, not plain"):
        list(search(needle.opened(folder, 300), folder, tmp_path, what))
    with pytest.raises(ConfigError, match="linear scaling reaches factor"):
        needle.opened(folder, 4096, slow)


@pytest.mark.parametrize(("count", "depths"), [(1, (0.5,)), (3, (0.0, 0.5, 1.0))])
def test_depths_are_even(count, depths):
    assert needle.evenly(count) == depths
