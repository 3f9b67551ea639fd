"""Stage: judged answers -> a model that gives an answer a number.

    r = w . h    at the last token of prompt and answer
    pairwise     L = -log sigmoid(r(chosen) - r(rejected))           Bradley and Terry
    pointwise    L = -log sigmoid(r) if good, -log sigmoid(-r) if not

DeepSeek-V3 (arXiv 2412.19437), section 5.2, trains its reward model from the fine-tuned
checkpoint. DeepSeek-R1 (arXiv 2501.12948) has a pairwise one for helpfulness and a pointwise one
for safety; its batch, rate and length are in ``v3/reward``.

    OUT/    the model folder    reward_head.safetensors: score.weight (1, D)

    N sequences    D hidden_size    T tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from abyssal.batch import Batch
from abyssal.checkpoint import files, weights
from abyssal.config import ModelConfig
from abyssal.errors import CheckpointError, ConfigError, RequestError
from abyssal.model.transformer import DeepSeekV3, Output
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Layout, Message, render
from abyssal.train import lora
from abyssal.train.comparisons import ComparisonObjective, ComparisonRun, Example, lay_out
from abyssal.train.loss import Losses, balance_term
from abyssal.train.machine import Machine
from abyssal.train.preference import figures
from abyssal.train.sft import check_fit
from abyssal.train.trainer import Trainer, working_copy

HEAD = "reward_head.safetensors"
BATCH_TOKENS = 4096  # of one pass of a judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward(ComparisonRun):
    """A run that learns to judge."""

    loss: Literal["pairwise", "pointwise"] = "pairwise"

    def __post_init__(self) -> None:
        ComparisonRun.__post_init__(self)
        if self.samples:
            raise ConfigError("samples are written by a model that talks; a reward model judges")


def begin(run: Reward, tokenizer: Tokenizer, machine: Machine) -> Trainer:
    """The loop before its first step."""
    policy = DeepSeekV3.load(run.init)
    check_fit(run, policy, tokenizer)
    model = working_copy(RewardModel.of(policy), machine)
    if run.lora is not None:
        lora.attach(model, run.lora, run.seed)
        model.score.requires_grad_(True)
    for unused in (model.lm_head, model.mtp):
        unused.requires_grad_(False)
    return Trainer(run, RewardObjective(run, model, tokenizer), machine)


class RewardModel(DeepSeekV3):
    """A language model with one more head, which judges the sequence so far."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    @classmethod
    def of(cls, policy: DeepSeekV3, head: Tensor | None = None) -> Self:
        """The same weights with a head (1, D), which finds all sequences equal if none is given."""
        with torch.device("meta"):
            model = cls(policy.config)
        head = torch.zeros(1, policy.config.hidden_size) if head is None else head
        model.load_state_dict(policy.state_dict() | {"score.weight": head}, assign=True)
        return model.eval()

    @classmethod
    def load(cls, folder: str | Path, config: ModelConfig | None = None) -> Self:
        """The reward model that a run left in a folder.

        Raises:
            CheckpointError: the folder is no model's, or has no head.
        """
        path = Path(folder) / HEAD
        try:
            head = load_file(path)["score.weight"]
        except (OSError, SafetensorError, KeyError) as problem:
            raise CheckpointError(
                f"{path}: no reward head ({problem}); expected the folder of a reward run"
            ) from None
        return cls.of(DeepSeekV3.load(folder, config), head)

    def save(self, folder: str | Path) -> None:
        """Write the model folder, and the head beside it; adapters are merged."""
        tensors = lora.merged(self)
        head = tensors.pop("score.weight").detach().cpu().clone()
        weights.write(folder, self.config, tensors)
        draft = Path(folder) / f".{HEAD}"
        save_file({"score.weight": head}, draft, metadata={"format": "pt"})
        files.sync(draft)
        draft.replace(Path(folder) / HEAD)

    def rewards(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The number (N,) float32 at the last token of every sequence; hidden is (T, D)."""
        last = hidden[batch.cu_seqlens[1:].to(hidden.device) - 1]
        return F.linear(last.float(), self.score.weight.float())[:, 0]


def pairwise(rewards: Tensor) -> Tensor:
    """The loss (N,) of pairs of rewards (N, 2), the chosen answer's first."""
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1])


