"""What every test may count on: repeatable randomness, no network, a command line, small models."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers, used for comparison only, must not look outside

# Laws are checked on the same examples every time, so a red run can be repeated. No deadline: the
# first example pays for imports and compilers.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Seed torch's global generator, where a test has imported torch at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory) -> Callable[..., Path]:
    """make_folder(texts, 340): a folder with a small random model in float32 and a tokenizer.

    The tokenizer is trained on the texts; keywords are fields of the model's configuration.
    """
    import torch  # only for those who ask

    from abyssal.config import ModelConfig
    from abyssal.model.transformer import DeepSeekV3
    from abyssal.tokenizer.bpe import Tokenizer

    def make(texts: Sequence[str], vocab_size: int, **fields: int) -> Path:
        path = tmp_path_factory.mktemp("model")
        sizes = {
            "hidden_size": 16, "num_hidden_layers": 2, "first_k_dense_replace": 1,
            "intermediate_size": 24, "num_nextn_predict_layers": 0, "num_attention_heads": 2,
            "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
            "moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "n_group": 1, "topk_group": 1, "max_position_embeddings": 64,
        }  # fmt: skip
        config = ModelConfig(
            vocab_size=vocab_size, q_lora_rank=None, initializer_range=0.2, **sizes | fields
        )
        DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).save(path)
        Tokenizer.train(texts, vocab_size).save(path)
        return path

    return make


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def abyssal_command(monkeypatch, capsys) -> Callable[..., Ran]:
    """abyssal_command("plan", "tiny"): the command line as a person runs it, in this process."""
    from abyssal.cli.main import main

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["abyssal", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return run
