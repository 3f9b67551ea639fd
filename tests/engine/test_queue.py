"""Owners take turns, and each owner's requests keep their order."""

from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.live import Live
from abyssal.engine.queue import FairQueue
from abyssal.engine.request import Request, SamplingParams


def waiting(number: int, owner: str) -> Live:
    request = Request(id=number, tokens=[5], params=SamplingParams(), owner=owner)
    return Live(request, [5], 1, 2)


def emptied(queue: FairQueue) -> list[Live]:
    return [queue.pop() for _ in iter(lambda: queue.num_owners, 0)]


@given(st.text("abc", max_size=20))
def test_it_is_a_round_of_first_ones_then_of_second_ones(owners):
    queue = FairQueue()
    lives = [waiting(i, owner) for i, owner in enumerate(owners)]
    for live in lives:
        queue.append(live)
    rounds = [(owners[:i].count(owner), owners.index(owner)) for i, owner in enumerate(owners)]
    expected = [lives[i] for _, i in sorted((turn, i) for i, turn in enumerate(rounds))]
    assert emptied(queue) == expected


@given(st.text("abc", max_size=20), st.data())
def test_removed_ones_leave_the_order_of_the_rest(owners, data):
    queue = FairQueue()
    lives = [waiting(i, owner) for i, owner in enumerate(owners)]
    for live in lives:
        queue.append(live)
    removed = data.draw(st.sets(st.sampled_from(lives))) if lives else set()
    for live in removed:
        queue.remove(live)
    left = emptied(queue)
    assert set(left) == set(lives) - removed
    for owner in "abc":
        numbers = [live.request.id for live in left if live.request.owner == owner]
        assert numbers == sorted(numbers)


def test_one_put_back_is_the_next_of_its_owner_but_takes_no_turn_of_others():
    queue = FairQueue()
    first, second, back, other = (waiting(i, owner) for i, owner in enumerate("aaab"))
    for live in (first, other, second):
        queue.append(live)
    queue.put_back(back)
    assert emptied(queue) == [back, other, first, second]


def test_ending_a_turn_lets_the_next_owner_go_ahead():
    queue = FairQueue()
    lives = [waiting(i, owner) for i, owner in enumerate("ab")]
    for live in lives:
        queue.append(live)
    queue.end_turn()
    assert queue.head() is lives[1]
    assert queue.num_owners == 2
