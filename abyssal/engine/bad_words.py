"""Texts that an answer never contains: which tokens would finish writing one of them.

A text may be cut into tokens in many ways, and may begin or end inside of one. So what is compared
is bytes: a token that holds the whole text is never allowed, and one that begins with the rest of
it is not where the answer ends in the beginning.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from abyssal.tokenizer.bpe import Tokenizer

_SEPARATOR = b"\xff"  # in no UTF-8 text, so that no text is found across two tokens


class BadWords:
    """The bad words of one request, all of them UTF-8 texts of at least one character."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]):
        self._spelled = tokenizer.spelled
        self._control = tokenizer.control_ids
        self._page = _spelling(tokenizer)
        words = [text.encode() for text in texts]
        self._always = sorted({token for word in words for token in self._page.holding(word)})
        self._reach = max((len(word) for word in words), default=1) - 1  # bytes to look back
        self._cuts: dict[int, list[tuple[bytes, bytes]]] = {}  # by the last byte of the beginning
        for word in words:
            for cut in range(1, len(word)):
                self._cuts.setdefault(word[cut - 1], []).append((word[:cut], word[cut:]))
        self._finishing: dict[bytes, list[int]] = {}  # the rest of a word -> tokens that begin so

    def banned(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that, written behind an answer of these tokens, would complete a bad word.

        Control tokens are never among them: they are no text, and no text is cut by them.
        """
        end = self._end(tokens)
        if not end:
            return self._always
        rests = {rest for begun, rest in self._cuts.get(end[-1], ()) if end.endswith(begun)}
        return [*self._always, *(token for rest in rests for token in self._begun(rest))]

    def _end(self, tokens: Sequence[int]) -> bytes:
        """The last bytes of the text of tokens, as many as a word can have begun with."""
        end = b""
        for token in reversed(tokens):
            if len(end) >= self._reach:
                break
            if token not in self._control:
                end = self._spelled[token] + end
        return end

    def _begun(self, rest: bytes) -> list[int]:
        if rest not in self._finishing:
            self._finishing[rest] = list(self._page.holding(_SEPARATOR + rest))
        return self._finishing[rest]


class _Spelling(NamedTuple):
    """The bytes of a whole vocabulary in one piece, in which a search takes a millisecond."""

    page: bytes  # a separator before each token
    starts: NDArray[np.int64]  # where each token has its separator

    def holding(self, text: bytes) -> Iterator[int]:
        """The tokens that contain text, or begin so if text opens with the separator."""
        at = self.page.find(text)
        while at >= 0:
            yield int(np.searchsorted(self.starts, at, "right")) - 1
            at = self.page.find(text, at + 1)


@lru_cache(maxsize=4)
def _spelling(tokenizer: Tokenizer) -> _Spelling:
    texts = [
        _SEPARATOR + (b"" if token in tokenizer.control_ids else text)
        for token, text in enumerate(tokenizer.spelled)
    ]
    lengths = np.array([len(text) for text in texts])
    return _Spelling(b"".join(texts), np.cumsum(lengths) - lengths)
