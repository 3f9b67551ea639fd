"""The bridge: every reader gets what the engine wrote for it, whatever happens to others."""

import asyncio
import threading
import time

import pytest

from abyssal.engine.llm import LLM
from abyssal.engine.request import Delta, Request, SamplingParams
from abyssal.errors import OverloadedError, RequestError
from abyssal.serve.bridge import Bridge, Stream
from abyssal.serve.faults import Fault

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


class Scripted:
    """An engine that writes one token per request and step, and fails where it is told to.

    For laws about failures and moments, which no healthy engine shows.
    """

    def __init__(self) -> None:
        self.live: dict[int, int] = {}  # request id -> tokens left
        self.num_steps = 0
        self.may_step = threading.Event()
        self.may_step.set()
        self.aborted: list[tuple[int, int]] = []  # (request id, steps before)
        self.bad_steps: set[int] = set()
        self.bad_ids: dict[int, Exception] = {}
        self.cannot_abort = False

    def add(self, request: Request) -> None:
        if request.id in self.bad_ids:
            raise self.bad_ids[request.id]
        self.live[request.id] = request.params.max_tokens

    def abort(self, request_id: int) -> None:
        if self.cannot_abort:
            raise RuntimeError("stuck")
        self.live.pop(request_id, None)
        self.aborted.append((request_id, self.num_steps))

    def step(self) -> list[Delta]:
        self.may_step.wait()
        self.num_steps += 1
        if self.num_steps in self.bad_steps:
            raise ValueError("a bug")
        deltas = []
        for request_id in list(self.live):
            self.live[request_id] -= 1
            is_last = self.live[request_id] == 0
            deltas.append(Delta(request_id, 7, "x", finish_reason="length" if is_last else None))
            if is_last:
                del self.live[request_id]
        time.sleep(0.001)
        return deltas

    def stats(self) -> int:
        return self.num_steps


def request(id: int, max_tokens: int = 5) -> Request:
    return Request(id=id, tokens=[0], params=SamplingParams(max_tokens=max_tokens))


class Running:
    """A bridge from start to stop."""

    def __init__(self, engine, max_in_flight: int = 100):
        self.bridge = Bridge(engine, max_in_flight=max_in_flight)

    async def __aenter__(self) -> Bridge:
        self.bridge.start()
        return self.bridge

    async def __aexit__(self, *_: object) -> None:
        await self.bridge.stop()


async def all_of(stream: Stream) -> list[Delta]:
    deltas = []
    while not stream.is_over():
        deltas += await stream.read(10)
    return deltas


def sent(bridge: Bridge, *requests: Request) -> Stream:
    stream = bridge.open()
    stream.send(requests)
    return stream


async def test_many_readers_at_once_each_read_what_the_engine_writes_offline(llm: LLM):
    prompts = [[0, *range(5, 8 + i)] for i in range(12)]
    expected = [completion.tokens for completion in llm.generate(prompts, GREEDY)]
    async with Running(llm.engine) as bridge:
        streams = [sent(bridge, *llm.prompts.requests([prompt], GREEDY)) for prompt in prompts]
        found = await asyncio.gather(*map(all_of, streams))
    assert [[delta.token for delta in deltas] for deltas in found] == expected


async def test_a_call_beyond_the_bound_is_refused_at_once_and_ends_give_places_back():
    engine = Scripted()
    engine.may_step.clear()
    async with Running(engine, max_in_flight=3) as bridge:
        first = sent(bridge, request(1), request(2))
        waiting = bridge.open()
        with pytest.raises(OverloadedError, match="3 answers are under way"):
            bridge.open()
        with pytest.raises(OverloadedError):
            waiting.send([request(3), request(4)])  # one more than there are places
        waiting.close()
        assert bridge.num_in_flight == 2
        engine.may_step.set()
        await all_of(first)
        assert bridge.num_in_flight == 0
        with pytest.raises(RequestError, match="asks for 4 answers"):  # that will never fit
            bridge.open().send([request(i) for i in range(4)])


async def test_a_closed_call_is_out_of_the_engine_before_its_next_step():
    engine = Scripted()
    async with Running(engine) as bridge:
        stays = sent(bridge, request(1, max_tokens=50))
        leaves = sent(bridge, request(2, 10_000), request(3, 10_000))
        await leaves.read(10)
        engine.may_step.clear()
        await asyncio.sleep(0.02)  # the thread is inside a step now
        before = engine.num_steps
        leaves.close()
        leaves.close()
        engine.may_step.set()
        assert len(await all_of(stays)) == 50
        assert sorted(engine.aborted) == [(2, before + 1), (3, before + 1)]
        assert await leaves.read(1) == []
        assert bridge.num_in_flight == 0


