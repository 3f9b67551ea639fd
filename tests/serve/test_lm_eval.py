"""lm-eval measures a model over HTTP and finds what the model itself says."""

import json
import os
from pathlib import Path

import pytest
import yaml

os.environ["HF_DATASETS_OFFLINE"] = "1"

from abyssal.engine.llm import LLM
from tests.serve.wire import KEY, listening

pytestmark = pytest.mark.filterwarnings("ignore")  # what lm-eval does itself is not ours to mend

BLIMP = Path(__file__).parent / "blimp"


def pairs() -> list[tuple[str, str]]:
    rows = (BLIMP / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["good"], row["bad"]) for row in map(json.loads, rows)]


@pytest.mark.slow
def test_blimp_through_local_completions_scores_as_the_model_itself_does(
    model, tokenizer, tmp_path, monkeypatch
):
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    tokenizer.save(tmp_path / "tokenizer")
    task = yaml.safe_load((BLIMP / "blimp_pairs.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["test"] = str(BLIMP / "pairs.jsonl")
    with listening(LLM(model, tokenizer)) as url:
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "tiny",
                "base_url": f"{url}/v1/completions",
                "tokenizer_backend": "huggingface",
                "tokenizer": str(tmp_path / "tokenizer"),
                "num_concurrent": 1,
                "max_length": 512,
            },
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            batch_size=16,
            log_samples=True,
            bootstrap_iters=0,
        )
    samples = results["samples"]["blimp_pairs"]
    assert len(samples) == len(pairs()) == 134
    llm = LLM(model, tokenizer)
    for sample, texts in zip(sorted(samples, key=lambda s: s["doc_id"]), pairs(), strict=True):
        tokens = [tokenizer.encode(text, bos=True) for text in texts]
        own = [sum(scores) for scores in llm.score(tokens)]
        told = [float(response[0]) for (response,) in sample["resps"]]
        assert told == pytest.approx(own, abs=1e-3)
        assert sample["acc"] == float(own[0] > own[1])
