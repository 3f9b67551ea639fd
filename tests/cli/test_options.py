"""Amounts of memory as people write them."""

import pytest

from abyssal.cli.options import amount_of_bytes
from abyssal.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, None),
        ("4096", 4096),
        ("4096B", 4096),
        ("500MB", 500_000_000),
        ("2GiB", 2 * 2**30),
        (" 1.5 gib ", 3 * 2**29),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1TB", 10**12),
    ],
)
def test_an_amount_is_so_many_bytes(text, size):
    assert amount_of_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2GiBs", "1e9", "2 PiB", "1.GB", "two"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match="no amount of memory"):
        amount_of_bytes(text)
