"""Files that lie, break off or never end: what is whole comes out, the rest is named."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from abyssal.data.records import find_files, read_lines, read_rows, read_whole
from abyssal.errors import DataError

LINES = [b'{"text": "line %d of a story"}' % number for number in range(5000)]
PLAIN = b"\n".join(LINES)


def packed(data: bytes, suffix: str) -> bytes:
    """The data as a file with this suffix holds it."""
    if suffix == ".gz":
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if suffix == ".zst" else data


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_every_line_comes_out_with_its_number(tmp_path: Path, suffix: str, end: bytes):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed(PLAIN + end, suffix))
    found = list(read_lines(path))
    assert [record.data for record in found] == LINES
    assert [record.where for record in found] == [f"{path}:{n}" for n in range(1, 5001)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_archives_laid_end_to_end_read_as_one(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed(PLAIN + b"\n", suffix) + packed(PLAIN, suffix))
    assert [record.data for record in read_lines(path)] == LINES + LINES


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_archive_yields_its_beginning_and_one_fault(
    tmp_path: Path, suffix: str, share: float
):
    path = tmp_path / f"a.jsonl{suffix}"
    many = b"\n".join(b'{"text": "%x"}' % (n * 2654435761 % 2**64) for n in range(50_000))
    whole = packed(many, suffix)
    path.write_bytes(whole[: int(len(whole) * share)])
    *kept, last = read_lines(path)
    assert len(kept) > 10_000
    assert [record.data for record in kept] == many.split(b"\n")[: len(kept)]
    assert last == (f"{path}:{len(kept) + 1}", b"", "truncated archive")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_archive_is_one_fault(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"this was never an archive" * 10)
    assert [record.fault for record in read_lines(path)] == ["damaged file"]
    assert read_whole(path).fault == "damaged file"


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_a_line_of_a_gigabyte_is_dropped_without_being_held(tmp_path: Path, suffix: str):
    path = tmp_path / f"huge.jsonl{suffix}"
    with path.open("wb") as file:
        if suffix:
            with zstandard.ZstdCompressor().stream_writer(file) as archive:
                archive.write(b'{"text": "before"}\n')
                for _ in range(1 << 6):
                    archive.write(bytes(1 << 24))
                archive.write(b'\n{"text": "after"}\n')
        else:
            file.write(b'{"text": "before"}\n')
            file.seek(1 << 30, 1)  # a hole: a gigabyte of zeros that takes no room on the disk
            file.write(b'\n{"text": "after"}\n')
    tracemalloc.start()
    before, huge, after = read_rows(path, max_bytes=1 << 20)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (before.value, after.value) == ({"text": "before"}, {"text": "after"})
    assert (huge.where, huge.fault) == (f"{path}:2", "longer than 1,048,576 bytes")
    assert peak_bytes < 80 << 20


def test_the_limit_is_exact(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 100 + b"\n" + b"x" * 101 + b"\n" + b"x" * 101)
    assert [len(record.data) for record in read_lines(path, max_bytes=100)] == [100, 0, 0]
    assert read_whole(path, max_bytes=304).data == path.read_bytes()
    assert read_whole(path, max_bytes=303).fault == "longer than 303 bytes"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"\xff\xfe{}", "bad UTF-8"),
        (b'{"text": "half a char \xe6\xb5"}', "bad UTF-8"),
        (b"  ", "blank line"),
        (b'{"text": "cut', "bad JSON"),
        (b"[" * 100_000, "bad JSON"),
        (b"9" * 5000, "bad JSON"),
        (b'["text"]', "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_a_line_that_is_no_object_has_its_fault_named(tmp_path: Path, line: bytes, fault: str):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n' + line + b'\n{"text": "b"}')
    first, bad, last = read_rows(path)
    assert bad == (f"{path}:2", {}, fault)
    assert (first.value, last.value) == ({"text": "a"}, {"text": "b"})


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}')
    assert [row.value for row in read_rows(path)] == [{"text": "a"}]


def test_folders_are_searched_and_other_types_named(tmp_path: Path):
    for name in ("b.txt", "deep/er/a.jsonl.gz", "README.md", "C.TXT"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = find_files(tmp_path, (".txt", ".jsonl.gz"))
    names = [str(path.relative_to(tmp_path)) for path in found.files]
    assert names == ["C.TXT", "b.txt", "deep/er/a.jsonl.gz"]
    assert found.unknown == [tmp_path / "README.md"]


@pytest.mark.parametrize("name", ["nowhere.txt", "picture.png", "empty", ""])
def test_a_path_that_cannot_be_read_is_an_error_in_one_line(tmp_path: Path, name: str):
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        find_files([tmp_path / name] if name else [], (".txt",))
    assert "\n" not in str(error.value)
    assert name in str(error.value)
