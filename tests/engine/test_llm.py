"""LLM: what it writes is what its model says, however it is asked."""

import threading
from dataclasses import replace

import pytest
import torch

from abyssal.batch import Batch
from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.engine.request import Grammar, SamplingParams
from abyssal.errors import CheckpointError, ConfigError, RequestError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import ASSISTANT, EOS, THINK, USER
from abyssal.tokenizer.chat import Message

PROMPTS = ["the deep sea", "", "深海 是 the fish", "see 🐟 the dark sea is the deep dark"]


@torch.no_grad()
def greedy(model: DeepSeekV3, tokens: list[int], count: int) -> list[int]:
    """The definition: recompute everything for every token."""
    for _ in range(count):
        logits = model.logits(Batch.from_sequences([tokens]))[-1]
        tokens = [*tokens, int(logits.argmax())]
    return tokens[len(tokens) - count :]


def test_greedy_is_the_argmax_of_the_logits_over_full_recomputation(llm):
    prompts = [llm.tokenizer.encode(text, bos=True) for text in PROMPTS]
    found = llm.generate(PROMPTS, temperature=0, max_tokens=24, ignore_eos=True)
    assert [c.tokens for c in found] == [greedy(llm.model, tokens, 24) for tokens in prompts]
    assert [c.prompt_tokens for c in found] == [len(tokens) for tokens in prompts]
    assert llm.generate(prompts, temperature=0, max_tokens=24, ignore_eos=True) == found


def test_company_changes_nothing(llm):
    params = SamplingParams(max_tokens=30, seed=11, top_p=0.95, logprobs=0)
    together = llm.generate(PROMPTS * 3, params)
    for prompt, completion in zip(PROMPTS * 3, together, strict=True):
        alone = llm.generate(prompt, params)
        assert alone.tokens == completion.tokens
        assert alone.text == completion.text
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_streamed_text_joins_to_the_generated_text(llm, seed):
    unthinking = {llm.tokenizer.control(THINK): -100.0}
    params = SamplingParams(
        max_tokens=40, seed=seed, stop=("se", "a d", "是"), logit_bias=unthinking
    )
    completion = llm.generate("the deep", params)
    deltas = list(llm.stream("the deep", params))
    assert "".join(delta.text for delta in deltas) == completion.text
    assert [delta.token for delta in deltas] == completion.tokens
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == completion.finish_reason
    whole = llm.tokenizer.decode(completion.tokens)
    assert whole.startswith(completion.text)
    assert not any(stop in completion.text for stop in params.stop)


def test_a_stop_text_found_in_free_running_text_cuts_it_there(llm):
    free = llm.generate("the", max_tokens=60, seed=2, ignore_eos=True)
    for at in range(0, len(free.text) - 6):
        stop = free.text[at : at + 6]
        if "\N{REPLACEMENT CHARACTER}" in stop:
            continue
        cut = llm.generate("the", max_tokens=60, seed=2, ignore_eos=True, stop=stop)
        assert cut.text == free.text[: free.text.find(stop)]
        assert cut.finish_reason == "stop"
        assert cut.tokens == free.tokens[: len(cut.tokens)]


def test_an_equal_seed_gives_equal_tokens_and_n_answers_differ(llm):
    first = llm.generate(["the sea"] * 2, n=3, seed=5, max_tokens=20, ignore_eos=True)
    again = llm.generate(["the sea"] * 2, n=3, seed=5, max_tokens=20, ignore_eos=True)
    assert first == again
    assert first[:3] == first[3:]  # the same prompt, seed and place among the answers
    assert len({tuple(c.tokens) for c in first}) == 3
    assert first[0] == llm.generate("the sea", seed=5, max_tokens=20, ignore_eos=True)
    other = llm.generate("the sea", seed=6, max_tokens=20, ignore_eos=True)
    assert other.tokens != first[0].tokens
    unseeded = llm.generate(["the sea"] * 4, max_tokens=20, ignore_eos=True)
    assert len({tuple(c.tokens) for c in unseeded}) == 4


