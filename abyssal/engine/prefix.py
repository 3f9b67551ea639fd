"""What of a request need not be computed, because pages of the cache hold it already.

    whole pages    found in the pool by a digest of all tokens up to their end
    n answers      share the prompt's pages with the first one, once it has read the prompt

Shared pages are never written. All that is shared is full, but for one case: of the last page only
a part may be of use, and its new holder goes on writing there. It gets a copy of its own at once.
"""

from abyssal.engine.live import Live
from abyssal.engine.pages import PAGE, PagePool, pages_for


class Prefixes:
    """Gives requests the pages that hold their beginnings, and registers pages as they fill."""

    def __init__(self, pool: PagePool, by_digest: bool):
        self._pool = pool
        self._by_digest = by_digest  # False: only the answers of one group share
        self._leaders: dict[int, Live] = {}  # by group: whose prompt the other answers share

    def must_wait(self, live: Live) -> bool:
        """Whether another answer of its group is about to have the prompt that live can share."""
        leader = self._leader(live)
        return leader is not None and leader.num_computed < leader.num_prompt

    def begin(self, live: Live, reserved: int, copies: list[tuple[int, int]]) -> bool:
        """Give live the pages with its beginning; False if there is no room for all its tokens.

        Reserved pages are left to others. A page to be copied before the next pass is appended to
        copies, as (source, target).
        """
        pool = self._pool
        pages, computed = self._find(live)
        for page in pages:
            pool.share(page)
        wanted = reserved + pages_for(len(live.tokens)) - len(pages)
        is_partial = computed % PAGE != 0  # the last of pages will be written
        if is_partial and wanted + 1 > pool.num_free:  # rather than keep both, compute it again
            pool.release(pages.pop())
            computed, wanted, is_partial = len(pages) * PAGE, wanted + 1, False
        if wanted > pool.num_free:
            pool.release_all(pages)
            return False
        if is_partial:
            pages[-1] = self._copy(pages[-1], copies)
        live.pages, live.room, live.num_computed = pages, len(pages) * PAGE, computed
        live.next_full = computed - computed % PAGE + PAGE
        self._leaders.setdefault(live.group, live)
        return True

    def register(self, live: Live) -> None:
        """Let others find the pages of live that have become full of computed tokens."""
        while live.next_full <= live.num_computed:
            if self._by_digest:
                block = live.next_full // PAGE - 1
                self._pool.register(live.pages[block], live.digest(block))
            live.next_full += PAGE

    def end(self, live: Live) -> None:
        """Share the prompt of live no more: it is about to give up its pages for good."""
        if self._leaders.get(live.group) is live:
            del self._leaders[live.group]

    def _find(self, live: Live) -> tuple[list[int], int]:
        """Pages with the beginning of live, and how many of its tokens to take from them.

        At least one token is left to compute: the next one is sampled from what comes out.
        """
        leader = self._leader(live)
        if leader is not None:
            assert leader.request.tokens == live.request.tokens, "a group shares one prompt"
            return leader.pages[: pages_for(live.num_prompt - 1)], live.num_prompt - 1
        pages: list[int] = []
        # All of a prompt that is scored must be computed: what comes out is what was asked for.
        if self._by_digest and live.request.params.prompt_logprobs is None:
            for block in range(len(live.tokens) // PAGE):
                page = self._pool.find(live.digest(block))
                if page is None:
                    break
                pages.append(page)
        return pages, min(len(pages) * PAGE, len(live.tokens) - 1)

    def _leader(self, live: Live) -> Live | None:
        """The answer of the same group whose prompt live may share, now or soon."""
        is_scored = live.request.params.prompt_logprobs is not None
        return self._leaders.get(live.group) if live.is_new and not is_scored else None

    def _copy(self, source: int, copies: list[tuple[int, int]]) -> int:
        """A page of one's own with what source holds, which is given back."""
        target = self._pool.allocate()
        assert target is not None, "a page was free a moment ago"
        copies.append((source, target))
        self._pool.release(source)
        return target