def pointwise(rewards: Tensor, good: Tensor) -> Tensor:
    """The loss (N,) of rewards (N,) and whether each answer is good (N,)."""
    return -F.logsigmoid(torch.where(good, rewards, -rewards))


@dataclass(frozen=True, slots=True)
class Judged:
    """Some judged answers of a step."""

    batch: Batch
    good: Tensor  # (N,) bool, of single answers
    model: RewardModel

    @property
    def weight(self) -> int:
        """Pairs, or single answers."""
        return len(self.good)

    def score(self, output: Output, batch: Batch, *, balance: bool) -> Losses:
        """The loss, and rewards and accuracy as figures."""
        rewards = self.model.rewards(output.hidden, batch)
        if len(rewards) == 2 * len(self.good):
            pairs = rewards.view(-1, 2)
            each, said = pairwise(pairs), figures(pairs)
        else:
            each = pointwise(rewards, self.good.to(rewards.device))
            said = _said(rewards.detach().cpu().double(), self.good)
        top_k = self.model.config.num_experts_per_tok
        term = balance_term(output, batch, top_k=top_k, wanted=balance)
        return Losses(each.sum(), each.new_zeros(()), term, said)


def _said(rewards: Tensor, good: Tensor) -> dict[str, tuple[float, float]]:
    """Of single answers: how many are on the right side of 0, and the rewards of both kinds."""
    return {
        "accuracy": (float(((rewards > 0) == good).sum()), float(len(good))),
        "reward/good": (float(rewards[good].sum()), float(good.sum())),
        "reward/bad": (float(rewards[~good].sum()), float((~good).sum())),
    }


class RewardObjective(ComparisonObjective):
    """Judged answers, in pairs or one by one."""

    model: RewardModel

    def __init__(self, run: Reward, model: RewardModel, tokenizer: Tokenizer):
        super().__init__(run, model, tokenizer, answers=2 if run.loss == "pairwise" else 1)

    def piece(self, examples: Sequence[Example]) -> Judged:
        """Some of them."""
        good = torch.tensor([example.good for example in examples])
        return Judged(lay_out(examples), good, self.model)

    def publish(self, folder: Path) -> None:
        """Write the model folder with its head."""
        self.model.save(folder)
        lora.save_adapter(self.model, folder)
        self.tokenizer.save(folder)


class Judge:
    """A reward model as a function: conversations in, a number for each out."""

    def __init__(self, folder: str | Path, layout: Layout = "v3"):
        """The reward model in a folder, whose head sees the last answer in this layout."""
        self.model, self.tokenizer = RewardModel.load(folder), Tokenizer.load(folder)
        self.layout: Layout = layout

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """The reward of the last answer of each conversation.

        A conversation is judged as it is given: leave the reasoning out to judge the summary alone,
        as DeepSeek-R1 judges helpfulness.

        Raises:
            RequestError: a conversation is too long for the model.
        """
        sequences = [self._tokens(messages) for messages in conversations]
        rewards: list[float] = []
        group: list[list[int]] = []
        for sequence in [*sequences, []]:
            if group and (not sequence or sum(map(len, group)) + len(sequence) > BATCH_TOKENS):
                rewards += self._judge(group)
                group = []
            group.append(sequence)
        return rewards

    @torch.no_grad()
    def _judge(self, sequences: list[list[int]]) -> list[float]:
        batch = Batch.from_sequences(sequences).to(self.model.lm_head.weight.device)
        found: list[float] = self.model.rewards(self.model(batch).hidden, batch).tolist()
        return found

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        thinking = self.layout == "v3.1" and messages[-1].reasoning is not None
        rendered = render(
            messages, self.tokenizer, self.layout, thinking, add_generation_prompt=False
        )
        longest = self.model.config.max_position_embeddings
        if len(rendered.tokens) > longest:
            raise RequestError(
                f"a conversation of {len(rendered.tokens)} tokens to judge, expected at most "
                f"{longest} (max_position_embeddings); shorten it"
            )
        return rendered.tokens
