"""Stage: pairs of answers -> a model that prefers the better one, without a reward model.

    margin = beta ((log p(c) - log q(c)) - (log p(r) - log q(r)))
    L_DPO = -(1 - e) log sigmoid(margin) - e log sigmoid(-margin)
    L_IPO = ((log p(c) - log q(c)) / |c| - (log p(r) - log q(r)) / |r| - 1 / (2 beta))^2

p is the model, q the frozen model it starts from, c the chosen and r the rejected answer, e the
share of pairs taken to be the wrong way around. Rafailov et al. (arXiv 2305.18290), with the label
smoothing of Mitchell's note on conservative DPO; Azar et al. (arXiv 2310.12036), with averages over
an answer's tokens as TRL has them. q is asked once, before the first step.

    N pairs    T tokens    D hidden_size
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.batch import IGNORE, Batch
from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3, Output
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train.comparisons import (
    ComparisonObjective,
    ComparisonRun,
    Example,
    groups,
    lay_out,
)
from abyssal.train.loss import Losses, balance_term, token_logprobs
from abyssal.train.machine import Machine
from abyssal.train.sft import start
from abyssal.train.trainer import Trainer

REFERENCE = "reference"  # what a state calls the log-probabilities of q


@dataclass(frozen=True, kw_only=True, slots=True)
class DPO(ComparisonRun):
    """A run that makes better answers likelier than worse ones."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    beta: float = 0.1  # how dear it is to leave the start
    label_smoothing: float = 0.0  # of sigmoid: share of pairs taken to be the wrong way around

    def __post_init__(self) -> None:
        ComparisonRun.__post_init__(self)
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"beta={self.beta}, expected a number above 0")
        if not 0 <= self.label_smoothing < 0.5 or (self.label_smoothing and self.loss == "ipo"):
            raise ConfigError(
                f"label_smoothing={self.label_smoothing} with loss={self.loss!r}, expected a "
                "number from 0 to below 0.5, and 0 with ipo"
            )


def begin(run: DPO, tokenizer: Tokenizer, machine: Machine) -> Trainer:
    """The loop before its first step."""
    model = start(run, tokenizer, machine)
    model.mtp.requires_grad_(False)  # no pair teaches them
    return Trainer(run, PreferenceObjective(run, model, tokenizer), machine)


def dpo(model: Tensor, reference: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The loss (N,) of each pair's log-probabilities (N, 2), the chosen answer's first."""
    chosen, rejected = (model - reference).unbind(-1)
    margin = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo(model: Tensor, reference: Tensor, lengths: Tensor, *, beta: float) -> Tensor:
    """The loss (N,) of the same, with the answers' lengths (N, 2) in tokens."""
    chosen, rejected = ((model - reference) / lengths.clamp(min=1)).unbind(-1)
    return (chosen - rejected - 1 / (2 * beta)).square()


def answer_logprobs(hidden: Tensor, head: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed log-probability (N,) of every sequence's labels, and how many they are."""
    assert batch.labels is not None
    lengths = batch.cu_seqlens.diff().to(hidden.device)
    sequence = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
    each = token_logprobs(hidden, head, batch.labels)
    zeros = each.new_zeros(len(lengths))
    scored = (batch.labels != IGNORE).to(each.dtype)
    return zeros.index_add(0, sequence, each), zeros.index_add(0, sequence, scored)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Some pairs of a step: every chosen answer, its rejected one behind it."""

    batch: Batch
    reference: Tensor  # (N, 2)
    run: DPO
    model: DeepSeekV3

    @property
    def weight(self) -> int:
        """Pairs."""
        return len(self.reference)

    def score(self, output: Output, batch: Batch, *, balance: bool) -> Losses:
        """The loss of the pairs, and rewards, margin and accuracy as figures."""
        run, top_k = self.run, self.model.config.num_experts_per_tok
        sums, lengths = answer_logprobs(output.hidden, self.model.lm_head.weight, batch)
        logprobs = sums.view(-1, 2)
        reference = self.reference.to(logprobs.device)
        if run.loss == "ipo":
            each = ipo(logprobs, reference, lengths.view(-1, 2), beta=run.beta)
        else:
            smoothing = run.label_smoothing
            each = dpo(logprobs, reference, beta=run.beta, label_smoothing=smoothing)
        rewards = run.beta * (logprobs - reference).detach()
        term = balance_term(output, batch, top_k=top_k, wanted=balance)
        return Losses(each.sum(), each.new_zeros(()), term, figures(rewards))


def figures(rewards: Tensor) -> dict[str, tuple[float, float]]:
    """What is said of the rewards (N, 2) of pairs: sums over them, and N."""
    chosen, rejected = rewards.detach().double().cpu().unbind(-1)
    values = {
        "accuracy": (chosen > rejected).double(),
        "margin": chosen - rejected,
        "reward/chosen": chosen,
        "reward/rejected": rejected,
    }
    return {name: (float(value.sum()), float(len(value))) for name, value in values.items()}


class PreferenceObjective(ComparisonObjective):
    """Pairs against the model that the run started from."""

    run: DPO

    def __init__(self, run: DPO, model: DeepSeekV3, tokenizer: Tokenizer):
        super().__init__(run, model, tokenizer, answers=2)
        self.reference: Tensor | None = None  # (pairs, 2), by the numbers of the examples

    def piece(self, examples: Sequence[Example]) -> Pairs:
        """Some pairs, and what the reference thinks of them."""
        if self.reference is None:
            self.reference = self._ask()
        known = self.reference[[example.number for example in examples]]
        return Pairs(lay_out(examples), known, self.run, self.model)

    @torch.no_grad()
    def _ask(self) -> Tensor:
        """Log-probabilities (pairs, 2) by the model as it stands, which is before any step."""
        was_training = self.model.training
        self.model.eval()
        found = []
        for group in groups(self.every_example, self.run.batch.micro_sequences):
            batch = lay_out(group).to(self.model.lm_head.weight.device)
            hidden = self.model(batch).hidden
            found.append(answer_logprobs(hidden, self.model.lm_head.weight, batch)[0].cpu())
        self.model.train(was_training)
        return torch.cat(found).view(-1, 2)

    def tensors(self) -> dict[str, Tensor]:
        """What the reference thinks: the model that could be asked again has moved."""
        return {} if self.reference is None else {REFERENCE: self.reference}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take that back."""
        self.reference = tensors[REFERENCE]
