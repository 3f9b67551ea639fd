"""Which experts each token of a sequence meets when the engine reads it, for whoever compares.

The tokens are read one at a time, as a decoding step reads them, over a small cache of their own.

    T tokens    M MoE layers    E n_routed_experts    K num_experts_per_tok
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from abyssal.engine.native import NativeRunner
from abyssal.engine.pages import pages_for
from abyssal.engine.runner import Reading, Runner


@torch.inference_mode()
def routes(runner: Runner | NativeRunner, tokens: Sequence[int]) -> Tensor:
    """The experts of each token, (T, M, E) bool."""
    pages = list(range(1, pages_for(len(tokens)) + 1))
    own = runner.beside(runner.cache.beside(len(pages) + 1, fixed=runner.cache.fixed))
    met = torch.zeros(len(tokens), *own.expert_load.shape, dtype=torch.bool)
    for place, token in enumerate(tokens):
        experts = own.read([Reading([token], pages, place)], routed=True).experts
        assert experts is not None, "they were asked for"
        met[place].scatter_(1, experts[0].long(), True)  # (M, K)
    return met
