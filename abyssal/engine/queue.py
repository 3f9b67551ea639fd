"""A queue in which owners take turns: within an owner, first come, first served."""

from collections import OrderedDict, deque

from abyssal.engine.live import Live


class FairQueue:
    """Requests that wait. An owner with a thousand of them delays another's only by one."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, deque[Live]] = OrderedDict()  # whose turn it is first

    @property
    def num_owners(self) -> int:
        """Owners with at least one request here."""
        return len(self._by_owner)

    def append(self, live: Live) -> None:
        """Let a new request wait behind all of its owner's."""
        self._of(live).append(live)

    def put_back(self, live: Live) -> None:
        """Let a request wait again, ahead of all of its owner's."""
        self._of(live).appendleft(live)

    def remove(self, live: Live) -> None:
        """Take a request out, wherever it waits."""
        owner = live.request.owner
        waiting = self._by_owner[owner]
        waiting.remove(live)
        if not waiting:
            del self._by_owner[owner]

    def head(self) -> Live:
        """The next request of the owner whose turn it is; there must be one."""
        return next(iter(self._by_owner.values()))[0]

    def pop(self) -> Live:
        """Take out the head, which ends its owner's turn."""
        live = self.head()
        self.end_turn()
        self.remove(live)
        return live

    def end_turn(self) -> None:
        """Go on to the next owner."""
        self._by_owner.move_to_end(next(iter(self._by_owner)))

    def _of(self, live: Live) -> deque[Live]:
        return self._by_owner.setdefault(live.request.owner, deque())
