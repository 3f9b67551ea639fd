"""What processes say to each other, who they take themselves for, and who keeps what."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import ConfigError
from abyssal.parallel.ranks import ALONE, Ranks
from abyssal.parallel.zero import owners


def test_what_is_said_and_summed_is_the_same_on_all(crew):
    words = [{"a": [0.1, math.inf]}, "another, longer word: ä"]
    told = crew({"words": words}, {"words": words})
    assert told == [[words, words[0], [11.0] * 3, [1.0] * 2]] * 2


def test_one_process_hears_itself_and_meets_nobody():
    tensor = torch.ones(2)
    ALONE.join()
    ALONE.sum(tensor)
    ALONE.copy(tensor, 0)
    assert (ALONE.everyone(math.inf), ALONE.tell((1, 2)), tensor.sum()) == ([math.inf], (1, 2), 2)
    assert not torch.distributed.is_initialized()


@given(items=st.lists(st.integers(), max_size=9), world=st.integers(1, 5))
def test_the_shares_are_the_whole_and_no_one_has_two_more_than_another(items, world):
    shares = [Ranks(rank, world).share(items) for rank in range(world)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(
    sizes=st.dictionaries(st.text("abc", min_size=1), st.integers(0, 1000), max_size=20),
    world=st.integers(1, 5),
)
def test_every_parameter_has_one_owner_and_none_keeps_more_than_one_too_many(sizes, world):
    found = owners(sizes, world)
    assert found.keys() == sizes.keys()
    kept = [sum(size for name, size in sizes.items() if found[name] == r) for r in range(world)]
    assert max(kept) - min(kept) <= max(sizes.values(), default=0)


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"},
     {"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}],
)  # fmt: skip
def test_half_an_environment_is_refused_and_says_how_to_start(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=.*torchrun"):
        Ranks.of_environment()


@pytest.mark.parametrize(
    ("words", "named"),
    [(["train", "r1/zero"], "stage grpo"), (["demo"], "the demo")],
)
def test_what_does_not_divide_is_refused_in_a_line(monkeypatch, abyssal_command, words, named):
    """The first process to fail says why, the next one nothing."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    for name, value in {**told, "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    first, second = abyssal_command(*words), abyssal_command(*words)
    assert first.code == second.code == 2
    assert named in first.err
    assert "expected one; start it without torchrun" in first.err
    assert len(first.err.splitlines()) == 1
    assert second.err == ""
