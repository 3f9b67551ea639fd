"""Shard folders: what was written is read, and a folder that is broken says so before training."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.data.documents import DropReport
from abyssal.data.shards import Shards, write_shards
from abyssal.errors import DataError

CONTROL = {"bos": 0, "eos": 1, "fim_begin": 2, "fim_hole": 3, "fim_end": 4}
DOCUMENTS = [[0, 10, 11, 1], [0, 12, 1], [0, 13, 14, 15, 16, 17, 1], [0, 1]]
MASKS = [None, [False, True, True], None, [False, False]]


def write(
    folder: Path,
    documents: Sequence[Sequence[int]] = DOCUMENTS,
    masks: Sequence[Sequence[bool] | None] | None = None,
    vocab_size: int = 100,
    report: DropReport | None = None,
    file_tokens: int = 8,
) -> Shards:
    """Shards of these documents, small enough to take several files."""
    return write_shards(
        folder,
        zip(documents, masks or [None] * len(documents), strict=True),
        tokenizer_sha256="abc",
        vocab_size=vocab_size,
        control=CONTROL,
        report=report,
        file_tokens=file_tokens,
    )


@given(
    documents=st.lists(st.lists(st.integers(0, 99_999), min_size=1, max_size=20), min_size=1),
    masked=st.booleans(),
    file_tokens=st.integers(1, 50),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], masked: bool, file_tokens
):
    masks = [[token % 3 > 0 for token in tokens] if masked else None for tokens in documents]
    folder = tmp_path_factory.mktemp("shards") / "s"
    shards = write(folder, documents, masks, vocab_size=100_000, file_tokens=file_tokens)
    assert [shards.tokens(i).tolist() for i in range(len(shards))] == documents
    assert shards.num_tokens == sum(map(len, documents))
    if masked and not all(all(mask or []) for mask in masks):
        found = [shards.mask(i) for i in range(len(shards))]
        assert [mask.tolist() for mask in found if mask is not None] == masks
    else:
        assert all(shards.mask(i) is None for i in range(len(shards)))
    shards.verify()


def test_a_document_without_a_mask_is_all_learned_beside_ones_with_masks(tmp_path: Path):
    shards = write(tmp_path / "s", masks=MASKS)
    found = [shards.mask(i) for i in range(4)]
    assert [mask.tolist() for mask in found if mask is not None] == [
        [1] * 4,
        [0, 1, 1],
        [1] * 7,
        [0, 0],
    ]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_tokens_take_two_bytes_while_they_fit(tmp_path: Path, vocab_size: int, dtype: str):
    shards = write(tmp_path / "s", [[0, vocab_size - 1]], vocab_size=vocab_size)
    assert shards.tokens(0).dtype == dtype
    assert shards.tokens(0).tolist() == [0, vocab_size - 1]


def test_the_views_cannot_be_written_through(tmp_path: Path):
    with pytest.raises(ValueError, match="read-only"):
        write(tmp_path / "s").tokens(0)[0] = 5


def test_the_meta_file_tells_what_was_dropped(tmp_path: Path):
    report = DropReport(total=3)
    shards = write(tmp_path / "s", [[0, 1], [], [0, 5, 1]], report=report)
    assert len(shards) == 2
    assert shards.meta.report["dropped"] == {"no tokens": 1}
    assert (shards.meta.tokenizer_sha256, shards.meta.control) == ("abc", CONTROL)


def test_the_same_documents_have_the_same_identity_and_others_another(tmp_path: Path):
    first, again = write(tmp_path / "a"), write(tmp_path / "b")
    other = write(tmp_path / "c", [*DOCUMENTS[:-1], [1, 0]])
    assert first.meta.sha256 == again.meta.sha256 != other.meta.sha256


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path):
    def breaking() -> Iterator[tuple[list[int], None]]:
        yield [0, 1], None
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "s", breaking(), tokenizer_sha256="", vocab_size=9, control=CONTROL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("documents", "masks", "message"),
    [
        ([[0, 100]], None, "document 0 has tokens from 0 to 100.* 0 to 99"),
        ([[0, 1], [-1]], None, "document 1 has tokens from -1"),
        ([[0.5]], None, "whole numbers"),
        ([[2**70]], None, "whole numbers"),
        ([[0, 1]], [[True]], "2 tokens and a mask of 1"),
        ([], None, "no document is left.*kept 0 of 0"),
        ([[], []], None, r"no document is left.*2 no tokens \(document 0\)"),
    ],
)
def test_documents_that_cannot_be_stored_are_refused(tmp_path: Path, documents, masks, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "s", documents, masks)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_stays_as_it_is(tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("s", "file"):
        with pytest.raises(DataError, match="choose another folder"):
            write(tmp_path / name)
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path / "file" / "below")
    assert (tmp_path / "s" / "precious").read_text() == "mine"


def edit_meta(**changes: object) -> Callable[[Path], None]:
    """An edit of meta.json that leaves its hash as it was."""

    def edit(folder: Path) -> None:
        path = folder / "meta.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def flip(name: str) -> Callable[[Path], None]:
    """One bit of a file is not what it was; its size is."""

    def edit(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return edit


def cut(name: str) -> Callable[[Path], None]:
    """The end of a file is missing."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def remove(name: str) -> Callable[[Path], None]:
    """A file is missing."""
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove("meta.json"), "not a shard folder"),
        (remove("index.bin"), r"lacks index\.bin"),
        (remove("tokens-00001.bin"), r"lacks tokens-00001\.bin"),
        (remove("mask-00000.bin"), r"lacks mask-00000\.bin"),
        (cut("meta.json"), "not the meta file"),
        (cut("index.bin"), r"39 bytes where meta\.json promises 40"),
        (cut("tokens-00000.bin"), r"13 bytes where meta\.json promises 14"),
        (cut("mask-00001.bin"), "6 bytes where meta.json promises 7"),
        (flip("index.bin"), "does not match its hash"),
        (edit_meta(vocab_size=5), "does not match its own hash"),
        (edit_meta(num_tokens=10**9), "does not match its own hash"),
        (edit_meta(format="parquet"), "format 'parquet'"),
        (edit_meta(surprise=1), "surprise"),
        (edit_meta(files=[1]), "not the meta file"),
        (lambda folder: (folder / "meta.json").write_text("[]"), "not the meta file"),
        (lambda folder: (folder / "meta.json").write_bytes(b"\xff"), "not the meta file"),
    ],
)
def test_a_broken_folder_is_one_line(tmp_path: Path, harm, message: str):
    write(tmp_path / "s", masks=MASKS)
    harm(tmp_path / "s")
    with pytest.raises(DataError, match=message) as error:
        Shards(tmp_path / "s")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_documents": "4"}, "whole numbers"),
        ({"num_documents": 0}, "some documents"),
        ({"num_documents": 2, "num_tokens": 7}, r"index\.bin has 40 bytes"),
        ({"num_tokens": 5}, "does not fit"),
        ({"dtype": "float64"}, "float64"),
        ({"has_mask": True}, "masks"),
        ({"vocab_size": 3}, "beyond its vocabulary of 3"),
    ],
)
def test_a_meta_file_that_hashes_well_is_still_checked(tmp_path: Path, changes, message: str):
    meta = write(tmp_path / "s").meta
    fields = {**meta.to_dict(), **changes}
    forged = type(meta)(**{**fields, "files": meta.files})
    said = json.dumps({**forged.to_dict(), "sha256": forged.sha256})
    (tmp_path / "s" / "meta.json").write_text(said)
    with pytest.raises(DataError, match=message):
        Shards(tmp_path / "s")


@pytest.mark.parametrize("name", ["tokens-00000.bin", "tokens-00001.bin", "mask-00001.bin"])
def test_verify_finds_one_flipped_bit_that_opening_passes(tmp_path: Path, name: str):
    write(tmp_path / "s", masks=MASKS)
    flip(name)(tmp_path / "s")
    with pytest.raises(DataError, match=f"{name} does not match its hash"):
        Shards(tmp_path / "s").verify()


def test_a_document_that_is_not_there_is_an_index_error(tmp_path: Path):
    shards = write(tmp_path / "s")
    for document in (-1, 4):
        with pytest.raises(IndexError, match="of 4"):
            shards.tokens(document)


def test_numpy_tokens_are_stored_like_lists(tmp_path: Path):
    arrays = [np.array(tokens, np.int32) for tokens in DOCUMENTS]
    assert write(tmp_path / "a", arrays).meta == write(tmp_path / "b").meta
