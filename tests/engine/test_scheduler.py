"""The schedule, held to what a cache needs: each request reads its own tokens, whoever is beside.

The model here is a chain of hashes: the latent of a token stands for all tokens up to it, and the
next token follows from the last latent. So a page with the wrong content shows at once.
"""

import random
import sys
from collections.abc import Callable

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from abyssal.engine.live import Live
from abyssal.engine.pages import PAGE, PagePool, pages_for
from abyssal.engine.request import Request, SamplingParams
from abyssal.engine.scheduler import Entry, Scheduler, Step
from abyssal.errors import OverloadedError, RequestError

CONTEXT = 400
END = 0  # the token that ends an answer; one in 200 is it
STEMS = [[random.Random(stem).randrange(1, 50) for _ in range(CONTEXT)] for stem in range(2)]


def latents_of(tokens: list[int], salt: bytes) -> list[int]:
    """What a page must hold for each of tokens."""
    latents, latent = [], hash((1, *salt))
    for token in tokens:
        latent = hash((latent, token))
        latents.append(latent)
    return latents


def next_token(latent: int, sample: int) -> int:
    """What the model says after the token with this latent."""
    return hash((latent, sample)) % 200


def answer_alone(request: Request, limit: int) -> list[int]:
    """The answer of a request that nobody disturbs, without any cache."""
    answer, latent = [], latents_of(request.tokens, request.salt)[-1]
    while len(request.tokens) + len(answer) < limit and END not in answer[-1:]:
        answer.append(next_token(latent, request.sample))
        latent = hash((latent, answer[-1]))
    return answer


