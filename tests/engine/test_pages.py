"""A page is free, held or evictable, and only a page nobody holds is given away."""

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.engine.pages import PAGE, PagePool, block_digest, pages_for, root_digest

DIGESTS = [bytes([i]) * 32 for i in range(4)]
TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=PAGE, max_size=PAGE)


class Definition:
    """The pool as its docstring has it: the state of each page, and a list of who waits longest."""

    def __init__(self, num_pages: int):
        self.holders = dict.fromkeys(range(1, num_pages), 0)
        self.digest_of: dict[int, bytes] = {}
        self.evictable: list[int] = []

    def free(self) -> set[int]:
        return {p for p, n in self.holders.items() if not n and p not in self.digest_of}

    def release(self, page: int) -> None:
        self.holders[page] -= 1
        if not self.holders[page] and page in self.digest_of:
            self.evictable.append(page)

    def share(self, page: int) -> None:
        self.holders[page] += 1
        if page in self.evictable:
            self.evictable.remove(page)

    def took(self, page: int | None) -> None:
        """Check a page that was allocated, and note it."""
        if self.free():
            assert page in self.free()
        elif self.evictable:
            assert page == self.evictable.pop(0)
            del self.digest_of[page]
        else:
            assert page is None
            return
        self.holders[page] = 1

    def register(self, page: int, digest: bytes) -> None:
        if digest not in self.digest_of.values() and page not in self.digest_of:
            self.digest_of[page] = digest

    def find(self, digest: bytes) -> int | None:
        return next((p for p, d in self.digest_of.items() if d == digest), None)


def do(pool: PagePool, model: Definition, action: str, number: int) -> None:
    """One action on both, on a page that it is allowed for."""
    held = [page for page, holders in model.holders.items() if holders]
    digest = DIGESTS[number % len(DIGESTS)]
    if action == "allocate":
        model.took(pool.allocate())
    elif action == "share found":
        page = pool.find(digest)
        assert page == model.find(digest)
        if page is not None:
            pool.share(page)
            model.share(page)
    elif held:
        page = held[number % len(held)]
        arguments = (page, digest) if action == "register" else (page,)
        getattr(pool, action)(*arguments)
        getattr(model, action)(*arguments)


ACTIONS = ["allocate", "release", "share", "share found", "register"]
OFTEN = ["allocate", "release", "register", "share found"]


@settings(max_examples=300)
@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.sampled_from(ACTIONS + 2 * OFTEN), st.integers(0, 11)), max_size=60),
)
def test_the_pool_is_its_definition_under_any_actions(num_pages, actions):
    pool, model = PagePool(num_pages), Definition(num_pages)
    assert pool.capacity == len(model.holders)
    for action, number in actions:
        do(pool, model, action, number)
        assert {page: pool.holders(page) for page in model.holders} == model.holders
        assert pool.num_free == len(model.free()) + len(model.evictable)
        assert pool.in_use == sum(holders > 0 for holders in model.holders.values())
        assert [pool.find(digest) for digest in DIGESTS] == [model.find(d) for d in DIGESTS]
        assert all(pool.is_registered(p) == (p in model.digest_of) for p in model.holders)


def test_page_0_is_never_handed_out():
    pool = PagePool(5)
    assert sorted(pool.allocate() for _ in range(4)) == [1, 2, 3, 4]
    assert pool.allocate() is None


def test_releasing_what_nobody_holds_is_a_bug():
    pool = PagePool(3)
    page = pool.allocate()
    pool.release(page)
    with pytest.raises(AssertionError, match=f"page {page} is held by nobody"):
        pool.release(page)
    with pytest.raises(AssertionError, match="held by nobody"):
        pool.register(page, DIGESTS[0])


def test_pages_for_rounds_up():
    assert [pages_for(n) for n in (0, 1, PAGE, PAGE + 1, 2 * PAGE)] == [0, 1, 1, 2, 2]


def test_a_digest_is_sha256_over_the_one_before_and_the_tokens():
    tokens = list(range(PAGE))
    previous = root_digest(b"key")
    expected = hashlib.sha256(previous + struct.pack(f"<{PAGE}I", *tokens)).digest()
    assert block_digest(previous, tokens) == expected


@given(TOKENS, st.integers(0, PAGE - 1), st.binary(max_size=40), st.binary(max_size=40))
def test_a_digest_tells_apart_tokens_their_past_and_salts(tokens, at, salt, other):
    root = root_digest(salt)
    changed = [*tokens[:at], (tokens[at] + 1) % 2**32, *tokens[at + 1 :]]
    first = block_digest(root, tokens)
    assert first != block_digest(root, changed)
    assert block_digest(first, tokens) != first
    assert (root_digest(other) == root) == (other == salt)
