"""The two published files of a tokenizer, ``tokenizer.json`` and ``tokenizer_config.json``.

``tokenizer.json`` is the format of the `tokenizers` library. The pre-tokenizer below is that of
the DeepSeek-V3 release: digits in groups of at most three, then runs of Han and kana, then words
with the sign before them, runs of signs with the line breaks after them, and runs of space. Each
piece is then spelled in bytes, one letter of the byte alphabet each.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterable
from itertools import chain, count
from operator import methodcaller
from pathlib import Path
from typing import Any, TypedDict

from abyssal.errors import DataError
from abyssal.tokenizer.control import BOS, CLOSING, EOS, EOT, OPENING, placeholder
from abyssal.tokenizer.template import Layout, chat_template


class AddedToken(TypedDict):
    """One control token as tokenizer.json states it."""

    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class BPEModel(TypedDict):
    """The vocabulary, spelled in the byte alphabet, and the merges in order of rank."""

    type: str
    dropout: float | None
    unk_token: str | None
    continuing_subword_prefix: str | None
    end_of_word_suffix: str | None
    fuse_unk: bool
    byte_fallback: bool
    vocab: dict[str, int]
    merges: list[str]  # "left right"


class TokenizerFile(TypedDict):
    """A whole tokenizer.json; the library alone looks into the entries typed as object."""

    version: str
    truncation: object
    padding: object
    added_tokens: list[AddedToken]
    normalizer: object
    pre_tokenizer: object
    post_processor: object
    decoder: object
    model: BPEModel


_SIGNS = "!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~"
_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    f"[{_SIGNS}][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
)


def _byte_alphabet() -> str:
    """The letter of each byte. Printable Latin-1 is itself, the rest U+0100 on (as in GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = count(0x100)
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


LETTERS = _byte_alphabet()


def blank_file() -> TokenizerFile:
    """A tokenizer.json with the structure of the release and an empty vocabulary."""
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in _SPLITS
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*splits, _byte_level(prefix=False, trim=True, regex=False)],
        },
        "post_processor": _byte_level(prefix=True, trim=False, regex=True),
        "decoder": _byte_level(prefix=True, trim=True, regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {},
            "merges": [],
        },
    }


def _byte_level(prefix: bool, trim: bool, regex: bool) -> dict[str, str | bool]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": prefix,
        "trim_offsets": trim,
        "use_regex": regex,
    }


def control_tokens(base_size: int, vocab_size: int) -> list[AddedToken]:
    """The control tokens of a vocabulary whose bytes and merges end before id base_size."""
    num_free = vocab_size - base_size - len(CLOSING)
    free = [placeholder(number) for number in range(num_free)]
    texts = [*OPENING, *free, *CLOSING]
    ids = [*range(len(OPENING)), *range(base_size, vocab_size)]
    special = {*OPENING, *free, EOT}
    return [
        {
            "id": token,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": text == EOT or text not in special,
            "special": text in special,
        }
        for token, text in zip(ids, texts, strict=True)
    ]


def read_file(path: Path) -> TokenizerFile:
    """The tokenizer.json at path, or in the folder at path; merges as "left right".

    Raises:
        DataError: the file is missing, cannot be read, or is not a byte-level BPE with BOS and EOS.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; give a folder that holds tokenizer.json, or the path of a "
            f"tokenizer.json or .json.gz file"
        )
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); copy or download it again") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise DataError(f"{path} is not JSON ({error}); a tokenizer.json was expected") from error
    problem = _first_problem(content)
    if problem:
        raise DataError(f"{path} {problem}; a byte-level BPE tokenizer.json was expected")
    file: TokenizerFile = content
    file["model"]["merges"] = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in file["model"]["merges"]
    ]
    return file


def _first_problem(content: object) -> str | None:
    """What keeps this JSON from being a tokenizer we can use, in words; None where nothing does.

    Whole lists at a time: the release has 255,000 entries.
    """
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return "has no model"
    model = content["model"]
    if model.get("type") != "BPE":
        return f"holds a model of type {model.get('type')!r}"
    vocab, merges, added = model.get("vocab"), model.get("merges"), content.get("added_tokens")
    if not isinstance(vocab, dict) or not _are_ids([*vocab.values()]):
        return "has no vocabulary of whole numbers"
    if not isinstance(merges, list) or not _are_merges(merges):
        return "has no list of merges"
    if not isinstance(added, list) or not _are_added_tokens(added):
        return "has no list of added_tokens"
    ids = [*vocab.values(), *(token["id"] for token in added if token["content"] not in vocab)]
    if len(set(ids)) != len(ids):
        return "gives one id to two tokens"
    return _vocabulary_problem(vocab, {token["content"]: token["id"] for token in added})


def _vocabulary_problem(vocab: dict[str, int], control: dict[str, int]) -> str | None:
    letters = set(LETTERS)
    absent = [text for text in (BOS, EOS) if text not in control]
    if absent:
        return f"lacks the control token {absent[0]}"
    if not letters <= vocab.keys():
        return f"lacks {len(letters - vocab.keys())} of the 256 byte tokens"
    texts = [text for text in vocab if text not in control]
    if not letters.issuperset("".join(texts)):
        wrong = next(text for text in texts if not letters.issuperset(text))
        return f"has the token {wrong!r}, which is not spelled in the byte alphabet"
    for text in vocab.keys() & control.keys():
        if letters.issuperset(text):
            return f"has the control token {text!r} in its text vocabulary, where text can reach it"
        if control[text] != vocab[text]:
            return f"gives the two ids {vocab[text]} and {control[text]} to {text}"
    return None


def _are_ids(values: list[Any]) -> bool:
    return {int}.issuperset(map(type, values)) and min(values, default=0) >= 0


def _are_merges(merges: list[Any]) -> bool:
    texts = [merge for merge in merges if isinstance(merge, str)]
    pairs = [merge for merge in merges if not isinstance(merge, str)]
    return (
        {1}.issuperset(map(methodcaller("count", " "), texts))
        and {list}.issuperset(map(type, pairs))
        and {2}.issuperset(map(len, pairs))
        and {str}.issuperset(map(type, chain.from_iterable(pairs)))
    )


def _are_added_tokens(added: list[Any]) -> bool:
    if not {dict}.issuperset(map(type, added)):
        return False
    contents = [token.get("content") for token in added]
    has_texts = {str}.issuperset(map(type, contents)) and "" not in contents
    return has_texts and _are_ids([token.get("id") for token in added])


def config_text(layout: Layout, model_max_length: int) -> str:
    """A tokenizer_config.json in the shape of the release, with our template of that layout.

    The class named is the one that takes tokenizer.json as it stands; the release names a Llama
    class, which newer versions of transformers replace with a warning.
    """
    bos, eos = (
        {
            "__type": "AddedToken",
            "content": text,
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
        }
        for text in (BOS, EOS)
    )
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "legacy": True,
        "model_max_length": model_max_length,
        "pad_token": eos,
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": chat_template(layout),
    }
    return json.dumps(config, ensure_ascii=False, indent=2) + "\n"


def write_files(folder: Path, files: Iterable[tuple[str, str]]) -> None:
    """Write (name, text) files into folder; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files:
        unfinished = folder / f".{name}.{os.getpid()}"
        try:
            unfinished.write_text(text, encoding="utf-8", newline="\n")
            unfinished.replace(folder / name)
        finally:
            unfinished.unlink(missing_ok=True)