class Simulation:
    """An engine around a scheduler, which checks all that it is told to do."""

    def __init__(self, num_pages=100, seed=0, most_drafts=0, end=END, **options):
        self.pool = PagePool(num_pages)
        self.scheduler = Scheduler(self.pool, context=CONTEXT, **options)
        self.random = random.Random(seed)
        self.most_drafts, self.end = most_drafts, end
        self.latents: dict[int, list[int]] = {}  # by page
        self.order: list[Live] = []  # in which requests came
        self.finished: dict[int, list[int]] = {}
        self.gone: set[int] = set()  # aborted or expired
        self.computed = 0  # tokens, in all passes
        self.next_id = 0

    def add(self, tokens: list[int], max_tokens: int = 3, n: int = 1, **fields) -> list[Live]:
        """Queue n requests for answers to one prompt."""
        params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=fields.pop("scored", None))
        first, lives = self.next_id, []
        self.next_id += n
        for sample in range(n):
            request = Request(
                id=first + sample,
                tokens=tokens,
                params=params,
                sample=sample,
                group=first if n > 1 else None,
                **fields,
            )
            lives.append(self.scheduler.add(request))
            self.order.append(lives[-1])
        return lives

    def step(self) -> Step | None:
        """Plan, check the plan, run it, and take what it says."""
        running = list(self.scheduler.running)
        writing = {a: a.pages for a in running if a.num_computed == len(a.tokens) - 1}
        were_new = [live for live in self.order if live.is_new]
        step = self.scheduler.plan()
        if step is None:
            return None
        self._check_budgets(step, writing)
        self._check_admissions(were_new)
        self._copy(step.copies)
        for entry in step.entries:
            self._write(entry)
        for entry in step.entries:
            self._take(entry, self._read(entry))
        self.check_accounts()
        return step

    def drain(self) -> None:
        """Run until nobody is left, and look for what they left behind."""
        for _ in range(20_000):
            if self.step() is None:
                break
        assert self.scheduler.is_idle, "it never came to an end"
        self.check_baseline()

    def check_baseline(self) -> None:
        scheduler = self.scheduler
        assert scheduler.plan() is None
        assert self.pool.in_use == scheduler.num_running == scheduler.num_waiting == 0
        assert self.pool.num_free == self.pool.capacity
        assert not scheduler._queue.num_owners
        assert not scheduler._prefixes._leaders

    def check_answers(self) -> None:
        """Whoever was not sent away was answered as if alone."""
        for live in self.order:
            answer = self.finished.get(live.request.id)
            assert answer is not None or live.request.id in self.gone
            assert answer is None or answer == answer_alone(live.request, live.limit)

    def check_accounts(self) -> None:
        """Each page is held as often as it is used, and only certain tokens can be found."""
        uses: dict[int, int] = {}
        for live in self.scheduler.running:
            assert live.pages
            for block, page in enumerate(live.pages):
                uses[page] = uses.get(page, 0) + 1
                certain = (block + 1) * PAGE <= live.num_computed
                assert certain or not self.pool.is_registered(page)
        assert uses == {p: self.pool.holders(p) for p in uses}
        assert len(uses) == self.pool.in_use

    def _check_budgets(self, step: Step, writing: dict[Live, list[int]]) -> None:
        scheduler, running = self.scheduler, list(self.scheduler.running)
        assert running
        assert running[0] in [entry.live for entry in step.entries], "the eldest goes on"
        assert len(running) <= scheduler.max_running
        assert sum(entry.count for entry in step.entries) <= scheduler.max_step_tokens
        # One preempted has other pages, even if it is admitted again at once.
        still = [live for live, pages in writing.items() if live.pages is pages]
        assert [entry.live for entry in step.entries[: len(still)]] == still
        assert len({entry.live for entry in step.entries}) == len(step.entries)
        for entry in step.entries:
            live, size = entry.live, len(entry.live.tokens) + len(entry.live.drafts)
            assert live in running
            assert entry.start == live.num_computed
            assert entry.count > 0
            assert entry.is_last == (entry.start + entry.count == size)
            assert live in still or (entry.count <= scheduler.chunk and not live.drafts)
            assert not live.drafts or size < live.limit

    def _check_admissions(self, were_new: list[Live]) -> None:
        """Within an owner, nobody is admitted before one who came earlier."""
        waiting = set()
        for live in were_new:
            if live.request.id in self.gone:
                continue
            if live.is_new:
                waiting.add(live.request.owner)
            else:
                assert live.request.owner not in waiting

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        written = set()
        for source, target in copies:
            assert source not in written
            assert target not in written
            assert self.pool.holders(target) == 1
            written.add(target)
            self.latents[target] = list(self.latents[source])

    def _write(self, entry: Entry) -> None:
        live = entry.live
        latents = latents_of(live.tokens + live.drafts, live.request.salt)
        for position in range(entry.start, entry.start + entry.count):
            page = live.pages[position // PAGE]
            assert page != 0
            assert self.pool.holders(page) == 1
            assert not self.pool.is_registered(page)
            self.latents.setdefault(page, [0] * PAGE)[position % PAGE] = latents[position]
        self.computed += entry.count

    def _read(self, entry: Entry) -> list[int]:
        """The latents of all a request has read by now: its own, wherever they were computed."""
        live, end = entry.live, entry.start + entry.count
        found = [latent for page in live.pages for latent in self.latents.get(page, [0] * PAGE)]
        assert found[:end] == latents_of(live.tokens + live.drafts, live.request.salt)[:end]
        return found[:end]

    def _take(self, entry: Entry, latents: list[int]) -> None:
        """Accept what the model says, as far as the drafts guessed it."""
        live, scheduler = entry.live, self.scheduler
        drafts, accepted = list(live.drafts), []
        if entry.is_last and live.request.params.max_tokens:
            for latent, guess in zip(latents[-1 - len(drafts) :], [*drafts, -1], strict=True):
                accepted.append(next_token(latent, live.request.sample))
                if accepted[-1] == self.end or accepted[-1] != guess:
                    break
        scheduler.commit(entry, accepted)
        assert not live.drafts
        if self.end in accepted or (entry.is_last and len(live.tokens) >= live.limit):
            scheduler.finish(live)
            self.finished[live.request.id] = live.written
        elif accepted:
            live.drafts = self._guess(live)

    def _guess(self, live: Live) -> list[int]:
        tokens = list(live.tokens)
        for _ in range(self.random.randint(0, self.most_drafts)):
            right = next_token(latents_of(tokens, live.request.salt)[-1], live.request.sample)
            tokens.append(right if self.random.random() < 0.7 else self.random.randrange(200))
        return tokens[len(live.tokens) :]


LENGTHS = [1, 2, 63, 64, 65, 66, 100, 127, 128, 129, 130, 192, 200, 257]
PROMPTS = st.builds(
    lambda stem, length, tail: STEMS[stem][:length] + [tail] * (tail > 0),
    st.integers(0, 1),
    st.sampled_from(LENGTHS),
    st.integers(0, 2),
)
ADD = st.fixed_dictionaries(
    {
        "tokens": PROMPTS,
        "max_tokens": st.sampled_from([1, 2, 5, 40, 64, 70, 130]),
        "n": st.sampled_from([1, 1, 1, 2, 5]),
        "owner": st.sampled_from("ab"),
        "salt": st.sampled_from([b"", b"", b"key"]),
        "deadline_s": st.sampled_from([None, None, 1.0, 2.5, 4.0]),
        "scored": st.sampled_from([None, None, None, 0]),
    }
)
ACTION = st.one_of(
    st.tuples(st.just("add"), ADD),
    st.tuples(st.just("step"), st.integers(1, 40)),
    st.tuples(st.just("step"), st.integers(1, 40)),
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("expire"), st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0])),
)
OPTIONS = st.builds(
    lambda running, spare, **rest: {
        "max_running": running,
        "max_step_tokens": running + spare,
        **rest,
    },
    st.integers(1, 6),
    st.sampled_from([0, 1, 30, 200]),
    chunk=st.sampled_from([1, 10, 64, 100, 512]),
    num_pages=st.integers(2, 14),
    prefix_cache=st.booleans(),
    most_drafts=st.integers(0, 3),
    seed=st.integers(0, 9),
)


