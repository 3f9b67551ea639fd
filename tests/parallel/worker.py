"""One process of a crew (conftest.py): runs that it is told of, a JSON line each, one by one.

An order is {"recipe": ..., "changes": {...}} and perhaps "signal": at that step this process sends
itself SIGTERM; "drop": after that step it leaves the run; "poison": its so-manieth pass loses its
loss.
"""

import hashlib
import itertools
import json
import math
import os
import signal
import sys

import torch

from abyssal.errors import AbyssalError
from abyssal.parallel.ranks import Ranks
from abyssal.train import preference, pretrain, sft, text
from abyssal.train.loss import losses
from abyssal.train.trainer import Trainer
from abyssal.train.training import Training

loops: list[Trainer] = []


class Noted(Trainer):
    """A trainer that can be looked at after its run."""

    def __init__(self, *given):
        super().__init__(*given)
        loops[:] = [self]


def poison(at: int | None) -> None:
    """The loss of this process's pass `at` is not a number."""
    passes = itertools.count(1)

    def poisoned(*arguments, **options):
        found = losses(*arguments, **options)
        return found._replace(main=found.main * math.nan) if next(passes) == at else found

    text.losses = poisoned


def run(order: dict) -> dict:
    """Take a run as far as the order says -> what is to be seen of it here."""
    poison(order.get("poison"))
    training = Training(order["recipe"], order["changes"])
    seen, error = [], None
    steps = training.steps()
    try:
        for row in steps:
            seen.append(row.loss)
            if row.step == order.get("signal"):
                os.kill(os.getpid(), signal.SIGTERM)
            if row.step == order.get("drop"):
                steps.close()
    except AbyssalError as problem:
        error = str(problem)
    (loop,) = loops
    digest = hashlib.sha256()
    for _, tensor in sorted(loop.model.state_dict().items()):
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    kept = loop.optimizer
    groups = (kept.masters, kept.first, kept.second)
    return {
        "losses": seen,
        "weights": digest.hexdigest(),
        "stopped_by": training.stopped_by,
        "planned_tokens": training.planned_tokens,
        "state_bytes": sum(t.nbytes for group in groups for t in group.values()),
        "peak_memory_bytes": training.peak_memory_bytes,
        "error": error,
    }


def said(order: dict) -> object:
    """What the ranks say to each other."""
    ranks = Ranks.of_environment()
    tensor = torch.full((3,), 10.0**ranks.rank)
    ranks.sum(tensor)
    own = torch.full((2,), float(ranks.rank))
    ranks.copy(own, 1)
    word = order["words"][ranks.rank]
    return [ranks.everyone(word), ranks.tell(word), tensor.tolist(), own.tolist()]


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the protocol owns standard output
    for module in (pretrain, sft, preference):
        module.Trainer = Noted
    Ranks.of_environment().join()
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(said(order) if "words" in order else run(order)), file=out, flush=True)
