"""A request on its way through the engine: its tokens, its pages, and how far it has come."""

import math
from dataclasses import dataclass, field

from abyssal.engine.pages import PAGE, block_digest, root_digest
from abyssal.engine.request import Request


@dataclass(slots=True, eq=False)
class Live:
    """A request that waits or runs."""

    request: Request
    tokens: list[int]  # the prompt and what has been written
    num_prompt: int
    limit: int  # the most tokens it may come to
    num_computed: int = 0  # tokens whose latents are in its pages
    num_cached: int = 0  # of its prompt, those that were computed before it was first admitted
    pages: list[int] = field(default_factory=list)  # empty exactly while it waits
    drafts: list[int] = field(default_factory=list)  # guesses of what follows, to be verified
    digests: list[bytes] = field(default_factory=list)  # of its first full blocks, as far as asked
    room: int = 0  # tokens that fit its pages
    next_full: int = PAGE  # tokens computed at which its next page is full, to be registered
    is_new: bool = True  # never admitted

    @property
    def written(self) -> list[int]:
        """The tokens of the answer so far."""
        return self.tokens[self.num_prompt :]

    @property
    def group(self) -> int:
        """What the n answers to one prompt have in common."""
        group = self.request.group
        return self.request.id if group is None else group

    @property
    def deadline_s(self) -> float:
        """When it ends, finished or not; infinity if no such time was set."""
        deadline_s = self.request.deadline_s
        return math.inf if deadline_s is None else deadline_s

    def digest(self, block: int) -> bytes:
        """The digest of a full block and of all before it."""
        digests = self.digests
        while len(digests) <= block:
            previous = digests[-1] if digests else root_digest(self.request.salt)
            start = len(digests) * PAGE
            digests.append(block_digest(previous, self.tokens[start : start + PAGE]))
        return digests[block]
