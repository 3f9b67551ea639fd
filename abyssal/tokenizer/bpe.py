"""DeepSeek's byte-level BPE (arXiv 2412.19437, section 4.1): text to token ids and back.

    text -> pre-tokenizer -> bytes -> merges in order of rank -> ids

The `tokenizers` library does the work. What it would also do, and must not, is to find control
tokens inside text: a user could then end the turn and speak as the assistant. So text is encoded by
a tokenizer that has never heard of control tokens, and their ids come from ``control`` alone.
"""

import codecs
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers, trainers

from abyssal.collector import paused
from abyssal.errors import ConfigError, DataError

# The names of the control tokens belong to this module's interface.
from abyssal.tokenizer.control import ASSISTANT as ASSISTANT
from abyssal.tokenizer.control import BOS as BOS
from abyssal.tokenizer.control import CLOSING, OPENING
from abyssal.tokenizer.control import END_THINK as END_THINK
from abyssal.tokenizer.control import EOS as EOS
from abyssal.tokenizer.control import EOT as EOT
from abyssal.tokenizer.control import FIM_BEGIN as FIM_BEGIN
from abyssal.tokenizer.control import FIM_END as FIM_END
from abyssal.tokenizer.control import FIM_HOLE as FIM_HOLE
from abyssal.tokenizer.control import PAD as PAD
from abyssal.tokenizer.control import SEARCH_BEGIN as SEARCH_BEGIN
from abyssal.tokenizer.control import SEARCH_END as SEARCH_END
from abyssal.tokenizer.control import THINK as THINK
from abyssal.tokenizer.control import TOOL_CALL_BEGIN as TOOL_CALL_BEGIN
from abyssal.tokenizer.control import TOOL_CALL_END as TOOL_CALL_END
from abyssal.tokenizer.control import TOOL_CALLS_BEGIN as TOOL_CALLS_BEGIN
from abyssal.tokenizer.control import TOOL_CALLS_END as TOOL_CALLS_END
from abyssal.tokenizer.control import TOOL_OUTPUT_BEGIN as TOOL_OUTPUT_BEGIN
from abyssal.tokenizer.control import TOOL_OUTPUT_END as TOOL_OUTPUT_END
from abyssal.tokenizer.control import TOOL_OUTPUTS_BEGIN as TOOL_OUTPUTS_BEGIN
from abyssal.tokenizer.control import TOOL_OUTPUTS_END as TOOL_OUTPUTS_END
from abyssal.tokenizer.control import TOOL_SEP as TOOL_SEP
from abyssal.tokenizer.control import USER as USER
from abyssal.tokenizer.release import (
    LETTERS,
    TokenizerFile,
    blank_file,
    config_text,
    control_tokens,
    read_file,
    write_files,
)
from abyssal.tokenizer.template import Layout

logger = logging.getLogger(__name__)

_SMALLEST_VOCAB = len(OPENING) + 256 + len(CLOSING)
_NOT_UTF8 = (
    "text holds a lone surrogate (half of a UTF-16 pair), which UTF-8 cannot spell; remove it, or "
    "replace it with U+FFFD"
)
_BYTE_OF_CODE = np.zeros(1 + ord(max(LETTERS)), np.uint8)
_BYTE_OF_CODE[[ord(letter) for letter in LETTERS]] = np.arange(256)
# Line breaks behind anything visible; the pre-tokenizer keeps them together only behind signs.
_COMBINED = re.compile(r"(.*\S)([\r\n]+)", re.DOTALL)