def test_logprobs_are_the_scores_of_what_was_written(llm):
    prompt = llm.tokenizer.encode("the dark", bos=True)
    done = llm.generate([prompt], max_tokens=30, seed=1, temperature=0.5, logprobs=3)[0]
    scores = llm.score([[*prompt, *done.tokens]])[0][len(prompt) - 1 :]
    assert done.logprobs == pytest.approx(scores, abs=1e-4)
    assert done.top_logprobs is not None
    for token, logprob, top in zip(done.tokens, done.logprobs, done.top_logprobs, strict=True):
        assert len(top) == 3
        assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
        assert dict(top).get(token, logprob) == logprob <= top[0][1]
    assert llm.generate("the dark", max_tokens=1).logprobs is None


def test_an_answer_ends_at_eos_unless_that_is_ignored(llm):
    eos = llm.tokenizer.eos_token_id
    ended = llm.generate("the", temperature=0, logit_bias={eos: 100}, max_tokens=9)
    assert (ended.tokens, ended.text, ended.finish_reason) == ([eos], "", "stop")
    ignored = llm.generate(
        "the", temperature=0, logit_bias={eos: 100}, max_tokens=9, ignore_eos=True
    )
    assert (ignored.tokens, ignored.text, ignored.finish_reason) == ([eos] * 9, "", "length")


def test_a_stop_token_ends_the_answer(llm):
    free = llm.generate("the", seed=3, max_tokens=30, ignore_eos=True)
    token = free.tokens[12]
    cut = llm.generate("the", seed=3, max_tokens=30, ignore_eos=True, stop_token_ids=[token])
    assert cut.tokens == free.tokens[: free.tokens.index(token) + 1]
    assert cut.finish_reason == "stop"


def test_the_context_is_a_wall_with_numbers_on_it(llm):
    context = llm.config.max_position_embeddings
    full = [5] * (context - 1)
    done = llm.generate([full, full[:-9]], ignore_eos=True, seed=1, max_tokens=50)
    assert [(len(c.tokens), c.finish_reason) for c in done] == [(1, "length"), (10, "length")]
    with pytest.raises(RequestError, match=f"{context} tokens.*at most {context - 1}"):
        llm.generate([[5] * context])
    with pytest.raises(RequestError, match=r"conversation.*drop its oldest turns"):
        llm.chat("the sea " * context)


