"""What the engine tells of each token: the experts of the row it was drawn from, and its draft."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.batch import Batch
from abyssal.engine import engine as engine_module
from abyssal.engine.engine import Engine, EngineOptions
from abyssal.engine.llm import LLM
from abyssal.engine.native import NativeRunner
from abyssal.engine.request import Completion, Request, SamplingParams
from abyssal.engine.runner import Runner
from abyssal.kernels import stack
from abyssal.model.transformer import DeepSeekV3
from tests.engine.conftest import small

PROMPTS = (
    "the deep sea is",
    "fish",
    "深海 是 黑暗 的 " * 8,
    "and the fish in the deep sea see the",
)
Experts = list[tuple[tuple[int, ...], ...]]


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch) -> str:
    """Both ways to compute a pass."""
    if request.param == "torch":
        monkeypatch.setattr(engine_module, "runs_natively", lambda device: False)
    elif not stack.is_available():
        pytest.skip("no native kernels here")
    return request.param


def run(
    model, tokenizer, params: list[SamplingParams], prompts=PROMPTS, **options
) -> tuple[Engine, list[Completion]]:
    """The answers to some prompts, written together."""
    engine = Engine(model, tokenizer, EngineOptions(**options))
    asked = [
        Request(id=i, tokens=tokenizer.encode(prompt, bos=True), params=values)
        for i, (prompt, values) in enumerate(zip(prompts, params, strict=True))
    ]
    deltas = {request.id: [] for request in asked}
    for request in asked:
        engine.add(request)
    while not engine.is_idle:
        for delta in engine.step():
            deltas[delta.request_id].append(delta)
    return engine, [Completion.from_deltas(request, deltas[request.id]) for request in asked]


def values(**changes) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 20, "seed": 5, "insight": True, **changes})


def experts_of(answer: Completion) -> Experts:
    return [tuple(tuple(sorted(layer)) for layer in one.experts) for one in answer.insight]


def forced(model: DeepSeekV3, prompt: list[int], written: list[int]) -> Experts:
    """What one pass of the torch model over the finished text says."""
    routings = model(Batch.from_sequences([[*prompt, *written]])).routings
    return [
        tuple(tuple(sorted(routing.experts[place].tolist())) for routing in routings)
        for place in range(len(prompt) - 1, len(prompt) + len(written) - 1)
    ]


@torch.inference_mode()
def test_experts_are_those_of_a_teacher_forced_pass_over_the_finished_text(path, model, tokenizer):
    _, answers = run(model, tokenizer, [values()] * 4, chunk=16)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer.insight) == len(answer.tokens) > 0
        expected = forced(model, tokenizer.encode(prompt, bos=True), answer.tokens)
        assert experts_of(answer) == expected
    met = {one for answer in answers for experts in experts_of(answer) for one in experts}
    assert len(met) > 2  # or nothing was shown


@torch.inference_mode()
def test_deep_and_grouped_models_too(path, tokenizer):
    config = small(
        tokenizer.vocab_size, num_hidden_layers=4, n_routed_experts=12, n_group=3, topk_group=2,
        num_experts_per_tok=3,
    )  # fmt: skip
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(9)).requires_grad_(False)
    _, answers = run(model, tokenizer, [values()] * 4)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        shapes = {tuple(map(len, one.experts)) for one in answer.insight}
        assert shapes == {(3, 3, 3)}  # M layers of K
        assert experts_of(answer) == forced(
            model, tokenizer.encode(prompt, bos=True), answer.tokens
        )


@torch.inference_mode()
def test_the_two_paths_tell_the_same(model, tokenizer, monkeypatch):
    if not stack.is_available():
        pytest.skip("no native kernels here")
    engine, native = run(model, tokenizer, [values(temperature=0)] * 4)
    assert isinstance(engine.runner, NativeRunner)
    monkeypatch.setattr(engine_module, "runs_natively", lambda device: False)
    engine, reference = run(model, tokenizer, [values(temperature=0)] * 4)
    assert isinstance(engine.runner, Runner)
    assert [a.insight for a in native] == [a.insight for a in reference]  # best first, both


@pytest.mark.parametrize("draft", [1, 3])
@torch.inference_mode()
def test_drafts_change_no_expert_and_their_counts_add_up(path, taught, tokenizer, draft):
    params = [values(max_tokens=25 + i, temperature=i / 4) for i in range(4)]
    _, plain = run(taught, tokenizer, params)
    engine, drafted = run(taught, tokenizer, params, draft=draft)
    stats = engine.stats()
    assert [a.tokens for a in drafted] == [a.tokens for a in plain]
    assert [experts_of(a) for a in drafted] == [experts_of(a) for a in plain]
    assert not any(one.is_draft or one.drafted for a in plain for one in a.insight)
    right = [sum(one.is_draft for one in a.insight) for a in drafted]
    assert right == [a.insight[-1].accepted for a in drafted]
    assert sum(right) == sum(stats.accepted) > 0
    assert sum(a.insight[-1].drafted for a in drafted) == sum(stats.drafted) > sum(right)
    for answer in drafted:
        counts = [(one.drafted, one.accepted) for one in answer.insight]
        assert counts == sorted(counts)


@given(
    company=st.lists(st.booleans(), min_size=1, max_size=5),
    chunk=st.sampled_from([5, 512]),
    seed=st.integers(0, 3),
)
@settings(max_examples=8)
@torch.inference_mode()
def test_company_changes_nothing_and_who_does_not_ask_is_told_nothing(
    model, tokenizer, company, chunk, seed
):
    alone = values(max_tokens=12, seed=seed)
    _, (expected,) = run(model, tokenizer, [alone], PROMPTS[:1], deterministic=True)
    beside = [values(max_tokens=9, seed=i, insight=asks) for i, asks in enumerate(company)]
    prompts = [PROMPTS[0], *(PROMPTS[i % 4] for i in range(len(company)))]
    some = {"deterministic": True, "chunk": chunk}
    _, (mine, *others) = run(model, tokenizer, [alone, *beside], prompts, **some)
    assert (mine.tokens, mine.insight) == (expected.tokens, expected.insight)
    for answer, asks in zip(others, company, strict=True):
        assert (answer.insight is not None) == asks


@torch.inference_mode()
def test_a_preempted_answer_tells_the_same(path, model, tokenizer):
    params = [values(max_tokens=70, ignore_eos=True)] * 3
    _, expected = run(model, tokenizer, params, PROMPTS[:3])
    page = 64 * model.config.latent_size * 4 * model.config.num_hidden_layers
    engine, squeezed = run(model, tokenizer, params, PROMPTS[:3], cache_bytes=4 * page)
    assert engine.stats().preemptions > 0
    assert [experts_of(a) for a in squeezed] == [experts_of(a) for a in expected]


@torch.inference_mode()
def test_nothing_is_captured_unless_somebody_asks(path, model, tokenizer, monkeypatch):
    asked: list[bool] = []
    engine = Engine(model, tokenizer)
    read = engine.runner.read

    def noting(*given, routed=False):
        asked.append(routed)
        passed = read(*given, routed=routed)
        assert (passed.experts is not None) == routed
        return passed

    monkeypatch.setattr(engine.runner, "read", noting)
    for i, insight in enumerate((False, True, False)):
        params = values(max_tokens=3, insight=insight, ignore_eos=True)
        engine.add(Request(id=i, tokens=[5, 6, 7], params=params))
        deltas = []
        while not engine.is_idle:
            deltas += engine.step()
        assert [delta.insight is not None for delta in deltas] == [insight] * 3
    assert asked == [False] * 3 + [True] * 3 + [False] * 3


@torch.inference_mode()
def test_a_model_without_experts_tells_of_none(path, tokenizer):
    config = small(tokenizer.vocab_size, first_k_dense_replace=2)
    dense = DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).requires_grad_(False)
    _, (answer,) = run(dense, tokenizer, [values(max_tokens=4)], PROMPTS[:1])
    assert {one.experts for one in answer.insight} == {()}


def test_answers_offline_carry_it(llm: LLM):
    told = llm.generate("the deep sea", max_tokens=6, temperature=0, insight=True)
    untold = llm.generate("the deep sea", max_tokens=6, temperature=0)
    assert told.tokens == untold.tokens
    assert len(told.insight) == len(told.tokens)
    assert untold.insight is None