class Tokenizer:
    """One vocabulary and what can be done with it."""

    def __init__(self, file: TokenizerFile):
        self._file = file
        self._control = {token["content"]: token["id"] for token in file["added_tokens"]}
        self.control_ids = frozenset(self._control.values())  # place-holders are among them
        self._bytes = _bytes_of_tokens(file)
        self.vocab_size = max(self._bytes) + 1
        self.bos_token_id = self.control(BOS)
        self.eos_token_id = self.control(EOS)
        self._text = _text_tokenizer(file)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A tokenizer of exactly vocab_size ids; the same texts always give the same one.

        BOS, EOS and PAD are 0, 1 and 2, the other control tokens the last ids, as in the release.
        A merge must be seen twice; where the texts hold too few, place-holders fill the ids.

        Raises:
            ConfigError: vocab_size has no room for the control tokens and the 256 bytes.
            DataError: a text cannot be spelled in UTF-8.
        """
        if vocab_size < _SMALLEST_VOCAB:
            raise ConfigError(
                f"vocab_size={vocab_size}, but {len(OPENING) + len(CLOSING)} control tokens and "
                f"256 bytes need {_SMALLEST_VOCAB}; raise vocab_size"
            )
        learner = tokenizers.Tokenizer.from_str(json.dumps(blank_file()))
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(CLOSING),
            min_frequency=2,
            special_tokens=list(OPENING),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        try:
            learner.train_from_iterator(texts, trainer)
        except UnicodeEncodeError as error:
            raise DataError(_NOT_UTF8) from error
        learned = json.loads(learner.to_str())["model"]
        file = blank_file()
        file["model"]["vocab"] = learned["vocab"]
        file["model"]["merges"] = [" ".join(pair) for pair in learned["merges"]]
        file["added_tokens"] = control_tokens(len(learned["vocab"]), vocab_size)
        num_free = vocab_size - len(CLOSING) - len(learned["vocab"])
        if num_free:
            logger.warning(
                "the texts hold too few repeated pairs for vocab_size=%d; %d ids are place-holders",
                vocab_size,
                num_free,
            )
        return cls(file)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a folder with a tokenizer.json, or of a tokenizer.json or .json.gz file.

        Raises:
            DataError: the file is missing or broken, or not a byte-level BPE with BOS and EOS.
        """
        with paused():
            return cls(read_file(Path(path)))

    def save(
        self, folder: str | Path, layout: Layout = "v3", model_max_length: int = 131_072
    ) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `transformers` opens as they are.

        The chat template is that of the layout; model_max_length is the release's 128K.
        """
        vocabulary = json.dumps(self._file, ensure_ascii=False, indent=2) + "\n"
        config = config_text(layout, model_max_length)
        write_files(
            Path(folder), [("tokenizer.json", vocabulary), ("tokenizer_config.json", config)]
        )

    @cached_property
    def sha256(self) -> str:
        """The identity of the vocabulary: the hash of tokenizer.json in canonical form."""
        canonical = json.dumps(
            self._file, ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def spelled(self) -> tuple[bytes, ...]:
        """What each id below vocab_size spells: a control token its name, an unused id nothing."""
        return tuple(self._bytes.get(token, b"") for token in range(self.vocab_size))

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of text, between BOS and EOS where asked; what it spells stays plain text.

        Raises:
            DataError: the text cannot be spelled in UTF-8.
        """
        tokens = self.encode_batch([text])[0]
        return [self.bos_token_id] * bos + tokens + [self.eos_token_id] * eos

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as encode gives them, on all cores."""
        try:
            found = self._text.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:  # what the library makes of a string that is not UTF-8
            raise DataError(_NOT_UTF8) from error
        return [encoding.ids for encoding in found]

    def decode(self, tokens: Iterable[int], skip_control: bool = True) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens, skip_control).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int], skip_control: bool = True) -> bytes:
        """The exact bytes of tokens, without control tokens or with their names.

        Raises:
            DataError: an id is not in the vocabulary, as in the padding of the embedding.
        """
        skipped = self.control_ids if skip_control else frozenset()
        try:
            return b"".join(self._bytes[token] for token in tokens if token not in skipped)
        except KeyError as error:
            raise DataError(
                f"token {error} is not in the vocabulary of {self.vocab_size}; let the model "
                f"choose only ids below it"
            ) from error

    def control(self, text: str) -> int:
        """The id of the control token named text.

        Raises:
            DataError: this vocabulary lacks it (the first V3 has no ``<think>``, for one).
        """
        if text not in self._control:
            raise DataError(
                f"the tokenizer has no control token {text}; use one whose added_tokens name it"
            )
        return self._control[text]

    def split_combined(
        self, tokens: Sequence[int], rate: float, rng: "np.random.Generator"
    ) -> list[int]:
        """The same text, with a share of the tokens that join signs and line breaks taken apart.

        A prompt often ends before a line break that training always saw joined to the sign before
        it; splitting some of them in training removes that bias (section 4.1). The share is not
        published.

        Raises:
            ConfigError: rate is not a share.
        """
        if not 0.0 <= rate <= 1.0:
            raise ConfigError(f"rate={rate} of split tokens; give a share from 0 to 1")
        parts = self._combined
        at = [i for i, token in enumerate(tokens) if token in parts]
        chosen = {i for i, draw in zip(at, rng.random(len(at)), strict=True) if draw < rate}
        split: list[int] = []
        for i, token in enumerate(tokens):
            split.extend(parts[token] if i in chosen else (token,))
        return split

    @cached_property
    def _combined(self) -> dict[int, tuple[int, ...]]:
        """Token -> its signs, then its line breaks, for every token that joins the two."""
        matches: dict[int, re.Match[str]] = {}
        for token, spelled in self._bytes.items():
            text = spelled.decode("utf-8", errors="ignore")
            match = _COMBINED.fullmatch(text)
            if match and text.encode() == spelled and token not in self.control_ids:
                matches[token] = match
        halves = self.encode_batch([half for match in matches.values() for half in match.groups()])
        pairs = zip(matches, halves[::2], halves[1::2], strict=True)
        return {token: (*signs, *breaks) for token, signs, breaks in pairs}


class TextStream:
    """Tokens in, text out as soon as its characters are complete; control tokens are left out.

    What push and flush return, joined, is what decode makes of the same tokens.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that token completes, often all of its own, sometimes none."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """What an unfinished character leaves behind, U+FFFD or nothing; the stream starts anew."""
        return self._decoder.decode(b"", final=True)


def _bytes_of_tokens(file: TokenizerFile) -> dict[int, bytes]:
    """Token -> the bytes it spells; a control token spells its name."""
    names = {token["id"]: token["content"].encode() for token in file["added_tokens"]}
    texts = {token: text for text, token in file["model"]["vocab"].items() if token not in names}
    letters = "".join(texts.values())
    codes = np.frombuffer(letters.encode("utf-16-le"), dtype="<u2")
    spelled = _BYTE_OF_CODE[codes].tobytes()
    ends = accumulate(map(len, texts.values()))  # a letter is a byte
    pieces = {
        token: spelled[end - len(text) : end]
        for (token, text), end in zip(texts.items(), ends, strict=True)
    }
    return pieces | names


def _text_tokenizer(file: TokenizerFile) -> tokenizers.Tokenizer:
    """The library's tokenizer for text alone: the same model, no control tokens, no cutting."""
    text_only = {**file, "added_tokens": [], "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(text_only))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(
            f"the tokenizer file cannot be used ({error}); take an undamaged tokenizer.json"
        ) from error
