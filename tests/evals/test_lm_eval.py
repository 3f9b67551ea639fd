"""lm-eval, in process: its own tasks give our scores, and its words mean what they mean here."""

import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.lm_eval_scores import compare

pytestmark = pytest.mark.filterwarnings("ignore")  # what lm-eval does itself is not ours to mend

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def adapter(evaluated):
    from abyssal.evals.lm_eval import AbyssalLM

    return AbyssalLM(evaluated)


def asked(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


@pytest.mark.slow
def test_its_published_tasks_score_every_item_as_we_do(evaluated, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name, found in compare(evaluated, folder, 20, tmp_path).items():
        assert found.items == found.same_likelihoods == found.same_scores == 20, name
        assert found.ours == found.theirs


def test_a_continuation_is_scored_behind_its_context(adapter, evaluated):
    encode = evaluated.tokenizer.encode
    pairs = [("the deep", " sea is"), ("", "the fish"), ("the deep ", "sea")]
    found = adapter.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    for (context, ending), (logprob, _) in zip(pairs, found, strict=True):
        tokens = encode(context + ending, bos=True)
        first = len(encode(context.rstrip(), bos=True))
        expected = sum(evaluated.score([tokens])[0][first - 1 :])
        assert logprob == pytest.approx(expected, abs=1e-3)


def test_what_is_too_long_loses_its_beginning(adapter, evaluated):
    tokens = evaluated.tokenizer.encode("the deep sea is dark " * 40 + "fish")
    pair = asked("the deep sea is dark " * 40, "fish")
    ((logprob, _),) = adapter.loglikelihood([pair], disable_tqdm=True)
    kept = [evaluated.tokenizer.bos_token_id, *tokens[-127:]]
    scored = evaluated.score([kept])[0]
    before = len(evaluated.tokenizer.encode(("the deep sea is dark " * 40).rstrip()))
    assert logprob == pytest.approx(sum(scored[before - len(tokens) :]), abs=1e-3)


def test_whole_texts_are_scored_in_windows(adapter, evaluated):
    from abyssal.evals.harness import bits_per_byte

    text = "the deep sea is dark and the fish see " * 20
    (found,) = adapter.loglikelihood_rolling([asked(text)], disable_tqdm=True)
    bits = bits_per_byte(evaluated, evaluated.tokenizer, [text]).bits
    assert -found / 0.6931471805599453 == pytest.approx(bits, rel=1e-4)


def test_answers_are_greedy_and_end_where_they_are_told_to(adapter, evaluated):
    greedy = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 12}
    (whole,) = adapter.generate_until([asked("the deep", greedy)])
    assert whole == evaluated.generate("the deep", max_tokens=12, temperature=0).text
    stop = whole[3:5]
    (cut,) = adapter.generate_until([asked("the deep", greedy | {"until": [stop]})])
    assert cut == whole[: whole.index(stop)]


def test_the_entry_point_names_the_model():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["abyssal"].partition(":")
    from lm_eval.api.registry import get_model

    found = import_module(module)
    found.register()
    assert get_model("abyssal") is getattr(found, name)
    assert get_model("local-completions")  # lm-eval's own are still there