@pytest.mark.parametrize(
    ("prompts", "values", "word"),
    [
        ([[]], {}, "no tokens"),
        ([[5, 340]], {}, "token 340"),
        ([5, 6], {}, "prompt=5"),
        ("the", {"n": 2}, "n=2"),
        ("the", {"stop_token_ids": [340]}, "token 340"),
        ("the", {"logit_bias": {999: 1.0}}, "token 999"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(llm, prompts, values, word):
    with pytest.raises(RequestError, match=word):
        llm.generate(prompts, **values)


def test_an_empty_list_of_prompts_has_no_answers(llm):
    assert llm.generate([]) == []


def test_a_chat_reads_the_layout_and_shows_no_control_token(llm):
    messages = [Message("user", "the sea"), Message("assistant", "dark"), Message("user", "see")]
    control, encode = llm.tokenizer.control, llm.tokenizer.encode
    user, assistant, eos = control(USER), control(ASSISTANT), control(EOS)
    layout = [
        llm.tokenizer.bos_token_id, user, *encode("the sea"), assistant, *encode("dark"), eos,
        user, *encode("see"), assistant,
    ]  # fmt: skip
    params = SamplingParams(seed=4, max_tokens=30, ignore_eos=True)
    done = llm.chat(messages, params)
    assert done.prompt_tokens == len(layout)
    assert done.tokens == llm.generate([layout], params)[0].tokens
    assert "".join(delta.text for delta in llm.stream(messages, params)) == done.text
    assert llm.chat("see", params) == llm.chat(Message("user", "see"), params)
    loud = replace(params, logit_bias={assistant: 100.0}, temperature=0)
    assert llm.chat("see", loud).text == ""


def test_a_chat_ends_where_the_user_would_speak(llm):
    user = llm.tokenizer.control(USER)
    done = llm.chat("see", temperature=0, logit_bias={user: 100}, max_tokens=9)
    assert (done.tokens, done.text, done.finish_reason) == ([user], "", "stop")


def test_a_thinking_chat_keeps_its_thoughts_apart(llm):
    params = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)
    thinking = llm.chat("see", params, layout="r1")
    assert thinking.text == ""
    assert thinking.reasoning == llm.tokenizer.decode(thinking.tokens)
    deltas = llm.stream(Message("user", "see"), params, layout="r1")
    assert "".join(delta.reasoning for delta in deltas) == thinking.reasoning
    assert llm.chat("see", params).reasoning is None


def test_padding_rows_of_the_embedding_are_never_written(tokenizer):
    config = ModelConfig.preset("tiny")
    small = replace(config, vocab_size=2048, num_hidden_layers=1, hidden_size=16)
    llm = LLM(DeepSeekV3(small).initialize().eval(), tokenizer)
    done = llm.generate(["the"] * 8, max_tokens=20, temperature=5.0, seed=1, ignore_eos=True, n=1)
    assert max(max(c.tokens) for c in done) < tokenizer.vocab_size


def test_threads_get_what_they_would_get_alone(llm):
    params = [SamplingParams(seed=seed, max_tokens=25) for seed in range(6)]
    alone = [llm.generate(PROMPTS, p) for p in params]
    found = {}

    def work(i: int) -> None:
        found[i] = llm.generate(PROMPTS, params[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == alone


def test_a_stream_left_unread_does_not_block_others(llm):
    stream = llm.stream("the", max_tokens=50, ignore_eos=True)
    next(stream)
    assert llm.generate("the", max_tokens=2, ignore_eos=True).finish_reason == "length"


def test_a_folder_in_bf16_runs_in_float32_on_a_cpu_unless_told_otherwise(llm, tmp_path):
    saved = DeepSeekV3(llm.config)
    saved.load_state_dict(llm.model.state_dict())
    for parameter in saved.parameters():
        parameter.data = parameter.data.bfloat16()
    saved.save(tmp_path)
    llm.tokenizer.save(tmp_path)
    wide, narrow = LLM(tmp_path), LLM(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in wide.model.parameters()} == {torch.float32}
    assert {p.dtype for p in narrow.model.parameters()} == {torch.bfloat16}
    assert all(g.e_score_correction_bias.dtype == torch.float32 for g in narrow.model.gates())
    prompt = wide.tokenizer.encode("the", bos=True)
    done = wide.generate([prompt], temperature=0, max_tokens=9, ignore_eos=True)[0]
    assert done.tokens == greedy(wide.model, prompt, 9)
    assert len(narrow.generate("the", max_tokens=9, ignore_eos=True).tokens) == 9


def test_a_wrong_folder_and_a_wrong_tokenizer_are_explained(llm, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LLM(tmp_path)
    with pytest.raises(ConfigError, match="tokenizer"):
        LLM(llm.model)
    small = DeepSeekV3(replace(llm.config, vocab_size=100))
    with pytest.raises(ConfigError, match="vocab_size=100"):
        LLM(small, llm.tokenizer)


def test_an_answer_that_fails_is_an_error_alone_and_a_note_among_many(llm):
    grammar = Grammar(kind="regex", source="[a-z]+")
    nothing = SamplingParams(grammar=grammar, bad_words=list("abcdefghijklmnopqrstuvwxyz"))
    with pytest.raises(RequestError, match="token"):
        llm.generate("the", nothing)
    (completion,) = llm.generate(["the"], nothing)
    assert completion.finish_reason == "error"
    assert completion.tokens == []
    assert llm.engine.is_idle
