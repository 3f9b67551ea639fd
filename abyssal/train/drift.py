"""How far tuning moved the routing: the experts that held-out text meets, before and after.

Every tuned model is a base model whose experts were balanced over other text. Whether the gates'
biases go on moving, stay, or a balance loss acts is the recipe's choice; this is what came of it.

    L MoE blocks    E experts    K experts per token    T tokens
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from abyssal.batch import Batch
from abyssal.model.moe import Routing
from abyssal.model.transformer import DeepSeekV3, Output
from abyssal.train.balance import expert_load, max_violation
from abyssal.train.history import Drift
from abyssal.train.objective import Probe

BATCH_TOKENS = 4096  # of one pass


@torch.no_grad()
def drift(before: DeepSeekV3, after: DeepSeekV3, probe: Probe, step: int) -> Drift | None:
    """Where both models of one shape send the probe's tokens; None where nothing is routed."""
    loads, changed, tokens = [torch.zeros(0)] * 2, torch.zeros(0), 0
    was_training = after.training
    before.eval()
    after.eval()
    for batch in _batches(probe.sequences):
        routings = [_routings(model, batch) for model in (before, after)]
        if not routings[0]:
            break
        counts = [expert_load(found).cpu() for found in routings]  # (L, E) each
        moved = torch.stack([_moved(*pair) for pair in zip(*routings, strict=True)])  # (L,)
        loads = [load + more if tokens else more for load, more in zip(loads, counts, strict=True)]
        changed = changed + moved if tokens else moved
        tokens += len(batch.tokens)
    after.train(was_training)
    if not tokens:
        return None
    shares = [load.double() / load.sum(-1, keepdim=True) for load in loads]
    return Drift(
        step=step,
        tokens=tokens,
        name=probe.name,
        load_before=_rows(shares[0]),
        load=_rows(shares[1]),
        max_violation_before=tuple(max_violation(loads[0]).tolist()),
        max_violation=tuple(max_violation(loads[1]).tolist()),
        total_variation=tuple(((shares[0] - shares[1]).abs().sum(-1) / 2).tolist()),
        top_changed=tuple((changed.double() / tokens).tolist()),
    )


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """The sequences in order, some thousand tokens at a time."""
    group: list[Sequence[int]] = []
    for sequence in sequences:
        if group and sum(map(len, group)) + len(sequence) > BATCH_TOKENS:
            yield Batch.from_sequences(group)
            group = []
        group.append(sequence)
    if group:
        yield Batch.from_sequences(group)


def _routings(model: DeepSeekV3, batch: Batch) -> tuple[Routing, ...]:
    output: Output = model(batch.to(model.lm_head.weight.device))
    return output.routings


def _moved(before: Routing, after: Routing) -> Tensor:
    """How many tokens have another heaviest expert."""
    return (_heaviest(before) != _heaviest(after)).sum().cpu()


def _heaviest(routing: Routing) -> Tensor:
    """The expert (T,) with the largest weight of each token's K."""
    return routing.experts.gather(-1, routing.weights.argmax(-1, keepdim=True))[:, 0]


def _rows(shares: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(x, 6) for x in row) for row in shares.tolist())
