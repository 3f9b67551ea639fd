"""Where experts live when some are hosted more than once: DeepSeek's expert-parallel load balancer.

Heavy experts get replicas, and replicas are packed onto devices so that all carry about as much
(DeepSeek-V3, arXiv 2412.19437, section 3.4; the rules are those of the released EPLB):

    pack        the heaviest item first, always to the pack with the least that has room
    replicate   the expert whose replicas carry most gets the next one
    hierarchical   groups -> nodes, replicas within a node, replicas -> its devices
    global         the same with one group and one node

Hierarchical placement keeps the experts of a group on one node, which suits prefill over few nodes;
global placement suits decoding over many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from abyssal.errors import ConfigError

Loads = Sequence[float]  # of the experts of one layer, in any unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Which expert each slot of one layer hosts; slots are in order of devices."""

    experts: tuple[int, ...]  # of each slot
    slots: tuple[tuple[int, ...], ...]  # of each expert
    device_loads: tuple[float, ...]  # an expert's load is shared evenly by its replicas

    @property
    def counts(self) -> tuple[int, ...]:
        """Replicas of each expert, at least one."""
        return tuple(map(len, self.slots))

    @property
    def imbalance(self) -> float:
        """The heaviest device's load over the mean; 1 is balanced."""
        mean = sum(self.device_loads) / len(self.device_loads)
        return max(self.device_loads) / mean if mean else 1.0


class _Cluster(NamedTuple):
    """What there is to place on."""

    slots: int
    groups: int
    nodes: int
    devices: int


def place(
    layers: Sequence[Loads], *, slots: int, groups: int, nodes: int, devices: int
) -> list[Placement]:
    """Place the experts of every layer on `slots` slots of `devices` devices in `nodes` nodes.

    Experts are in `groups` groups of consecutive ones; placement is hierarchical where groups
    divide evenly over nodes, else global.

    Raises:
        ConfigError: the numbers do not divide, or there are fewer slots than experts.
    """
    experts = len(layers[0]) if layers else 0
    if not experts or any(len(loads) != experts for loads in layers):
        raise ConfigError("expected loads of the same experts, at least one, in every layer")
    if any(load < 0 for loads in layers for load in loads):
        raise ConfigError("a load is negative; expected counts of tokens or shares of them")
    _check(experts, slots, groups, nodes, devices)
    hierarchical = groups % nodes == 0
    cluster = _Cluster(slots, groups, nodes, devices) if hierarchical else (
        _Cluster(slots, 1, 1, devices)
    )  # fmt: skip
    return [_place(loads, cluster) for loads in layers]


def pack(loads: Loads, packs: int) -> list[tuple[int, int]]:
    """Items to packs of equal size, the heaviest first -> each item's pack and place in it."""
    size = len(loads) // packs
    if size == 1:
        return [(item, 0) for item in range(packs)]
    totals, filled = [0.0] * packs, [0] * packs
    found = [(0, 0)] * len(loads)
    for item in sorted(range(len(loads)), key=lambda i: -loads[i]):
        chosen = min((p for p in range(packs) if filled[p] < size), key=lambda p: totals[p])
        found[item] = (chosen, filled[chosen])
        totals[chosen] += loads[item]
        filled[chosen] += 1
    return found


def replicate(loads: Loads, slots: int) -> tuple[list[int], list[int]]:
    """The expert of each slot, the first ones in order, and how often each is hosted."""
    experts, counts = list(range(len(loads))), [1] * len(loads)
    for _ in range(slots - len(loads)):
        heaviest = max(range(len(loads)), key=lambda e: loads[e] / counts[e])
        experts.append(heaviest)
        counts[heaviest] += 1
    return experts, counts


def _place(loads: Loads, cluster: _Cluster) -> Placement:
    """One layer: groups to nodes, then every node by itself."""
    group_size = len(loads) // cluster.groups
    by_group = [sum(loads[g * group_size : (g + 1) * group_size]) for g in range(cluster.groups)]
    homes = pack(by_group, cluster.nodes)
    per_node, node_devices = cluster.slots // cluster.nodes, cluster.devices // cluster.nodes
    hosted: list[int] = []
    for node in range(cluster.nodes):
        groups = sorted((place, g) for g, (home, place) in enumerate(homes) if home == node)
        local = [e for _, g in groups for e in range(g * group_size, (g + 1) * group_size)]
        hosted += _place_on_node([loads[e] for e in local], local, per_node, node_devices)
    slots: list[list[int]] = [[] for _ in loads]
    for slot, expert in enumerate(hosted):
        slots[expert].append(slot)
    per_device = cluster.slots // cluster.devices
    device_loads = tuple(
        sum(loads[e] / len(slots[e]) for e in hosted[d * per_device : (d + 1) * per_device])
        for d in range(cluster.devices)
    )
    return Placement(
        experts=tuple(hosted), slots=tuple(map(tuple, slots)), device_loads=device_loads
    )


def _place_on_node(loads: Loads, names: Sequence[int], slots: int, devices: int) -> list[int]:
    """The experts of a node's slots, device after device."""
    experts, counts = replicate(loads, slots)
    found = pack([loads[e] / counts[e] for e in experts], devices)
    size = slots // devices
    hosted = [0] * slots
    for expert, (device, place) in zip(experts, found, strict=True):
        hosted[device * size + place] = names[expert]
    return hosted


def _check(experts: int, slots: int, groups: int, nodes: int, devices: int) -> None:
    for name, value in (("slots", slots), ("groups", groups), ("nodes", nodes),
                        ("devices", devices)):  # fmt: skip
        if value < 1:
            raise ConfigError(f"{name}={value}, expected at least 1")
    if slots < experts:
        raise ConfigError(
            f"{slots} slots for {experts} experts; expected at least one for each: add devices or "
            "slots on each"
        )
    for name, value, parts, of in (
        ("experts", experts, groups, "groups"),
        ("slots", slots, devices, "devices"),
        ("devices", devices, nodes if groups % nodes == 0 else 1, "nodes"),
    ):
        if value % parts:
            raise ConfigError(f"{value} {name} do not divide over {parts} {of}; change one of them")
