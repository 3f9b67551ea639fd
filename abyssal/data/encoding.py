"""Documents to tokens, ready for shards: BOS, the text, EOS."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from abyssal.data.documents import Document
from abyssal.tokenizer import control
from abyssal.tokenizer.bpe import Tokenizer

_BATCH = 256  # texts encoded at a time, on all cores


def encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, *, split_rate: float = 0.0, seed: int = 0
) -> Iterator[tuple[list[int], None]]:
    """BOS, the tokens, EOS of every document, and no mask: all is to be learned.

    A share split_rate of the tokens that join punctuation and a line break is taken apart, so that
    the model also meets the two alone (section 4.1; the paper does not give the share).
    """
    rng = np.random.default_rng(seed)
    rest = iter(documents)
    while batch := list(islice(rest, _BATCH)):
        for tokens in tokenizer.encode_batch([document.text for document in batch]):
            if split_rate > 0:
                tokens = tokenizer.split_combined(tokens, split_rate, rng)
            yield [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id], None


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """What meta.json of shards says of control tokens."""
    return {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "fim_begin": tokenizer.control(control.FIM_BEGIN),
        "fim_hole": tokenizer.control(control.FIM_HOLE),
        "fim_end": tokenizer.control(control.FIM_END),
    }
