"""The objective of pre-training and fine-tuning: the next token, over a mixture of shards.

Where several sources are mixed, each one's mean loss stands in the metrics beside the whole.

    T tokens of a batch
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from abyssal.batch import IGNORE, Batch
from abyssal.data.packing import Packer
from abyssal.data.shards import Shards
from abyssal.data.sources import Source
from abyssal.errors import DataError
from abyssal.evals.harness import bits_per_byte
from abyssal.model.transformer import DeepSeekV3, Output
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import history, lora
from abyssal.train.loss import Losses, losses
from abyssal.train.objective import Probe
from abyssal.train.run import Data, DataSource, Run


@dataclass(frozen=True, slots=True)
class Excerpts:
    """Tokens of a micro-batch, to be predicted one by one."""

    batch: Batch
    sources: dict[str, Tensor]  # (T,) bool of each source, where there are several
    model: DeepSeekV3

    @property
    def weight(self) -> int:
        """Tokens with a label."""
        assert self.batch.labels is not None
        return int((self.batch.labels != IGNORE).sum())

    def score(self, output: Output, batch: Batch, *, balance: bool) -> Losses:
        """Next token, tokens further ahead, balance."""
        head, top_k = self.model.lm_head.weight, self.model.config.num_experts_per_tok
        sources = {name: brought.to(batch.tokens.device) for name, brought in self.sources.items()}
        return losses(output, head, batch, top_k=top_k, balance=balance, sources=sources)


class TextObjective:
    """The next token of packed documents or conversations."""

    def __init__(self, run: Run, data: Data, model: DeepSeekV3, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.mtp, self.tokens = bool(model.mtp) and not lora.is_adapted(model), float("inf")
        self.packer = _packer(run, data, tokenizer)
        self.held_out = {
            source.name: _texts(source, tokenizer, data.held_out_documents)
            for source in data.held_out
        }

    def draw(self, passes: int) -> Sequence[Excerpts]:
        """So many micro-batches."""
        return [self._excerpts() for _ in range(passes)]

    def _excerpts(self) -> Excerpts:
        names, packed = self.packer.names, self.packer.next()
        brought = {name: packed.sources == number for number, name in enumerate(names)}
        return Excerpts(packed.batch, brought if len(names) > 1 else {}, self.model)

    def evaluate(self, step: int, tokens: int) -> Iterator[history.Evaluation]:
        """Bits per byte of the held-out text."""
        row = partial(history.Evaluation, step=step, tokens=tokens)
        for name, texts in self.held_out.items():
            bits = bits_per_byte(self.model, self.tokenizer, texts).bits_per_byte
            yield row(name=name, bits_per_byte=bits)

    def probe(self) -> Probe | None:
        """The held-out text of the first source."""
        for name, texts in self.held_out.items():
            longest = self.model.config.max_position_embeddings
            encoded = self.tokenizer.encode_batch(texts)
            bos = self.tokenizer.bos_token_id
            return Probe(name, [[bos, *tokens][:longest] for tokens in encoded])
        return None

    def publish(self, folder: Path) -> None:
        """Write the model folder."""
        lora.save(self.model, folder)
        self.tokenizer.save(folder)

    def place(self) -> dict[str, object]:
        """The packer's."""
        return self.packer.state_dict()

    def go_to(self, place: Mapping[str, object]) -> None:
        """Take the packer there."""
        self.packer.load_state_dict(place)

    def tensors(self) -> dict[str, Tensor]:
        """None beside the optimizer's."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""


def _packer(run: Run, data: Data, tokenizer: Tokenizer) -> Packer:
    sources = [
        Source(shards=_open(source, tokenizer), weight=source.weight, name=source.name)
        for source in data.sources
    ]
    return Packer(
        sources,
        tokens_per_batch=run.batch.micro_tokens,
        seq_len=run.batch.seq_len,
        isolate=data.isolate,
        fim_rate=data.fim_rate,
        seed=run.seed,
    )


def _texts(source: DataSource, tokenizer: Tokenizer, documents: int) -> list[str]:
    """The first documents of a shard folder, as text again."""
    shards = _open(source, tokenizer)
    taken = range(min(documents, len(shards)))
    texts = [tokenizer.decode(shards.tokens(i).tolist()) for i in taken]
    if not any(texts):
        raise DataError(
            f"{source.shards}: its first {len(texts)} documents hold no text to score; "
            "leave it out of data.held_out, or raise held_out_documents"
        )
    return texts


def _open(source: DataSource, tokenizer: Tokenizer) -> Shards:
    shards = Shards(source.shards)
    if shards.meta.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"{source.shards} was encoded with another tokenizer than the recipe's; "
            "prepare it again with this one"
        )
    return shards
