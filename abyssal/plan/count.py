"""What a model weighs and what a token costs, in closed form: no tensor is made.

    parameters   every matrix and vector of the checkpoint, the router's bias included
    active       what one token meets: K of E routed experts, everything else once
    training     6 FLOPs per active parameter, plus three times the attention core

DeepSeek-V3 (arXiv 2412.19437), sections 2.1, 2.2 and 4.2. Letters in comments:

    D hidden_size    H num_attention_heads    C kv_lora_rank    R qk_rope_head_dim
    N qk_nope_head_dim    V v_head_dim    E n_routed_experts    K num_experts_per_tok
"""

from dataclasses import asdict, dataclass, fields

from abyssal.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Parameters by what they do; a part a model lacks is 0."""

    embedding: int = 0  # the table of input vectors
    head: int = 0  # hidden state -> vocabulary
    attention: int = 0  # MLA with its two latent norms
    dense: int = 0  # FFNs of the leading blocks
    routed: int = 0  # routed experts
    shared: int = 0  # shared experts
    router: int = 0  # gate weights and e_score_correction_bias
    norms: int = 0  # two a block, and those before the head and inside MTP
    projection: int = 0  # eh_proj of the MTP modules, 2D -> D

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Parameters, cache bytes and FLOPs of one model.

    MTP modules share embedding and head with the model, so ``mtp`` holds only what they own, and
    they count in nothing else here: generation works without them.
    """

    seq_len: int  # tokens, for the attention core's share of the FLOPs
    total: Parts  # of the main model
    active: Parts  # of those, what one token meets
    mtp: Parts  # what the MTP modules own
    mtp_active: Parts  # of those, what one token meets
    num_blocks: int
    num_mtp_blocks: int
    cache_bytes_per_token: int  # BF16: one latent and one rotary key per block
    unfolded_cache_bytes_per_token: int  # BF16: if every head kept its own key and value
    core_flops_per_position: int  # one block, one token against one cached position

    @property
    def params_total(self) -> int:
        """Parameters of the main model, 671,026,419,200 for DeepSeek-V3."""
        return self.total.total

    @property
    def params_mtp(self) -> int:
        """Parameters the MTP modules add, 11,610,068,224 for DeepSeek-V3."""
        return self.mtp.total

    @property
    def params_active(self) -> int:
        """Parameters a token is multiplied with: no embedding table, which is looked up."""
        return self.active.total - self.active.embedding

    @property
    def params_active_with_embedding(self) -> int:
        """Active parameters as the report counts them (37B)."""
        return self.active.total

    @property
    def weight_bytes(self) -> int:
        """The main model's weights in BF16."""
        return 2 * self.params_total

    def flops_per_token_training(self, seq_len: int | None = None, *, mtp: bool = False) -> int:
        """FLOPs to train on one token in a sequence of seq_len, forward and backward.

        A multiply-add is 2 FLOPs; backward costs twice the forward. A causal token meets half
        of seq_len on average. DeepSeek-V3 at 4096: 250.5e9, of which the attention core 30.7e9; the
        250 GFLOPs of "Insights into DeepSeek-V3" (arXiv 2505.09343), table 2. With mtp=True the MTP
        modules are trained too, each with its pass through the shared head.
        """
        params, blocks = self.params_active, self.num_blocks
        if mtp:
            params += self.mtp_active.total + self.num_mtp_blocks * self.active.head
            blocks += self.num_mtp_blocks
        length = self.seq_len if seq_len is None else seq_len
        return 6 * params + 3 * blocks * self.core_flops_per_position * length // 2

    def to_dict(self) -> dict[str, object]:
        """Everything above as one JSON-ready dictionary."""
        return {
            "params_total": self.params_total,
            "params_active": self.params_active,
            "params_active_with_embedding": self.params_active_with_embedding,
            "params_mtp": self.params_mtp,
            "weight_bytes": self.weight_bytes,
            "cache_bytes_per_token": self.cache_bytes_per_token,
            "unfolded_cache_bytes_per_token": self.unfolded_cache_bytes_per_token,
            "seq_len": self.seq_len,
            "flops_per_token_training": self.flops_per_token_training(),
            "flops_per_token_training_with_mtp": self.flops_per_token_training(mtp=True),
            "parts": {
                "total": asdict(self.total),
                "active": asdict(self.active),
                "mtp": asdict(self.mtp),
            },
        }


