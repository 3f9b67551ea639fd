"""DeepSeek-V3: embedding, blocks, final norm, head, and the multi-token prediction modules beside.

    x = x + MLA(RMSNorm(x))        x = x + FFN(RMSNorm(x))

DeepSeek-V3 (arXiv 2412.19437), section 2. A forward pass ends in hidden states; the head is a
separate call, because a loss wants it in chunks and an engine on few rows.

    T tokens    D hidden_size    L num_hidden_layers    W vocab_size
"""

from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from abyssal.batch import Batch
from abyssal.checkpoint import weights
from abyssal.config import ModelConfig
from abyssal.model.attention import MLA, LatentCache, Span
from abyssal.model.layers import MLP, RMSNorm
from abyssal.model.moe import Gate, MoE, Routing
from abyssal.model.rope import cos_sin


class Output(NamedTuple):
    """What a pass leaves behind."""

    hidden: Tensor  # (T, D), normed: ready for the head
    mtp_hidden: tuple[
        Tensor, ...
    ]  # (T, D) of each MTP module; row i predicts the label of row i + depth
    routings: tuple[Routing, ...]  # of each MoE block in order, those of MTP modules last


class Block(nn.Module):
    """One pre-norm residual block: attention, then a dense or a routed feed-forward."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = not config.is_moe(layer)
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)

    def forward(self, x: Tensor, span: Span) -> tuple[Tensor, Routing | None]:
        """x (T, D) -> (T, D), and the routing if this block routes."""
        mixed = self.self_attn(self.input_layernorm(x), span)
        x, normed = self.post_attention_layernorm.after_adding(x, mixed)
        y = self.mlp(normed)
        return (x + y[0], y[1]) if isinstance(self.mlp, MoE) else (x + y, None)


class MTPModule(nn.Module):
    """Predict one token further: join the last hidden state with the next token (eq. 21-22).

    The published weights take the embedding first and the normed hidden state second.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(D, eps)
        self.hnorm = RMSNorm(D, eps)
        self.eh_proj = nn.Linear(2 * D, D, bias=False)
        self.block = Block(config, layer)
        self.norm = RMSNorm(D, eps)  # before the shared head

    def forward(self, hidden: Tensor, embedded: Tensor, span: Span) -> tuple[Tensor, Routing]:
        """hidden (T, D) and the embeddings (T, D) of the tokens to come -> (T, D), routing."""
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], -1))
        x, routing = self.block(x, span)
        return self.norm(x), routing


class DeepSeekV3(nn.Module):
    """The whole model. Parameters start uninitialized: call `initialize`, or use `load`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        L, D = config.num_hidden_layers, config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, D)
        self.layers = nn.ModuleList(Block(config, i) for i in range(L))
        self.norm = RMSNorm(D, config.rms_norm_eps)
        self.lm_head = nn.Linear(D, config.vocab_size, bias=False)
        modules = range(L, L + config.num_nextn_predict_layers)
        self.mtp = nn.ModuleList(MTPModule(config, i) for i in modules)

    def forward(
        self,
        batch: Batch,
        cache: LatentCache | None = None,
        *,
        mtp: bool = False,
        recompute: bool = False,
    ) -> Output:
        """Run all blocks: unfolded without a cache, absorbed with one.

        `mtp` also runs the MTP modules; `recompute` keeps only each block's input for the backward.
        """
        span = Span(*cos_sin(self.config, batch.positions), batch.cu_seqlens, cache)
        x = self.embed_tokens(batch.tokens) if batch.embeds is None else batch.embeds  # (T, D)
        routings: list[Routing] = []
        for block in self.layers:
            run = checkpoint(block, x, span, use_reentrant=False) if recompute else block(x, span)
            x, routing = run
            if routing is not None:
                routings.append(routing)
        hidden = self.norm(x)
        ahead = self._predict_ahead(hidden, batch, span, routings) if mtp else ()
        return Output(hidden, ahead, tuple(routings))

    def _predict_ahead(
        self, hidden: Tensor, batch: Batch, span: Span, routings: list[Routing]
    ) -> tuple[Tensor, ...]:
        """Each MTP module in turn; a row whose token lies beyond its sequence is never scored."""
        ahead: list[Tensor] = []
        for depth, module in enumerate(self.mtp, 1):
            embedded = self.embed_tokens(batch.tokens.roll(-depth))  # (T, D) of t_{i+depth}
            hidden, routing = module(hidden, embedded, span)
            ahead.append(hidden)
            routings.append(routing)
        return tuple(ahead)

    def predict_ahead(self, hidden: Tensor, batch: Batch, cache: LatentCache) -> Tensor:
        """Pass hidden (T, D) and the token after each through the first MTP module -> (T, D).

        `batch.tokens` are the tokens that follow those whose hidden states these are, and
        `batch.positions` the places of the latter; row i then predicts the token after
        `batch.tokens[i]`. What comes out may go in again as `hidden`, to look further ahead.
        """
        span = Span(*cos_sin(self.config, batch.positions), batch.cu_seqlens, cache)
        ahead: Tensor = self.mtp[0](hidden, self.embed_tokens(batch.tokens), span)[0]
        return ahead

    def logits(self, batch: Batch, cache: LatentCache | None = None) -> Tensor:
        """Scores (T, W) float32 of the token after each token."""
        scores: Tensor = self.lm_head(self.forward(batch, cache).hidden)
        return scores.float()

    def gates(self) -> list[Gate]:
        """The gates of all MoE blocks, in the order of `Output.routings` with MTP."""
        return [module for module in self.modules() if isinstance(module, Gate)]

    @torch.no_grad()
    def initialize(
        self, generator: torch.Generator | None = None, *, output_scale: float = 1.0
    ) -> Self:
        """Draw every matrix from N(0, initializer_range^2); norm gains are 1 and gate biases 0.

        `output_scale` multiplies the matrices that write into the residual stream, o_proj and
        down_proj; the paper has 1.
        """
        for name, parameter in self.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
                continue
            parameter.normal_(0.0, self.config.initializer_range, generator=generator)
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(output_scale)
        for gate in self.gates():
            gate.e_score_correction_bias.zero_()
        return self

    @classmethod
    def load(cls, folder: str | Path, config: ModelConfig | None = None) -> Self:
        """The model in a checkpoint folder, in the precision it was saved in (FP8 becomes BF16).

        `config` replaces the folder's own, to go on with other positions, say.

        Raises:
            CheckpointError: a file is missing, or a tensor's shape is not what config.json
            promises.
        """
        config = config or ModelConfig.load(folder)
        with torch.device("meta"):
            model = cls(config)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights.read(folder, config, shapes), assign=True)
        return model.eval()

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and the weights into a folder, in the published format."""
        weights.write(folder, self.config, self.state_dict())


def load(folder: str | Path) -> DeepSeekV3:
    """The model in a checkpoint folder; see `DeepSeekV3.load`."""
    return DeepSeekV3.load(folder)
