"""The words everyone uses: the published ``config.json`` as a frozen dataclass, and its presets.

DeepSeek-V3 (arXiv 2412.19437), section 4.2. Field names are those of the released checkpoint; how
the file spells them is in published.py. No torch here.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from abyssal import published as published_config
from abyssal.errors import ConfigError

RopeType = Literal["yarn", "linear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """YaRN (arXiv 2309.00071) as DeepSeek-V3 uses it, section 4.3; the defaults are the released
    ones. Of type "linear" it is position interpolation (arXiv 2306.15595): every pair is slowed by
    `factor`, and betas and mscales are not used.
    """

    type: RopeType = "yarn"
    factor: float = 40.0  # longest context / original_max_position_embeddings
    original_max_position_embeddings: int = 4096  # tokens the model was pre-trained at
    beta_fast: float = 32.0  # pairs that turn more often than this keep their frequency
    beta_slow: float = 1.0  # pairs that turn less often are slowed by `factor`
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self) -> None:
        if self.type not in get_args(RopeType):
            raise ConfigError(f"rope_scaling.type={self.type!r}, expected 'yarn' or 'linear'")
        if self.factor < 1:
            raise ConfigError(
                f"rope_scaling.factor={self.factor}, expected at least 1; use 1 to turn it off"
            )
        if self.original_max_position_embeddings < 1:
            raise ConfigError(
                "rope_scaling.original_max_position_embeddings="
                f"{self.original_max_position_embeddings}, expected the pre-training length in "
                "tokens"
            )
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ConfigError(
                f"rope_scaling.beta_slow={self.beta_slow} and beta_fast={self.beta_fast}, "
                "expected 0 < beta_slow <= beta_fast"
            )

    @classmethod
    def of(cls, rope: Mapping[str, Any]) -> Self | None:
        """As a published config says it; None where positions are not scaled."""
        names = [field.name for field in dataclasses.fields(cls)]
        found = published_config.scaling_of(rope, get_args(RopeType), names)
        return None if found is None else cls(**found)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One DeepSeek-V3-style model; the defaults are the 671B model."""

    vocab_size: int = 129280  # rows of the embedding; the tokenizer uses ids below 128,815
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    first_k_dense_replace: int = 3  # leading blocks with a dense FFN
    intermediate_size: int = 18432  # of a dense FFN
    num_nextn_predict_layers: int = 1  # multi-token prediction modules, section 2.2

    # Multi-head latent attention, section 2.1.1
    num_attention_heads: int = 128
    q_lora_rank: int | None = 1536  # None: queries are projected in one step
    kv_lora_rank: int = 512  # cached per token and layer ...
    qk_rope_head_dim: int = 64  # ... with this one rotary key, shared by all heads
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128

    # Mixture of experts, section 2.1.2
    moe_intermediate_size: int = 2048  # of one expert
    n_shared_experts: int = 1
    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    n_group: int = 8  # experts live in groups; in training one group = one node
    topk_group: int = 4  # a token may visit this many groups
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5

    # Positions, section 4.3
    max_position_embeddings: int = 163840
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None

    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02  # as published; pre-training drew from 0.006 (section 4.2)
    bos_token_id: int = 0
    eos_token_id: int = 1

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_rotary()
        if self.first_k_dense_replace < self.num_hidden_layers or self.num_nextn_predict_layers:
            self._check_experts()

    # Sizes that follow from the fields

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head: the part without position and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_size(self) -> int:
        """Numbers cached per token and layer: the latent and the rotary key, C + R."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def is_moe(self, layer: int) -> bool:
        """Whether block `layer` routes; MTP modules, from num_hidden_layers on, always do."""
        return layer >= self.first_k_dense_replace

    # Folders and dictionaries

    @classmethod
    def preset(cls, name: str) -> Self:
        """A named configuration from PRESETS."""
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
        return cls(**{f.name: getattr(PRESETS[name], f.name) for f in dataclasses.fields(cls)})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The configuration of a model folder.

        Raises:
            CheckpointError: there is no readable ``config.json``.
            ConfigError: it describes another architecture or impossible sizes.
        """
        path, published = published_config.read(folder)
        try:
            return cls.from_dict(published)
        except ConfigError as problem:
            raise ConfigError(f"{path}: {problem}") from None

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> Self:
        """The configuration in a published ``config.json``; keys without effect are ignored."""
        published_config.refuse_other_architectures(published)
        rope = published_config.rope_of(published)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name == "rope_scaling":
                values["rope_scaling"] = RopeScaling.of(rope)
            elif field.name == "rope_theta":
                values["rope_theta"] = rope.get("rope_theta", published.get("rope_theta", 10000.0))
            elif field.name in published:
                values[field.name] = published[field.name]
            elif field.name not in _OPTIONAL:
                raise ConfigError(f"config.json lacks {field.name!r}; expected every published key")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The published ``config.json``, with the rotary keys in both spellings."""
        return published_config.written(
            dataclasses.asdict(self), num_key_value_heads=self.num_attention_heads,
            qk_head_dim=self.qk_head_dim, head_dim=self.qk_rope_head_dim,
        )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` into an existing folder."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")

    # Refusals, each with its arithmetic

    def _check_sizes(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < _LEAST.get(field.name, 1)):
                least = _LEAST.get(field.name, 1)
                raise ConfigError(
                    f"{field.name}={value!r}, expected an integer of at least {least}"
                )
        if self.q_lora_rank is not None and (
            type(self.q_lora_rank) is not int or self.q_lora_rank < 1
        ):
            raise ConfigError(
                f"q_lora_rank={self.q_lora_rank!r}, expected a positive integer or null"
            )
        for name in ("routed_scaling_factor", "rope_theta", "rms_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 < value < math.inf
            ):
                raise ConfigError(f"{name}={value!r}, expected a positive number")
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ConfigError(
                f"first_k_dense_replace={self.first_k_dense_replace}, but there are only "
                f"num_hidden_layers={self.num_hidden_layers} blocks; lower it"
            )
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ConfigError(
                    f"{name}={getattr(self, name)}, but vocab_size={self.vocab_size}; ids start at "
                    "0"
                )

    def _check_rotary(self) -> None:
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"qk_rope_head_dim={self.qk_rope_head_dim}, expected an even size: pairs rotate"
            )
        if self.rope_scaling is None:
            return
        original = self.rope_scaling.original_max_position_embeddings
        reach = self.rope_scaling.factor * original
        if self.max_position_embeddings > reach:
            raise ConfigError(
                f"max_position_embeddings={self.max_position_embeddings}, but "
                f"{self.rope_scaling.type} scaling reaches factor * original = "
                f"{self.rope_scaling.factor:g} * {original} = {reach:g}; raise rope_scaling.factor"
            )

    def _check_experts(self) -> None:
        E, G = self.n_routed_experts, self.n_group
        per_group = E // G
        if E % G:
            raise ConfigError(
                f"n_routed_experts={E} is not divisible by n_group={G} "
                f"({E} = {per_group} * {G} + {E % G}); change one of them"
            )
        if self.topk_group > G:
            raise ConfigError(
                f"topk_group={self.topk_group}, but there are only n_group={G} groups"
            )
        if per_group < 2:
            raise ConfigError(
                f"n_routed_experts / n_group = {E} / {G} = {per_group} expert a group, expected at "
                "least 2: a group is scored by its two best; lower n_group"
            )
        reachable = self.topk_group * per_group
        if self.num_experts_per_tok > reachable:
            raise ConfigError(
                f"num_experts_per_tok={self.num_experts_per_tok}, but a token can reach only "
                f"{self.topk_group} * {per_group} = {reachable} experts (topk_group="
                f"{self.topk_group} of n_group={G}); raise topk_group or lower num_experts_per_tok"
            )


_LEAST = {"num_nextn_predict_layers": 0, "first_k_dense_replace": 0, "n_shared_experts": 0,
          "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
_OPTIONAL = {
    "num_nextn_predict_layers",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "q_lora_rank",
}

_YARN = RopeScaling()
_OURS: dict[str, Any] = {
    "vocab_size": 4096, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
    "q_lora_rank": None, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
    "max_position_embeddings": 512,
}  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    # The released model (config.json of the checkpoint).
    "deepseek-v3": ModelConfig(rope_scaling=_YARN),
    # The report's ablation scale (15.7B, 2.4B active): the 16B demo config's shape, V3's router.
    "deepseek-v3-16b": ModelConfig(
        vocab_size=129280, hidden_size=2048, num_hidden_layers=27, first_k_dense_replace=1,
        intermediate_size=10944, moe_intermediate_size=1408, num_attention_heads=16,
        q_lora_rank=None, n_shared_experts=2, n_routed_experts=64, num_experts_per_tok=6,
        n_group=1, topk_group=1, max_position_embeddings=4096,
    ),
    # Our ladder: five CPU minutes, a quarter of an hour, one small GPU.
    "tiny": ModelConfig(
        hidden_size=160, num_hidden_layers=4, intermediate_size=384, moe_intermediate_size=96,
        num_attention_heads=4, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32,
        v_head_dim=32, n_routed_experts=8, num_experts_per_tok=2, **_OURS,
    ),
    "mini": ModelConfig(
        hidden_size=224, num_hidden_layers=5, intermediate_size=512, moe_intermediate_size=128,
        num_attention_heads=4, kv_lora_rank=96, qk_nope_head_dim=32, qk_rope_head_dim=32,
        v_head_dim=64, n_routed_experts=8, num_experts_per_tok=2, **_OURS,
    ),
    "small": ModelConfig(
        vocab_size=8192, hidden_size=512, num_hidden_layers=8, first_k_dense_replace=1,
        intermediate_size=1408, moe_intermediate_size=128, num_attention_heads=8,
        q_lora_rank=192, kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=32,
        v_head_dim=64, n_routed_experts=32, num_experts_per_tok=4, n_group=4, topk_group=2,
        max_position_embeddings=2048,
    ),
}  # fmt: skip
