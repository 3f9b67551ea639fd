"""Who reads which tokens in the next pass of the model: continuous batching over a paged cache.

Each step, every answer under way gets its next token (and its drafts verified), and what is left of
the step's budget goes to prompts, a chunk of each at a time. When pages run out, the request
admitted last gives up its own and reads everything again later. The eldest always goes on, so all
come to an end.

Waiting requests are served first come, first served within an owner, and owners take turns. What
pages hold already is not computed again: see engine/prefix.py.

Plain Python over lists: planning and committing a step of 32 answers takes some 20 microseconds.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from abyssal.engine.live import Live
from abyssal.engine.pages import PAGE, PagePool, pages_for
from abyssal.engine.prefix import Prefixes
from abyssal.engine.queue import FairQueue
from abyssal.engine.request import Request
from abyssal.errors import OverloadedError, RequestError


class Entry:
    """What one request reads in a pass: count of its tokens and drafts, from start on."""

    __slots__ = ("count", "is_last", "live", "start")

    def __init__(self, live: Live, start: int, count: int, is_last: bool):
        self.live = live
        self.start = start
        self.count = count
        self.is_last = is_last  # it reads to its end: its last 1 + len(drafts) rows are sampled


class Step(NamedTuple):
    """One pass of the model."""

    entries: list[Entry]  # answers first, then pieces of prompts
    copies: list[tuple[int, int]]  # pages (source, target) to copy before the pass, in this order


class Scheduler:
    """All requests of an engine: `plan`, run the pass, then `commit` each of its entries."""

    def __init__(
        self,
        pool: PagePool,
        *,
        context: int,
        max_running: int = 64,
        max_step_tokens: int = 2048,
        chunk: int = 512,
        max_waiting: int | None = None,
        prefix_cache: bool = True,
    ):
        assert max_step_tokens >= max_running, "each request that runs has a token in each step"
        self.pool = pool
        self.context = context
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.chunk = chunk
        self.max_waiting = max_waiting
        self.num_preemptions = 0
        self.prompt_tokens_seen = 0
        self.prompt_tokens_cached = 0
        self._lives: dict[int, Live] = {}  # by request id
        self._running: list[Live] = []  # in the order of admission
        self._queue = FairQueue()
        self._prefixes = Prefixes(pool, prefix_cache)
        self._next_deadline_s = math.inf  # nobody's is earlier

    @property
    def is_idle(self) -> bool:
        """Whether nobody runs or waits."""
        return not self._lives

    @property
    def num_running(self) -> int:
        """Requests that hold pages."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones included."""
        return len(self._lives) - len(self._running)

    @property
    def running(self) -> Iterable[Live]:
        """Requests that hold pages, the eldest first."""
        return iter(self._running)

    def add(self, request: Request) -> Live:
        """Put a request at the end of its owner's queue.

        Raises:
            OverloadedError: max_waiting requests wait already.
            RequestError: the cache or the context could not hold it, even alone.
        """
        assert request.id not in self._lives, f"request id {request.id} is in use"
        num_prompt = len(request.tokens)
        limit = min(num_prompt + request.params.max_tokens, self.context)
        self._check(request, limit)
        live = Live(request, list(request.tokens), num_prompt, limit)
        self._lives[request.id] = live
        self._queue.append(live)
        self._next_deadline_s = min(self._next_deadline_s, live.deadline_s)
        return live

    def abort(self, request_id: int) -> Live | None:
        """Remove a request, wherever it is; None if it is gone already."""
        live = self._lives.get(request_id)
        if live is not None:
            self.finish(live)
        return live

    def expire(self, now_s: float) -> list[Live]:
        """Remove the requests whose deadlines, on the clock of now_s, have come."""
        if now_s < self._next_deadline_s:
            return []
        expired = [live for live in self._lives.values() if live.deadline_s <= now_s]
        for live in expired:
            self.finish(live)
        deadlines_s = (live.deadline_s for live in self._lives.values())
        self._next_deadline_s = min(deadlines_s, default=math.inf)
        return expired

    def finish(self, live: Live) -> None:
        """Remove a request and release its pages."""
        del self._lives[live.request.id]
        self._prefixes.end(live)
        if live.pages:
            self._running.remove(live)
            self._release(live)
        else:
            self._queue.remove(live)

    def plan(self) -> Step | None:
        """Who reads what in the next pass; None if nobody is there."""
        if not self._lives:
            return None
        entries: list[Entry] = []
        copies: list[tuple[int, int]] = []
        left, reading = self._plan_answers(entries)
        if reading:
            left = self._plan_prompts(reading, entries, left)
        if self._queue.num_owners:
            self._plan_admissions(entries, copies, left)
        assert entries, "the eldest request can always go on"
        return Step(entries, copies)

    def commit(self, entry: Entry, accepted: Sequence[int]) -> None:
        """Note that an entry was computed, and the tokens that became certain with it.

        None for a piece of a prompt that is not sampled, otherwise 1 to 1 + len(drafts).
        """
        live = entry.live
        if accepted:
            live.tokens += accepted
            live.num_computed = computed = len(live.tokens) - 1
            if live.drafts:
                live.drafts = []
        else:
            live.num_computed = computed = entry.start + entry.count
        if computed >= live.next_full:
            self._prefixes.register(live)

    def _plan_answers(self, entries: list[Entry]) -> tuple[int, list[Live]]:
        """Plan the requests that write; what is left of the budget, and those that still read."""
        left = self.max_step_tokens
        spare = left - len(self._running)  # for drafts
        reading = []
        append = entries.append
        for live in self._running:  # whoever is preempted meanwhile stands at its end
            start = live.num_computed
            end = len(live.tokens)
            if end - start != 1:
                reading.append(live)
                continue
            if live.drafts:
                end += len(live.drafts)
                if end - start - 1 > spare or end >= live.limit or end > live.room:
                    end = self._trim_drafts(live, spare)
                spare -= end - start - 1
            if end > live.room and not self._make_room(live, end, entries):
                break
            left -= end - start
            append(Entry(live, start, end - start, True))
        return left, reading

    def _trim_drafts(self, live: Live, spare: int) -> int:
        """Keep the drafts that budget, limit and free pages leave room for; where they end."""
        end = len(live.tokens)
        room = live.room + self.pool.num_free * PAGE  # nobody is preempted for a guess
        most = min(spare, live.limit - end - 1, room - end)
        live.drafts = live.drafts[: max(most, 0)]
        return end + len(live.drafts)

    def _plan_prompts(self, reading: list[Live], entries: list[Entry], left: int) -> int:
        """Plan a piece of each prompt under way; what is left of the budget."""
        for live in reading:
            if left > 0 and live.pages:  # it has none if an elder one preempted it
                left -= self._plan_piece(live, entries, left)
        return left

    def _plan_piece(self, live: Live, entries: list[Entry], left: int) -> int:
        """Plan the next piece of a prompt; how many tokens of the budget it takes."""
        start = live.num_computed
        count = min(self.chunk, left, len(live.tokens) - start)
        if not self._make_room(live, start + count, entries):
            return 0
        entries.append(Entry(live, start, count, start + count == len(live.tokens)))
        return count

    def _plan_admissions(
        self, entries: list[Entry], copies: list[tuple[int, int]], left: int
    ) -> None:
        """Let owners take turns to have their next request admitted, while there is room."""
        queue = self._queue
        passed = 0  # owners in a row whose next request waits for its group
        while left > 0 and len(self._running) < self.max_running and passed < queue.num_owners:
            live = queue.head()
            if self._prefixes.must_wait(live):
                passed += 1
                queue.end_turn()
                continue
            if not self._admit(live, copies):
                return
            passed = 0
            left -= self._plan_piece(live, entries, left)

    def _admit(self, live: Live, copies: list[tuple[int, int]]) -> bool:
        """Let live run; False if its tokens, and those of others under way, do not find room.

        A prompt of which only the first piece fits would be preempted soon, and had better wait.
        """
        if not self.pool.num_free:
            return False
        due = sum(max(pages_for(len(a.tokens)) - len(a.pages), 0) for a in self._running)
        if not self._prefixes.begin(live, due, copies):
            return False
        self._queue.pop()
        self._running.append(live)
        if live.is_new:
            live.is_new, live.num_cached = False, live.num_computed
            self.prompt_tokens_seen += live.num_prompt
            self.prompt_tokens_cached += live.num_cached
        return True

    def _make_room(self, live: Live, end: int, entries: list[Entry]) -> bool:
        """Give live pages for end tokens, others' if need be; False if it was preempted itself."""
        while live.room < end:
            page = self.pool.allocate()
            if page is not None:
                live.pages.append(page)
                live.room += PAGE
            elif self._preempt(entries) is live:
                return False
        return True

    def _preempt(self, entries: list[Entry]) -> Live:
        """Send the request admitted last back to the head of its owner's queue."""
        live = self._running.pop()
        entries[:] = [entry for entry in entries if entry.live is not live]
        self._release(live)
        self._queue.put_back(live)
        self.num_preemptions += 1
        return live

    def _release(self, live: Live) -> None:
        self.pool.release_all(live.pages)
        live.pages, live.drafts, live.room, live.num_computed = [], [], 0, 0

    def _check(self, request: Request, limit: int) -> None:
        """Refuse what can never be served, and what cannot be queued now."""
        num_prompt, max_tokens = len(request.tokens), request.params.max_tokens
        longest = self.context - min(max_tokens, 1)
        if not 1 <= num_prompt <= longest:
            raise RequestError(
                f"a prompt of {num_prompt} tokens, expected 1 to {longest} in a context of "
                f"{self.context}; change the prompt"
            )
        needed = pages_for(max(num_prompt, limit - 1))  # the last token is never read
        if needed > self.pool.capacity:
            raise RequestError(
                f"a prompt of {num_prompt} and an answer of up to {limit - num_prompt} tokens need "
                f"{needed} pages of {PAGE} tokens, but the cache has {self.pool.capacity}; lower "
                "max_tokens or give the cache more memory"
            )
        if self.max_waiting is not None and self.num_waiting >= self.max_waiting:
            raise OverloadedError(
                f"{self.num_waiting} requests are waiting, expected fewer than {self.max_waiting}; "
                "send this one again later"
            )
