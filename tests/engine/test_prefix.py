"""What is computed once is found again by those who may, and shared pages stay as they are."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abyssal.engine.live import Live
from abyssal.engine.pages import PAGE, PagePool, pages_for
from abyssal.engine.request import Request, SamplingParams
from abyssal.engine.scheduler import Scheduler, Step

ANSWER = 7  # what the model always says


def schedule(num_pages: int = 50, **options) -> Scheduler:
    return Scheduler(PagePool(num_pages), context=2000, **options)


def add(scheduler: Scheduler, number: int, tokens: list[int], **fields) -> Live:
    """Queue request number; max_tokens and prompt_logprobs are its sampling values."""
    names = ("max_tokens", "prompt_logprobs")
    params = SamplingParams(**{"max_tokens": 1} | {n: fields.pop(n) for n in names if n in fields})
    return scheduler.add(Request(id=number, tokens=tokens, params=params, **fields))


def step(scheduler: Scheduler) -> Step | None:
    planned = scheduler.plan()
    for entry in planned.entries if planned else ():
        scheduler.commit(entry, [ANSWER] if entry.is_last else [])
        if len(entry.live.tokens) >= entry.live.limit:
            scheduler.finish(entry.live)
    return planned


def run(scheduler: Scheduler) -> int:
    """Run until all are answered; how many tokens were computed."""
    computed = 0
    while (planned := step(scheduler)) is not None:
        computed += sum(entry.count for entry in planned.entries)
    assert scheduler.pool.in_use == 0
    return computed


@given(st.integers(1, 300), st.integers(0, 300))
@example(PAGE, PAGE)
@example(2 * PAGE, 2 * PAGE)
def test_a_prompt_costs_only_what_follows_the_whole_pages_it_has_in_common(length, common):
    scheduler = schedule()
    prompt = list(range(1000, 1000 + length))
    add(scheduler, 0, prompt)
    assert run(scheduler) == length
    second = add(scheduler, 1, [*prompt[:common], *range(length - common)])
    computed = run(scheduler)
    num_prompt = second.num_prompt
    # A prompt found as a whole still computes its last token.
    assert second.num_cached == min(min(common, length) // PAGE * PAGE, num_prompt - 1)
    assert computed == num_prompt - second.num_cached
    assert scheduler.prompt_tokens_seen == length + num_prompt
    assert scheduler.prompt_tokens_cached == second.num_cached


def test_a_prompt_found_as_a_whole_writes_its_last_token_to_a_copy():
    scheduler = schedule()
    add(scheduler, 0, list(range(2 * PAGE)))
    step(scheduler)
    second = add(scheduler, 1, list(range(2 * PAGE)), max_tokens=2)
    planned = scheduler.plan()
    ((source, target),) = planned.copies
    assert scheduler.pool.is_registered(source)
    assert not scheduler.pool.is_registered(target)
    assert second.pages[1] == target
    assert (planned.entries[0].start, planned.entries[0].count) == (2 * PAGE - 1, 1)


def test_without_room_for_a_copy_the_last_page_is_computed_again():
    scheduler = schedule(num_pages=3)
    add(scheduler, 0, list(range(2 * PAGE)))
    run(scheduler)
    second = add(scheduler, 1, list(range(2 * PAGE)))
    assert run(scheduler) == PAGE
    assert second.num_cached == PAGE


def test_pages_due_to_a_prompt_under_way_are_left_to_it():
    scheduler = schedule(num_pages=6, chunk=PAGE)
    first = add(scheduler, 0, list(range(2 * PAGE)), max_tokens=20)
    while len(first.pages) < 3:
        step(scheduler)
    add(scheduler, 1, list(range(1000, 1000 + 2 * PAGE)))
    third = add(scheduler, 2, list(range(2 * PAGE)))
    step(scheduler)
    # One page is free, but the second prompt has yet to read its other half.
    assert scheduler.pool.num_free == 1
    assert third.is_new
    run(scheduler)
    assert scheduler.num_preemptions == 0


def test_a_reply_to_an_answer_finds_prompt_and_answer():
    scheduler = schedule()
    add(scheduler, 0, list(range(100)), max_tokens=100)
    run(scheduler)
    # The last token of the answer was never computed, the one before is number 199 of 3 * 64 = 192.
    reply = add(scheduler, 1, [*range(100), *[ANSWER] * 100, 1, 2, 3])
    assert run(scheduler) == 203 - 192
    assert reply.num_cached == 192


def test_wrong_drafts_are_never_found():
    scheduler = schedule()
    first = add(scheduler, 0, list(range(60)), max_tokens=20)
    step(scheduler)
    first.drafts = [1, 2, 3, 4, 5, 6]
    (entry,) = scheduler.plan().entries
    assert entry.count == 7
    scheduler.commit(entry, [ANSWER])
    assert first.num_computed == 61
    run(scheduler)
    guess = add(scheduler, 1, [*range(60), ANSWER, 1, 2, 3, 9])
    truth = add(scheduler, 2, [*range(60), *[ANSWER] * 5])
    run(scheduler)
    assert (guess.num_cached, truth.num_cached) == (0, 64)


@pytest.mark.parametrize(("salt", "cached"), [(b"one", 64), (b"another", 0), (b"", 0)])
def test_only_the_same_salt_shares(salt, cached):
    scheduler = schedule()
    add(scheduler, 0, list(range(100)), salt=b"one")
    run(scheduler)
    second = add(scheduler, 1, list(range(100)), salt=salt)
    run(scheduler)
    assert second.num_cached == cached


def test_a_prompt_that_is_scored_is_computed_as_a_whole_but_can_be_found():
    scheduler = schedule()
    add(scheduler, 0, list(range(100)), prompt_logprobs=0, max_tokens=0)
    assert run(scheduler) == 100
    add(scheduler, 1, list(range(100)), prompt_logprobs=0, max_tokens=0)
    assert run(scheduler) == 100
    add(scheduler, 2, list(range(100)))
    assert run(scheduler) == 100 - 64


def test_without_prefix_cache_nothing_is_found_but_answers_of_a_group_share():
    scheduler = schedule(prefix_cache=False)
    for number in range(2):
        live = add(scheduler, number, list(range(100)))
        assert run(scheduler) == 100
    assert scheduler.pool.find(live.digest(0)) is None
    add(scheduler, 2, list(range(100)), max_tokens=2)
    add(scheduler, 3, list(range(100)), max_tokens=2, group=2)
    assert run(scheduler) == 101 + 2


@pytest.mark.parametrize("length", [1, 50, 64, 65, 100, 128])
def test_n_answers_read_their_prompt_once_and_copy_the_page_they_write(length):
    scheduler = schedule(chunk=30)
    lives = [
        add(scheduler, i, list(range(length)), group=0, max_tokens=10 * length) for i in range(5)
    ]
    while lives[0].num_computed < length:
        assert scheduler.num_running <= 1
        step(scheduler)
    planned = step(scheduler)
    assert [entry.count for entry in planned.entries] == [1] * 5
    assert [live.num_cached for live in lives] == [0] + [length - 1] * 4
    whole = (length - 1) // PAGE
    assert len(planned.copies) == (4 if (length - 1) % PAGE else 0)
    assert all(live.pages[:whole] == lives[0].pages[:whole] for live in lives)
    own = [page for live in lives for page in live.pages[whole : pages_for(length + 1)]]
    assert len(set(own)) == len(own)
    assert scheduler.pool.in_use == whole + len(own)
    run(scheduler)


def test_answers_whose_first_one_is_gone_go_on_and_the_next_one_leads():
    scheduler = schedule(prefix_cache=False, chunk=30)
    for number in range(3):
        add(scheduler, number, list(range(100)), group=0, max_tokens=5)
    step(scheduler)
    scheduler.abort(0)
    assert run(scheduler) == 100 + 4 + 5


def test_answers_go_on_waiting_for_their_first_one_when_another_is_gone():
    scheduler = schedule(prefix_cache=False, chunk=30)
    for number in range(3):
        add(scheduler, number, list(range(100)), group=0, max_tokens=5)
    step(scheduler)
    scheduler.abort(1)
    assert run(scheduler) == 70 + 4 + 5


def test_answers_to_a_prompt_that_is_scored_each_read_all_of_it():
    scheduler = schedule()
    for number in range(3):
        add(scheduler, number, list(range(100)), group=0, prompt_logprobs=0, max_tokens=5)
    assert run(scheduler) == 3 * 104


def test_others_go_ahead_of_answers_that_wait_for_their_prompt():
    scheduler = schedule(chunk=30, max_step_tokens=100)
    add(scheduler, 0, list(range(100)), group=0, owner="a")
    add(scheduler, 1, list(range(100)), group=0, owner="a")
    for number in (2, 3, 4):
        add(scheduler, number, list(range(10)), owner="b")
    assert [entry.live.request.id for entry in step(scheduler).entries] == [0, 2, 3, 4]
    run(scheduler)


def test_the_prefix_unused_longest_is_forgotten_first_and_from_its_end():
    scheduler = schedule(num_pages=1 + 6)
    old = add(scheduler, 0, list(range(200)))
    new = add(scheduler, 1, list(range(1000, 1100)))
    run(scheduler)  # leaves three pages of the old one, one of the new one, two free
    add(scheduler, 2, list(range(3000, 3000 + 3 * PAGE - 1)))
    run(scheduler)  # takes one page more than were free
    assert [scheduler.pool.find(old.digest(block)) is None for block in range(3)] == [0, 0, 1]
    assert scheduler.pool.find(new.digest(0)) is not None
