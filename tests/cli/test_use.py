"""The verbs that use a model, run as a person runs them."""

import io
import json

import pytest
import torch

from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.evals.harness import bits_per_byte
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A model folder with a random model and a tokenizer of a few words."""
    path = tmp_path_factory.mktemp("model")
    config = ModelConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=24, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).save(path)
    Tokenizer.train(["the deep sea is dark and the fish see\n" * 4], 320).save(path)
    return str(path)


@pytest.fixture
def typed(monkeypatch):
    """typed("a", "b"): lines that come through a pipe."""
    return lambda *lines: monkeypatch.setattr(
        "sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines))
    )


def test_a_prompt_is_printed_with_its_continuation(abyssal_command, folder):
    words = ("generate", folder, "--prompt", "the sea", "--max-tokens", "12", "--seed", "3")
    ran = abyssal_command(*words)
    done = LLM(folder).generate("the sea", max_tokens=12, seed=3, temperature=0.7)
    assert (ran.code, ran.out) == (0, f"the sea{done.text}\n")
    answer = json.loads(abyssal_command(*words, "--json").out)
    assert answer == {
        "prompt": "the sea",
        "text": done.text,
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
    }


def test_a_file_of_prompts_becomes_rows_of_answers_in_order(abyssal_command, folder, tmp_path):
    prompts = ["the sea", "深海", "", "see the dark\nfish"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n\n" for p in prompts))
    options = ("--max-tokens", "9", "--temperature", "0", "--stop", "q", "--stop", "z")
    ran = abyssal_command("generate", folder, "--file", str(file), *options)
    rows = [json.loads(line) for line in ran.out.splitlines()]
    done = LLM(folder).generate(prompts, max_tokens=9, temperature=0, stop=["q", "z"])
    assert [row["prompt"] for row in rows] == prompts
    assert [row["text"] for row in rows] == [completion.text for completion in done]


@pytest.mark.parametrize("verb", [("generate", "--prompt", "a"), ("chat",), ("eval", "--bpb", "f")])
def test_without_a_model_folder_the_demo_is_named(abyssal_command, verb, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = abyssal_command(*verb)
    assert ran.code == 2
    assert "out/demo/model: no such folder; run `make demo` first" in ran.err


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("generate",), "--prompt TEXT or --file"),
        (("generate", "--prompt", "a", "--file", "b"), "--prompt TEXT or --file"),
        (("generate", "--file", "nowhere.jsonl"), "nowhere.jsonl"),
        (("generate", "--prompt", "a", "--temperature", "-1"), "temperature=-1"),
        (("generate", "--prompt", "the deep " * 99), "at most 63"),
        (("chat", "--prompt", "the deep " * 99), "at most 63"),
        (("eval",), "--bpb FILE"),
        (("eval", "--bpb", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2(abyssal_command, folder, words, remedy):
    ran = abyssal_command(words[0], folder, *words[1:])
    assert ran.code == 2
    assert remedy in ran.err
    assert (ran.out, ran.err.count("\n")) == ("", 1)


def test_a_row_without_a_prompt_is_named_by_its_line(abyssal_command, folder, tmp_path):
    file = tmp_path / "prompts.jsonl"
    for line in ('{"text": "a"}', "{broken", '{"prompt": 3}'):
        file.write_text(f'{{"prompt": "a"}}\n{line}\n')
        ran = abyssal_command("generate", folder, "--file", str(file))
        assert ran.code == 2
        assert "prompts.jsonl:2" in ran.err


def test_a_chat_through_a_pipe_answers_each_line_and_knows_its_history(
    abyssal_command, folder, typed
):
    typed("the sea", "", "the fish", "/system dark", "/what", "/reset", "the sea", "/quit", "see")
    options = ("--max-tokens", "8", "--temperature", "0")
    ran = abyssal_command("chat", folder, *options, "--json")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    llm = LLM(folder)
    first = llm.chat("the sea", max_tokens=8, temperature=0).text
    history = [Message("user", "the sea"), Message("assistant", first), Message("user", "the fish")]
    second = llm.chat(history, max_tokens=8, temperature=0).text
    third = llm.chat(
        [Message("system", "dark"), Message("user", "the sea")], max_tokens=8, temperature=0
    ).text
    assert [(row["prompt"], row["text"]) for row in rows] == [
        ("the sea", first), ("the fish", second), ("the sea", third)
    ]  # fmt: skip
    assert "/what is no command" in ran.err
    typed("the sea")
    assert abyssal_command("chat", folder, *options).out == f"{first}\n"
    assert abyssal_command("chat", folder, "--prompt", "the sea", *options).out == f"{first}\n"


def test_a_full_context_drops_the_oldest_turns_aloud_and_a_flood_is_refused(
    abyssal_command, folder, typed
):
    typed(*["the deep sea is dark"] * 6, "深海" * 99, "see")
    ran = abyssal_command("chat", folder, "--max-tokens", "8", "--seed", "1", "--json")
    assert ran.code == 0
    assert "dropped the 2 oldest messages" in ran.err
    assert "error: the conversation has" in ran.err
    assert len(ran.out.splitlines()) == 7


def test_eval_prints_the_bits_per_byte_of_a_file(abyssal_command, folder, tmp_path):
    file = tmp_path / "texts.jsonl"
    texts = ["the deep sea", "fish fish"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    llm = LLM(folder)
    found = bits_per_byte(llm, llm.tokenizer, texts)
    ran = abyssal_command("eval", folder, "--bpb", str(file), "--json")
    assert json.loads(ran.out) == {
        "bits_per_byte": found.bits_per_byte,
        "bytes": 21,
        "tokens": found.tokens,
        "documents": 2,
    }
    file.write_text(file.read_text() + "{broken\n")
    ran = abyssal_command("eval", folder, "--bpb", str(file))
    assert f"{found.bits_per_byte:.4f}" in ran.out
    assert "bad JSON" in ran.err