async def test_a_reader_who_waits_for_nothing_gets_nothing_after_its_timeout():
    engine = Scripted()
    engine.may_step.clear()
    async with Running(engine) as bridge:
        stream = sent(bridge, request(1))
        begin = time.monotonic()
        assert await stream.read(0.05) == []
        assert 0.04 < time.monotonic() - begin < 5
        assert not stream.is_over()
        engine.may_step.set()
        assert len(await all_of(stream)) == 5


async def test_a_failed_step_ends_the_calls_under_way_and_no_later_one():
    engine = Scripted()
    engine.bad_steps = {3}
    async with Running(engine) as bridge:
        failing = [sent(bridge, request(i)) for i in range(3)]
        for stream in failing:
            with pytest.raises(Fault) as problem:
                await all_of(stream)
            assert problem.value.status == 500
        assert engine.live == {}
        assert len(await all_of(sent(bridge, request(9)))) == 5
        assert bridge.num_in_flight == 0
        assert bridge.is_healthy


async def test_an_engine_that_cannot_forget_is_given_up():
    engine = Scripted()
    engine.bad_steps, engine.cannot_abort = {1}, True
    async with Running(engine) as bridge:
        with pytest.raises(Fault):
            await all_of(sent(bridge, request(1)))
        assert not bridge.is_healthy
        with pytest.raises(Fault, match="failed"):
            bridge.open()


@pytest.mark.parametrize(
    "problem", [RequestError("too long"), OverloadedError("full"), KeyError(1)]
)
async def test_a_request_the_engine_does_not_take_ends_its_own_call_alone(problem):
    engine = Scripted()
    engine.bad_ids = {3: problem}
    async with Running(engine) as bridge:
        other = sent(bridge, request(1))
        refused = sent(bridge, request(2, 10_000), request(3))  # all or none
        with pytest.raises(Fault if isinstance(problem, KeyError) else type(problem)):
            await all_of(refused)
        assert len(await all_of(other)) == 5
        assert bridge.num_in_flight == 0
        assert engine.live == {}


async def test_an_idle_thread_makes_no_steps_and_stats_wake_it():
    engine = Scripted()
    async with Running(engine) as bridge:
        await all_of(sent(bridge, request(1)))
        steps = engine.num_steps
        await asyncio.sleep(0.05)
        assert await bridge.stats() == steps == 5


async def test_the_news_of_a_step_reaches_the_loop_in_one_message(monkeypatch):
    engine = Scripted()
    engine.may_step.clear()
    loop = asyncio.get_running_loop()
    told, post = [], loop.call_soon_threadsafe

    def counting(callback, *values):
        told.append(callback)
        return post(callback, *values)

    async with Running(engine) as bridge:
        streams = [sent(bridge, request(i, 20)) for i in range(30)]
        monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
        engine.may_step.set()
        await asyncio.gather(*map(all_of, streams))
        monkeypatch.undo()
        assert len(told) == engine.num_steps


async def test_draining_takes_nobody_new_and_lets_the_others_finish():
    engine = Scripted()
    async with Running(engine) as bridge:
        stream = sent(bridge, request(1, 30))
        early = bridge.open()  # came in time, though its requests are not there yet
        draining = asyncio.create_task(bridge.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(Fault) as problem:
            bridge.open()
        assert problem.value.status == 503
        early.send([request(2)])
        assert len(await all_of(stream)) == 30
        assert len(await all_of(early)) == 5
        assert await draining
        assert not bridge.is_healthy


async def test_what_is_left_after_draining_ends_as_at_its_deadline():
    async with Running(Scripted()) as bridge:
        stream = sent(bridge, request(1, 10**6))
        assert not await bridge.drain(0.05)
        assert (await all_of(stream))[-1].finish_reason == "deadline"
        assert bridge.num_in_flight == 0


async def test_stopping_ends_every_answer_and_the_thread():
    threads = threading.active_count()
    bridge = Bridge(Scripted(), max_in_flight=10)
    bridge.start()
    stream = sent(bridge, request(1, 10**6))
    assert threading.active_count() == threads + 1
    await bridge.stop()
    # asyncio's own worker, which waited for the thread, stays.
    assert not any(thread.name == "engine" for thread in threading.enumerate())
    assert (await all_of(stream))[-1].finish_reason == "deadline"
    stream.close()
