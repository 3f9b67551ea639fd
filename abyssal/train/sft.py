"""Stage: conversations -> chat model.

DeepSeek-V3 (arXiv 2412.19437), section 5.1. Conversations are packed, none sees another, and only
what the assistant wrote is learned: the shards' masks say which tokens those are.
"""

from dataclasses import dataclass
from pathlib import Path

from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class SFT(Run):
    """A run that teaches a base model to answer."""

    init: Path  # the base model's folder

    def __post_init__(self) -> None:
        Run.__post_init__(self)
        if not self.data.isolate or self.data.fim_rate:
            raise ConfigError(
                f"data.isolate={self.data.isolate} and fim_rate={self.data.fim_rate}, but the sft "
                "stage "
                "needs isolate = true and fim_rate = 0: conversations must not see each other"
            )


def build(run: SFT, tokenizer: Tokenizer) -> DeepSeekV3:
    """The base model, ready to learn."""
    model = DeepSeekV3.load(run.init)
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{run.init} has vocab_size={config.vocab_size}, but the tokenizer {run.tokenizer} has "
            f"{tokenizer.vocab_size} tokens; use the tokenizer the base model was trained with"
        )
    if run.batch.seq_len > config.max_position_embeddings:
        raise ConfigError(
            f"batch.seq_len={run.batch.seq_len}, but {run.init} reaches "
            f"max_position_embeddings={config.max_position_embeddings}; lower seq_len"
        )
    return model
