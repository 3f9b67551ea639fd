"""Who reads what: how the load of the routed experts differs between domains.

    p(e | d)         share of a layer's routed tokens of domain d that went to expert e
    from uniform     1/2 sum over e of |p(e | d) - 1/E|: 0 balanced, toward 1 all to a few
    specialization   I(E; D) / H(D) with domains equally likely: 0 where the expert says nothing of
                     the domain, 1 where it gives it away

Total variation and mutual information, per MoE layer. Text is what tasks ask, without answers.

    N domains    M MoE layers    E n_routed_experts
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from abyssal.engine.likelihood import Scorer
from abyssal.tokenizer.bpe import Tokenizer

TOKENS = 4096  # of each domain: shares are then known to a percent or so
MOST_DOMAINS = 8  # of one task; those with more count as one


def by_domain(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """Texts of domains: the languages or kinds of a task, or the task as a whole."""
    found: dict[str, list[str]] = {}
    for task, lines in rows.items():
        kinds = {line["domain"] for line in lines if "domain" in line}
        for line in lines:
            apart = "domain" in line and len(kinds) <= MOST_DOMAINS
            name = f"{task}/{line['domain']}" if apart else task
            found.setdefault(name, []).append(str(line["prompt"]))
    return found


def loads(
    scorer: Scorer, tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]], context: int
) -> dict[str, Tensor]:
    """Routed tokens of each domain by layer and expert: (M, E) int64."""
    found = {}
    for domain, some in texts.items():
        sequences: list[list[int]] = []
        room = TOKENS
        for text in some:
            tokens = tokenizer.encode(text, bos=True)[: min(room, context - 1)]
            sequences.append(tokens)
            room -= len(tokens)
            if room <= 0:
                break
        found[domain] = scorer.expert_load(sequences)
    return found


def section(found: Mapping[str, Tensor]) -> dict[str, object]:
    """What results say of it: shares and distances, layer by layer."""
    names = list(found)
    shares = torch.stack([load / load.sum(-1, keepdim=True) for load in found.values()]).double()
    return {
        "domains": {
            name: {"tokens_by_layer_and_expert": load.tolist(), "from_uniform": away}
            for name, load, away in zip(
                names, found.values(), from_uniform(shares).tolist(), strict=True
            )
        },
        "specialization": specialization(shares).tolist(),
    }


def from_uniform(shares: Tensor) -> Tensor:
    """Total variation (N, M) between shares (N, M, E) and equal ones."""
    return (shares - 1 / shares.shape[-1]).abs().sum(-1) / 2


def specialization(shares: Tensor) -> Tensor:
    """I(E; D) / H(D) of each layer (M,), from shares (N, M, E); 0 where there is one domain."""
    count = len(shares)
    if count < 2:
        return torch.zeros(shares.shape[1], dtype=shares.dtype)
    mean = shares.mean(0)
    together = torch.xlogy(shares, shares).sum(-1).mean(0)  # minus H(E | D)
    alone = torch.xlogy(mean, mean).sum(-1)  # minus H(E)
    return (together - alone).clamp_min(0) / torch.log(torch.tensor(float(count)))