def perform(simulation: Simulation, action: str, value) -> None:
    """Do one action, and check what it says of those that it ended."""
    scheduler, there = simulation.scheduler, dict(simulation.scheduler._lives)
    if action == "add":
        length = len(value["tokens"])
        limit = min(length + value["max_tokens"], CONTEXT)
        if pages_for(max(length, limit - 1)) > simulation.pool.capacity:
            with pytest.raises(RequestError, match="need"):
                simulation.add(**value)
        else:
            simulation.add(**value)
    elif action == "step":
        for _ in range(value):
            simulation.step()
    elif action == "abort":
        assert scheduler.abort(value) is there.get(value)
        simulation.gone.add(value)
    else:
        expired = {live.request.id for live in scheduler.expire(value)}
        assert expired == {
            i for i, live in there.items() if (live.request.deadline_s or 9) <= value
        }
        simulation.gone |= expired


@settings(max_examples=300)
@given(OPTIONS, st.lists(ACTION, max_size=25))
def test_each_reads_its_own_tokens_and_answers_as_if_alone_whatever_happens(options, actions):
    simulation = Simulation(**options)
    for action, value in actions:
        perform(simulation, action, value)
        simulation.check_accounts()
    simulation.drain()
    simulation.check_answers()


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_a_crowd_in_too_small_a_cache_is_preempted_and_answered_all_the_same(seed):
    dice = random.Random(seed)
    simulation = Simulation(
        num_pages=dice.randint(8, 14),
        max_running=dice.randint(3, 8),
        max_step_tokens=dice.choice([8, 40, 300]),
        chunk=dice.choice([5, 50, 200]),
        prefix_cache=dice.random() < 0.7,
        most_drafts=dice.choice([0, 0, 1, 3]),
        seed=seed,
    )
    for _ in range(12):
        simulation.add(
            tokens=[*STEMS[dice.randrange(2)][: dice.choice(LENGTHS[:-1])], dice.randrange(3)],
            max_tokens=dice.choice([3, 70, 150, 200]),
            n=dice.choice([1, 1, 3]),
            owner=dice.choice("ab"),
        )
        for _ in range(dice.choice([0, 1, 20])):
            simulation.step()
        if dice.random() < 0.2:
            perform(simulation, "abort", dice.randrange(simulation.next_id))
    simulation.drain()
    event(f"preempted: {simulation.scheduler.num_preemptions > 0}")
    simulation.check_answers()


def until(simulation: Simulation, condition: Callable[[], bool]) -> None:
    """Run until the condition holds; it must come to hold."""
    while not condition():
        assert simulation.step() is not None, "all is over and it did not come true"


def admitted(simulation: Simulation) -> list[int]:
    """Ids in the order of their first pass."""
    order: list[int] = []
    while (step := simulation.step()) is not None:
        order += [e.live.request.id for e in step.entries if e.live.request.id not in order]
    return order


def test_owners_take_turns_and_each_is_served_in_order():
    simulation = Simulation(max_running=1)
    for owner in "aaaabbc":
        simulation.add([5], owner=owner)
    assert admitted(simulation) == [0, 4, 6, 1, 5, 2, 3]


