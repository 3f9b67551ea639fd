"""Experts placed as the released balancer does, and what holds for any loads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import ConfigError
from abyssal.plan.placement import pack, place, replicate

LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]


@pytest.mark.parametrize(
    ("nodes", "slots", "imbalance"),
    [
        (2, [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
             [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]], [1.208, 1.242]),
        (3, [[10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1],
             [1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7]], [1.073, 1.190]),
    ],
)  # fmt: skip
def test_the_golden_vectors_of_both_policies(nodes, slots, imbalance):
    found = place(LOADS, slots=16, groups=4, nodes=nodes, devices=8)
    assert [list(layer.experts) for layer in found] == slots
    assert [round(layer.imbalance, 3) for layer in found] == imbalance


@st.composite
def clusters(draw):
    nodes, devices, per_device = (draw(st.integers(1, 3)) for _ in range(3))
    groups = nodes * draw(st.integers(1, 3)) if draw(st.booleans()) else draw(st.integers(1, 5))
    experts = groups * draw(st.integers(1, 4))
    devices *= nodes
    slots = devices * max(per_device, -(-experts // devices))
    loads = draw(st.lists(st.integers(0, 1000), min_size=experts, max_size=experts))
    return loads, {"slots": slots, "groups": groups, "nodes": nodes, "devices": devices}


@given(clusters())
def test_every_expert_is_hosted_and_no_load_is_lost(case):
    loads, cluster = case
    (found,) = place([loads], **cluster)
    assert len(found.experts) == cluster["slots"]
    assert set(found.experts) == set(range(len(loads)))
    assert sum(found.counts) == cluster["slots"]
    assert sum(found.device_loads) == pytest.approx(sum(loads))
    for expert, hosts in enumerate(found.slots):
        assert all(found.experts[slot] == expert for slot in hosts)
    assert found.imbalance >= 1 - 1e-9


@given(clusters())
def test_placed_by_node_the_experts_of_a_group_share_one(case):
    loads, cluster = case
    groups, nodes, slots = cluster["groups"], cluster["nodes"], cluster["slots"]
    if groups % nodes:
        return
    (found,) = place([loads], **cluster)
    size, per_node = len(loads) // groups, slots // nodes
    homes = [{slot // per_node for slot in hosts} for hosts in found.slots]
    for group in range(groups):
        together = set().union(*homes[group * size : (group + 1) * size])
        assert len(together) == 1


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(0, 20))
def test_a_replica_goes_to_the_expert_that_carries_most(loads, more):
    _, before = replicate(loads, len(loads) + more)
    experts, after = replicate(loads, len(loads) + more + 1)
    chosen = experts[-1]
    assert after[chosen] == before[chosen] + 1
    heaviest = max(load / count for load, count in zip(loads, before, strict=True))
    assert loads[chosen] / before[chosen] == heaviest


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.integers(1, 4))
def test_packs_hold_equally_many_and_differ_by_at_most_one_heaviest_item_a_place(loads, size):
    items = loads * size
    packed = pack(items, len(loads))
    assert sorted(packed) == sorted((p, place) for p in range(len(loads)) for place in range(size))
    if size > 1:
        totals = [0] * len(loads)
        for item, (chosen, _) in enumerate(packed):
            totals[chosen] += items[item]
        assert max(totals) - min(totals) <= size * max(items)


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"slots": 8, "groups": 4, "nodes": 2, "devices": 8}, "8 slots for 12 experts"),
        ({"slots": 16, "groups": 5, "nodes": 2, "devices": 8}, "12 experts do not divide over 5"),
        ({"slots": 16, "groups": 4, "nodes": 2, "devices": 5}, "16 slots do not divide over 5"),
        ({"slots": 16, "groups": 4, "nodes": 0, "devices": 8}, "nodes=0"),
    ],
)
def test_what_does_not_divide_is_refused(cluster, said):
    with pytest.raises(ConfigError, match=said):
        place(LOADS, **cluster)
    with pytest.raises(ConfigError, match="negative"):
        place([[-1, 2]], slots=2, groups=1, nodes=1, devices=1)
