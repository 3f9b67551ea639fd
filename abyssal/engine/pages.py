"""Who holds which page of the latent cache, and which pages can be found again by what they hold.

A page keeps the latents of PAGE consecutive tokens. A full one may be registered under a digest of
all tokens up to its end; a later request that begins with the same tokens finds it and need not
compute them. A page is

    free         nobody holds it and nobody can find it
    held         by one or more requests; a registered one can be found meanwhile
    evictable    held by nobody but still registered: the one unused longest is given away first

Only numbers live here. The latents are in engine/cache.py, under the same page ids.
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence

PAGE = 64  # tokens in a page

_pack = struct.Struct(f"<{PAGE}I").pack


def root_digest(salt: bytes) -> bytes:
    """What the first block of a sequence is chained to; other salts share no digest."""
    return hashlib.sha256(b"abyssal prefix cache:" + salt).digest()


def block_digest(previous: bytes, tokens: Sequence[int]) -> bytes:
    """The digest (32 bytes) of PAGE tokens that follow the block with digest previous."""
    return hashlib.sha256(previous + _pack(*tokens)).digest()


def pages_for(num_tokens: int) -> int:
    """Pages that keep so many tokens."""
    return -(-num_tokens // PAGE)


class PagePool:
    """The pages 1 to num_pages - 1; page 0 is scratch space and never handed out."""

    def __init__(self, num_pages: int):
        self.capacity = max(num_pages - 1, 0)
        self._begin(num_pages)

    def _begin(self, num_pages: int) -> None:
        self._free = list(range(num_pages - 1, 0, -1))  # low ids first: memory is touched late
        self._evictable: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._holders = [0] * num_pages
        self._digests: list[bytes | None] = [None] * num_pages
        self._pages: dict[bytes, int] = {}

    def forget(self) -> None:
        """Let no page be found any more, as if the pool was new; nobody may hold one."""
        assert not self.in_use, f"{self.in_use} pages are held"
        self._begin(len(self._holders))

    @property
    def num_free(self) -> int:
        """Pages that can be allocated now."""
        return len(self._free) + len(self._evictable)

    @property
    def in_use(self) -> int:
        """Pages that somebody holds."""
        return self.capacity - len(self._free) - len(self._evictable)

    def allocate(self) -> int | None:
        """A page with one holder and no digest; None if all are held."""
        if self._free:
            page = self._free.pop()
        elif self._evictable:
            page, _ = self._evictable.popitem(last=False)
            self._forget(page)
        else:
            return None
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """One holder more, of a held or an evictable page."""
        if not self._holders[page]:
            del self._evictable[page]
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """One holder less; the last one leaves a registered page evictable, any other free."""
        assert self._holders[page] > 0, f"page {page} is held by nobody"
        self._holders[page] -= 1
        if self._holders[page]:
            return
        if self._digests[page] is None:
            self._free.append(page)
        else:
            self._evictable[page] = None

    def release_all(self, pages: Sequence[int]) -> None:
        """Release the pages of one sequence: its end may be evicted before its beginning."""
        for page in reversed(pages):
            self.release(page)

    def holders(self, page: int) -> int:
        """How many hold this page."""
        return self._holders[page]

    def register(self, page: int, digest: bytes) -> None:
        """Let a held page be found under a digest; the first page of a digest keeps it."""
        assert self._holders[page] > 0, f"page {page} is held by nobody"
        if digest not in self._pages and self._digests[page] is None:
            self._pages[digest] = page
            self._digests[page] = digest

    def find(self, digest: bytes) -> int | None:
        """The page registered under a digest. Share it before the next allocation."""
        return self._pages.get(digest)

    def is_registered(self, page: int) -> bool:
        """Whether the page can be found, so that its latents must stay as they are."""
        return self._digests[page] is not None

    def _forget(self, page: int) -> None:
        digest = self._digests[page]
        assert digest is not None, f"page {page} was evictable without a digest"
        del self._pages[digest]
        self._digests[page] = None
