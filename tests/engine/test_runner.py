"""Requests share passes and memory; none of them can tell."""

import pytest

from abyssal.engine import runner as module
from abyssal.engine.request import Request, SamplingParams
from abyssal.engine.runner import Runner


def requests(count: int) -> list[Request]:
    """Prompts of 1 to 40 tokens with values of all kinds."""
    values = [
        {"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.9}, {"seed": 3, "top_k": 9},
        {"seed": 4, "frequency_penalty": 1.0}, {"temperature": 0, "repetition_penalty": 1.5},
    ]  # fmt: skip
    return [
        Request(
            id=i,
            tokens=[0, *((7 * i + 3 * j) % 300 + 3 for j in range(7 * i % 40))],
            params=SamplingParams(max_tokens=5 + 11 * i % 30, **values[i % len(values)]),
        )
        for i in range(count)
    ]


def run(runner: Runner, wanted: list[Request]) -> dict[int, list[int]]:
    for request in wanted:
        runner.add(request)
    written: dict[int, list[int]] = {request.id: [] for request in wanted}
    while not runner.is_idle:
        for delta in runner.step():
            written[delta.request_id].append(delta.token)
    return written


@pytest.fixture(scope="module")
def alone(model, tokenizer) -> dict[int, list[int]]:
    """What each request writes with nobody beside it."""
    written: dict[int, list[int]] = {}
    for request in requests(18):
        written |= run(Runner(model, tokenizer), [request])
    return written


def test_a_request_writes_the_same_in_company(model, tokenizer, alone):
    assert run(Runner(model, tokenizer), requests(18)) == alone
    assert run(Runner(model, tokenizer), requests(18)[::-1]) == alone


def test_prompts_read_in_pieces_and_places_that_change_hands_change_nothing(
    model, tokenizer, alone, monkeypatch
):
    monkeypatch.setattr(module, "MAX_REQUESTS", 5)
    monkeypatch.setattr(module, "MAX_BATCH_TOKENS", 13)
    assert run(Runner(model, tokenizer), requests(18)) == alone


def test_memory_bounds_how_many_are_alive_but_always_lets_one_run(model, tokenizer, alone):
    per_token = 2 * 20 * 4  # layers, C + R, bytes of float32
    for positions, most in ((1, 1), (150, 10)):
        runner = Runner(model, tokenizer, cache_bytes=positions * per_token)
        for request in requests(18):
            runner.add(request)
        written: dict[int, list[int]] = {i: [] for i in range(18)}
        most_alive = 0
        while not runner.is_idle:
            for delta in runner.step():
                written[delta.request_id].append(delta.token)
            most_alive = max(most_alive, len(runner._live))
        assert written == alone
        assert 1 <= most_alive <= most


def test_a_pass_is_never_larger_than_its_budget_and_leaves_nobody_out(
    model, tokenizer, monkeypatch
):
    monkeypatch.setattr(module, "MAX_REQUESTS", 6)
    monkeypatch.setattr(module, "MAX_BATCH_TOKENS", 16)
    runner = Runner(model, tokenizer)
    for request in requests(18):
        runner.add(request)
    runner._admit()
    while runner._live:
        sizes = [len(piece) for piece in runner._pieces()]
        assert min(sizes) >= 1
        assert sum(sizes) <= 16
        runner.step()
        runner._admit()


def test_a_cancelled_request_is_gone_wherever_it_was_and_the_others_go_on(
    model, tokenizer, alone, monkeypatch
):
    monkeypatch.setattr(module, "MAX_REQUESTS", 4)
    runner = Runner(model, tokenizer)
    for request in requests(8):
        runner.add(request)
    written: dict[int, list[int]] = {i: [] for i in range(8)}
    for step in range(1000):
        if runner.is_idle:
            break
        if step == 3:
            for gone in (0, 6, 99):  # alive, waiting, unknown
                runner.cancel(gone)
        for delta in runner.step():
            written[delta.request_id].append(delta.token)
    assert written[6] == []
    assert written[0] == alone[0][:3]
    assert all(written[i] == alone[i] for i in (1, 2, 3, 4, 5, 7))