def test_an_owner_with_a_thousand_requests_delays_another_by_one():
    simulation = Simulation(max_running=2)
    for _ in range(1000):
        simulation.add([5], max_tokens=50, owner="many")
    simulation.step()
    (late,) = simulation.add([6], owner="one")
    until(simulation, lambda: not late.is_new)
    assert sum(not live.is_new for live in simulation.order) <= 2 + 1 + 1


def test_prompts_are_read_in_chunks_while_answers_go_on():
    simulation = Simulation(chunk=30, max_step_tokens=50, max_running=3)
    (writing,) = simulation.add([5, 6], max_tokens=300)
    simulation.step()
    (first,) = simulation.add(STEMS[0][:70])
    (second,) = simulation.add(STEMS[1][:70])
    counts = []
    while second.num_computed < 70:
        step = simulation.step()
        counts.append([(e.live, e.count, e.is_last) for e in step.entries[1:]])
        assert step.entries[0].live is writing
    assert counts[0] == [(first, 30, False), (second, 19, False)]
    assert counts[1] == [(first, 30, False), (second, 19, False)]
    assert counts[2] == [(first, 10, True), (second, 30, False)]
    assert counts[3] == [(first, 1, True), (second, 2, True)]


def drafted(num_pages: int = 100, others: int = 0, max_tokens: int = 20, **options):
    """A simulation in which the first of 1 + others answers has 61 tokens and three drafts."""
    simulation = Simulation(num_pages, **options)
    (live,) = simulation.add(STEMS[0][:60], max_tokens=max_tokens)
    for other in range(others):
        simulation.add([other], max_tokens=20)
    simulation.step()
    live.drafts = [1, 2, 3]
    return simulation, live


def test_drafts_are_read_with_the_token_before_them():
    simulation, live = drafted()
    (entry,) = simulation.scheduler.plan().entries
    assert (entry.start, entry.count, entry.is_last) == (60, 4, True)
    simulation.scheduler.commit(entry, [1, 2, 9])
    assert live.written[1:] == [1, 2, 9]
    assert live.num_computed == 63


def test_drafts_are_cut_to_the_limit_of_the_answer():
    simulation, live = drafted(max_tokens=3)
    assert simulation.scheduler.plan().entries[0].count == 2
    assert live.drafts == [1]


def test_drafts_are_cut_to_the_budget_left_by_all_answers():
    simulation, live = drafted(others=2, max_running=3, max_step_tokens=62)
    simulation.scheduler.max_step_tokens = 5
    assert [entry.count for entry in simulation.scheduler.plan().entries] == [3, 1, 1]
    assert live.drafts == [1, 2]


def test_nobody_is_preempted_for_a_draft():
    simulation, live = drafted(num_pages=3, others=1)
    simulation.step()
    live.drafts = [1, 2, 3]
    assert [entry.count for entry in simulation.scheduler.plan().entries] == [3, 1]
    assert live.drafts == [1, 2]


def test_the_one_admitted_last_is_preempted_and_comes_back_first():
    simulation = Simulation(num_pages=4, max_running=3, end=None)
    lives = [simulation.add(STEMS[1][:n], max_tokens=100)[0] for n in (40, 2, 1)]
    simulation.step()
    simulation.add([9], owner="other")
    until(simulation, lambda: simulation.scheduler.num_preemptions > 0)
    assert list(simulation.scheduler.running) == lives[:2]
    assert not lives[2].pages
    assert lives[2].num_computed == 0
    assert len(lives[2].written) > 20
    simulation.add([9])
    order = admitted(simulation)
    assert order.index(2) < order.index(4)


def test_a_prompt_preempted_by_an_elder_prompt_is_not_read_on():
    simulation = Simulation(num_pages=7, chunk=10, prefix_cache=False, end=None)
    for length in (60, 150, 128):
        simulation.add(STEMS[0][:length], max_tokens=40)
    until(simulation, lambda: simulation.scheduler.num_preemptions > 0)
    assert [len(live.pages) for live in simulation.order] == [2, 3, 0]
    simulation.drain()


