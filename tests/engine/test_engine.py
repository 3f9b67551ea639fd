"""Requests share passes, pages and prefixes; none of them can tell."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.engine import Engine, EngineOptions
from abyssal.engine.request import Delta, Request, SamplingParams
from abyssal.engine.scoring import logprobs
from abyssal.errors import ConfigError, OverloadedError, RequestError
from abyssal.model.transformer import DeepSeekV3

VALUES = [
    {"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.9}, {"seed": 3, "top_k": 9},
    {"seed": 4, "frequency_penalty": 1.0}, {"temperature": 0, "repetition_penalty": 1.5},
    {"temperature": 0, "logprobs": 2}, {"seed": 5, "temperature": 0.5, "min_p": 0.1},
]  # fmt: skip


def requests(count: int) -> list[Request]:
    """Prompts of 1 to 200 tokens with values of all kinds; some begin alike."""
    made = []
    for i in range(count):
        length = (1, 7, 64, 65, 130, 200)[i % 6]
        tokens = [0, *((7 * (i // 12) + 3 * j) % 300 + 3 for j in range(length - 1))]
        params = SamplingParams(max_tokens=3 + 17 * i % 40, **VALUES[i % len(VALUES)])
        made.append(Request(id=i, tokens=tokens, params=params))
    return made


def run(engine: Engine, wanted: list[Request]) -> dict[int, list[Delta]]:
    for request in wanted:
        engine.add(request)
    written: dict[int, list[Delta]] = {request.id: [] for request in wanted}
    while not engine.is_idle:
        for delta in engine.step():
            written[delta.request_id].append(replace(delta, cached_tokens=0))
    assert engine.stats().pages_in_use == 0
    return written


@pytest.fixture(scope="module")
def alone(taught, tokenizer) -> dict[int, list[Delta]]:
    """What each request is told with nobody beside it, its prompt read whole, nothing cached."""
    options = EngineOptions(deterministic=True, prefix_cache=False, chunk=512)
    return {
        request.id: run(Engine(taught, tokenizer, options), [request])[request.id]
        for request in requests(24)
    }


@given(
    order=st.permutations(range(24)),
    count=st.integers(1, 24),
    max_running=st.integers(1, 64),
    chunk=st.integers(1, 512),
    budget=st.integers(0, 300),
    pages=st.one_of(st.none(), st.integers(5, 12)),
    prefix_cache=st.booleans(),
    draft=st.integers(0, 3),
)
def test_to_the_bit_a_deterministic_answer_is_the_same_in_any_company(
    taught, tokenizer, alone, order, count, max_running, chunk, budget, pages, prefix_cache, draft
):
    page_bytes = 64 * 20 * 4 * (2 + bool(draft))
    options = EngineOptions(
        deterministic=True,
        max_running=max_running,
        chunk=chunk,
        max_step_tokens=max_running + budget,
        cache_bytes=None if pages is None else pages * page_bytes,
        prefix_cache=prefix_cache,
        draft=draft,
    )
    some = [requests(24)[i] for i in order[:count]]
    engine = Engine(taught, tokenizer, options)
    told = run(engine, some)
    assert told == {request.id: alone[request.id] for request in some}
    if prefix_cache:  # once more, from the cache
        assert run(engine, some) == told


def test_sixty_four_at_once_write_what_each_writes_alone(taught, tokenizer, alone):
    many = [replace(requests(24)[i % 24], id=i) for i in range(64)]
    told = run(Engine(taught, tokenizer, EngineOptions(deterministic=True, draft=1)), many)
    for i, deltas in told.items():
        assert [d.token for d in deltas] == [d.token for d in alone[i % 24]]


@pytest.mark.parametrize("draft", [0, 1, 2])
def test_company_and_drafts_change_no_token_of_the_usual_mode_either(taught, tokenizer, draft):
    tokens = {}
    for request in requests(24):
        deltas = run(Engine(taught, tokenizer), [request])[request.id]
        tokens[request.id] = [delta.token for delta in deltas]
    told = run(Engine(taught, tokenizer, EngineOptions(draft=draft)), requests(24))
    assert {i: [delta.token for delta in deltas] for i, deltas in told.items()} == tokens


def test_drafts_save_passes_and_are_counted_by_position(taught, tokenizer):
    request = Request(
        id=0, tokens=[0, *tokenizer.encode("the deep sea")],
        params=SamplingParams(max_tokens=40, temperature=0, ignore_eos=True),
    )  # fmt: skip
    plain = Engine(taught, tokenizer)
    drafting = Engine(taught, tokenizer, EngineOptions(draft=2))
    assert run(plain, [request]) == run(drafting, [request])
    assert plain.stats().steps == 40
    stats = drafting.stats()
    assert stats.drafted[0] >= stats.drafted[1] > 0
    assert stats.drafted[0] >= stats.accepted[0] >= stats.accepted[1] > 0
    assert stats.steps == 40 - sum(stats.accepted)


def test_an_untrained_module_is_told_of_once(model, tokenizer, caplog):
    config = replace(model.config, num_nextn_predict_layers=1)
    random = DeepSeekV3(config).initialize(torch.Generator().manual_seed(1))
    engine = Engine(random.eval().requires_grad_(False), tokenizer, EngineOptions(draft=1))
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    for start in range(0, 60, 20):
        run(engine, [Request(id=i, tokens=[i], params=params) for i in range(start, start + 20)])
    warnings = [r for r in caplog.records if "draft=0" in r.getMessage()]
    stats = engine.stats()
    assert stats.accepted[0] / stats.drafted[0] < 0.05
    assert len(warnings) == 1


def test_answers_to_one_prompt_read_it_once(taught, tokenizer):
    engine = Engine(taught, tokenizer)
    prompt = [0, *range(3, 103)]
    params = SamplingParams(max_tokens=5, seed=1, n=4)
    told = run(engine, [
        Request(id=i, tokens=prompt, params=params, sample=i, group=0) for i in range(4)
    ])  # fmt: skip
    stats = engine.stats()
    assert stats.prompt_tokens == 4 * 101
    assert stats.prompt_tokens_cached == 3 * 100
    for i in range(4):
        apart = Request(id=9, tokens=prompt, params=params, sample=i)
        alone = run(Engine(taught, tokenizer), [apart])[9]
        assert [d.token for d in told[i]] == [d.token for d in alone]


def test_a_salt_hides_what_is_cached(taught, tokenizer):
    engine = Engine(taught, tokenizer)
    prompt, params = [0, *range(3, 150)], SamplingParams(max_tokens=1)
    for i, salt in enumerate((b"", b"a", b"a")):
        run(engine, [Request(id=i, tokens=prompt, params=params, salt=salt)])
    assert engine.stats().prompt_tokens_cached == 128


def test_prompt_logprobs_are_those_of_one_whole_pass(taught, tokenizer):
    prompt = [0, *((5 * i) % 300 + 3 for i in range(90))]
    params = SamplingParams(max_tokens=0, prompt_logprobs=2)
    for chunk in (512, 7):
        engine = Engine(taught, tokenizer, EngineOptions(chunk=chunk))
        (delta,) = run(engine, [Request(id=0, tokens=prompt, params=params)])[0]
        assert delta.token is None
        assert delta.finish_reason == "length"
        scored = [logprob for logprob, _ in delta.prompt_logprobs]
        assert scored == pytest.approx(logprobs(taught, [prompt])[0], abs=1e-4)
        assert all(len(top) == 2 for _, top in delta.prompt_logprobs)


def test_an_aborted_request_leaves_nothing_behind_wherever_it_is(taught, tokenizer):
    engine = Engine(taught, tokenizer, EngineOptions(max_running=2, chunk=16, draft=1))
    for request in requests(8):
        engine.add(request)
    for victim in (0, 1, 5, 7):  # writing, reading and waiting ones
        engine.step()
        engine.abort(victim)
    engine.abort(99)
    left = set()
    while not engine.is_idle:
        left |= {delta.request_id for delta in engine.step()}
    assert not left & {1, 5, 7}
    assert engine.stats().pages_in_use == 0


def test_a_deadline_ends_an_answer_with_what_there_is(taught, tokenizer):
    engine = Engine(taught, tokenizer)
    params = SamplingParams(max_tokens=200, ignore_eos=True, seed=1)
    engine.add(Request(id=0, tokens=[0], params=params, deadline_s=0.0))
    engine.add(Request(id=1, tokens=[0], params=params))
    first = engine.step()
    assert (first[0].request_id, first[0].finish_reason, first[0].token) == (0, "deadline", None)
    assert first[1].request_id == 1


class Broken:
    """A grammar that breaks after some tokens."""

    def __init__(self, after: int):
        self.left = after

    def fork(self) -> "Broken":
        return Broken(self.left)

    def allowed(self):
        if self.left <= 0:
            raise RuntimeError("broken")
        return None

    def accept(self, token: int) -> None:
        self.left -= 1

    def rollback(self, count: int) -> None:
        self.left += count


@pytest.mark.parametrize("draft", [0, 2])
def test_a_request_that_fails_ends_alone_and_keeps_what_it_wrote(taught, tokenizer, draft):
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    prompt = [0, *tokenizer.encode("the deep sea")]
    good = [Request(id=i, tokens=[*prompt, 3 + i], params=params) for i in (0, 2)]
    bad = Request(id=1, tokens=prompt, params=params, matcher=Broken(4))
    engine = Engine(taught, tokenizer, EngineOptions(draft=draft))
    told = run(engine, [good[0], bad, good[1]])
    assert told[1][-1].finish_reason == "error"
    assert "RuntimeError" in told[1][-1].error
    assert len([d for d in told[1] if d.token is not None]) == 4
    for request in good:
        assert told[request.id] == run(Engine(taught, tokenizer), [request])[request.id]


def test_a_pass_that_fails_ends_its_requests_and_not_the_engine(taught, tokenizer, monkeypatch):
    engine = Engine(taught, tokenizer)
    engine.add(requests(1)[0])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "read", fail)
        (delta,) = engine.step()
    assert delta.finish_reason == "error"
    assert engine.is_idle
    assert run(engine, requests(3)) == run(Engine(taught, tokenizer), requests(3))


def test_impossible_options_and_requests_are_refused(model, taught, tokenizer):
    with pytest.raises(ConfigError, match="no MTP module"):
        Engine(model, tokenizer, EngineOptions(draft=1))
    with pytest.raises(ConfigError, match="max_step_tokens=8"):
        EngineOptions(max_step_tokens=8)
    with pytest.raises(ConfigError, match="cache_bytes=100"):
        Engine(model, tokenizer, EngineOptions(cache_bytes=100))
    with pytest.raises(ConfigError, match="draft=-1"):
        EngineOptions(draft=-1)
    engine = Engine(taught, tokenizer, EngineOptions(cache_bytes=3 * 64 * 20 * 4 * 2))
    with pytest.raises(RequestError, match="more memory"):
        engine.add(Request(id=0, tokens=[0] * 200, params=SamplingParams()))
    engine = Engine(taught, tokenizer, EngineOptions(max_waiting=2))
    for request in requests(2):
        engine.add(request)
    with pytest.raises(OverloadedError, match="waiting"):
        engine.add(requests(3)[2])