def count(config: ModelConfig, seq_len: int = 4096) -> Counts:
    """The counts of one configuration; seq_len sets the attention core's share of the FLOPs."""
    cfg = config
    width = cfg.qk_head_dim + cfg.v_head_dim  # N + R + V
    return Counts(
        seq_len=seq_len,
        total=_main_parts(cfg, cfg.n_routed_experts),
        active=_main_parts(cfg, cfg.num_experts_per_tok),
        mtp=_mtp_parts(cfg, cfg.n_routed_experts),
        mtp_active=_mtp_parts(cfg, cfg.num_experts_per_tok),
        num_blocks=cfg.num_hidden_layers,
        num_mtp_blocks=cfg.num_nextn_predict_layers,
        cache_bytes_per_token=2 * cfg.num_hidden_layers * cfg.latent_size,
        unfolded_cache_bytes_per_token=2 * cfg.num_hidden_layers * cfg.num_attention_heads * width,
        core_flops_per_position=2 * cfg.num_attention_heads * width,
    )


def _main_parts(cfg: ModelConfig, experts: int) -> Parts:
    """The main model with `experts` routed experts in each MoE block."""
    blocks, dense = cfg.num_hidden_layers, cfg.first_k_dense_replace
    moe = blocks - dense
    return Parts(
        embedding=cfg.vocab_size * cfg.hidden_size,
        head=cfg.vocab_size * cfg.hidden_size,
        attention=blocks * _attention(cfg),
        dense=dense * _swiglu(cfg.hidden_size, cfg.intermediate_size),
        routed=moe * experts * _swiglu(cfg.hidden_size, cfg.moe_intermediate_size),
        shared=moe * _shared(cfg),
        router=moe * _router(cfg),
        norms=(2 * blocks + 1) * cfg.hidden_size,  # ... and the final one
    )


def _mtp_parts(cfg: ModelConfig, experts: int) -> Parts:
    """The MTP modules: an MoE block each, behind eh_proj; embedding and head are the model's."""
    modules, D = cfg.num_nextn_predict_layers, cfg.hidden_size
    return Parts(
        attention=modules * _attention(cfg),
        routed=modules * experts * _swiglu(D, cfg.moe_intermediate_size),
        shared=modules * _shared(cfg),
        router=modules * _router(cfg),
        norms=modules * 5 * D,  # enorm, hnorm, two in the block, shared_head.norm
        projection=modules * 2 * D * D,
    )


def _attention(cfg: ModelConfig) -> int:
    """One MLA layer (eq. 1-11)."""
    D, H, C = cfg.hidden_size, cfg.num_attention_heads, cfg.kv_lora_rank
    query_size = H * cfg.qk_head_dim
    if cfg.q_lora_rank is None:
        queries = D * query_size  # q_proj
    else:
        queries = cfg.q_lora_rank * (D + 1 + query_size)  # q_a_proj, its norm, q_b_proj
    latents = D * cfg.latent_size + C  # kv_a_proj_with_mqa and the latent's norm
    keys_and_values = C * H * (cfg.qk_nope_head_dim + cfg.v_head_dim)  # kv_b_proj
    return queries + latents + keys_and_values + H * cfg.v_head_dim * D  # o_proj


def _swiglu(hidden_size: int, intermediate_size: int) -> int:
    """gate_proj, up_proj and down_proj."""
    return 3 * hidden_size * intermediate_size


def _shared(cfg: ModelConfig) -> int:
    """The shared experts of one block, which are one wide FFN."""
    return _swiglu(cfg.hidden_size, cfg.n_shared_experts * cfg.moe_intermediate_size)


def _router(cfg: ModelConfig) -> int:
    """Gate weight (E, D) and e_score_correction_bias (E,)."""
    return cfg.n_routed_experts * (cfg.hidden_size + 1)