def test_what_a_preempted_one_had_computed_is_found_again_and_not_counted_as_cached():
    simulation = Simulation(num_pages=6, max_running=2, end=None)
    simulation.add(STEMS[0][:120], max_tokens=100)
    (second,) = simulation.add(STEMS[1][:120], max_tokens=80)
    until(simulation, lambda: simulation.scheduler.num_preemptions > 0)
    assert len(second.written) > 5
    until(simulation, lambda: bool(second.pages))
    assert second.num_computed > PAGE
    assert simulation.computed < 240 + 100 + 80 + 100
    assert second.num_cached == simulation.scheduler.prompt_tokens_cached == 0
    assert simulation.scheduler.prompt_tokens_seen == 240
    simulation.drain()


def test_a_prompt_waits_until_all_of_it_finds_room():
    simulation = Simulation(num_pages=5, chunk=64)
    (first,) = simulation.add(STEMS[0][:100], max_tokens=10)
    (second,) = simulation.add(STEMS[1][:190], max_tokens=2)
    until(simulation, lambda: len(first.written) == 9)
    assert second.is_new
    simulation.drain()
    assert simulation.scheduler.num_preemptions == 0


def test_what_no_cache_of_this_size_could_hold_is_refused():
    simulation = Simulation(num_pages=4)
    simulation.add(STEMS[0][:100], max_tokens=93)
    with pytest.raises(RequestError, match="answer of up to 94 tokens need 4 pages"):
        simulation.add(STEMS[0][:100], max_tokens=94)
    with pytest.raises(RequestError, match="the cache has 3"):
        simulation.add(STEMS[0][:200], max_tokens=1)
    with pytest.raises(RequestError, match="the cache has 3"):
        simulation.add(STEMS[0][:193], max_tokens=0, scored=0)
    simulation.drain()


def test_prompts_without_a_token_or_without_room_for_one_are_refused():
    simulation = Simulation()
    for prompt in ([], [5] * CONTEXT):
        with pytest.raises(RequestError, match=f"of {len(prompt)} tokens, expected 1 to 399"):
            simulation.add(prompt)
    simulation.add([5] * CONTEXT, max_tokens=0, scored=0)
    (live,) = simulation.add([5] * (CONTEXT - 1), max_tokens=100)
    assert live.limit == CONTEXT
    simulation.drain()


def test_a_full_queue_refuses_at_once_and_takes_more_when_somebody_left():
    simulation = Simulation(max_running=1, max_waiting=2)
    simulation.add([5], n=2)
    with pytest.raises(OverloadedError, match="2 requests are waiting, expected fewer than 2"):
        simulation.add([5])
    simulation.step()
    simulation.add([5])
    simulation.scheduler.abort(1)
    simulation.gone.add(1)
    simulation.add([5])
    with pytest.raises(OverloadedError):
        simulation.add([5])
    simulation.drain()


def test_deadlines_end_who_waits_and_who_runs():
    simulation = Simulation(max_running=1)
    for deadline_s in (2.0, 1.0, None, 3.0):
        simulation.add([5], deadline_s=deadline_s)
    simulation.step()
    scheduler = simulation.scheduler
    ended = [[live.request.id for live in scheduler.expire(now_s)] for now_s in (0.9, 1.0, 2.5)]
    assert ended == [[], [1], [0]]
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 2)
    assert scheduler.abort(0) is None
    assert simulation.pool.in_use == 0


@pytest.mark.parametrize("drafts", [0, 1])
def test_planning_and_committing_32_answers_makes_few_calls_for_each(drafts):
    """What a step costs, without a clock: benchmarks/scheduler.py has the microseconds."""
    scheduler = Scheduler(PagePool(1000), context=1000)
    for i in range(32):
        params = SamplingParams(max_tokens=1000)
        scheduler.add(Request(id=i, tokens=[i] * (40 + 2 * i), params=params))
    calls: list[int] = []

    def count(frame: object, event: str, argument: object) -> None:
        calls[-1] += event in ("call", "c_call")

    for _ in range(130):
        for live in scheduler.running:
            live.drafts = [3] * drafts
        calls.append(0)
        sys.setprofile(count)
        step = scheduler.plan()
        for entry in step.entries:
            scheduler.commit(entry, [3] * (1 + drafts))
        sys.setprofile(None)
    assert [entry.count for entry in step.entries] == [1 + drafts] * 32
    assert sorted(calls)[len(calls) // 2] < 32 * (6 + 2 * drafts)
    assert max(calls[2:]) < 512  # some of the 32 fill a page; before, all are admitted and read
