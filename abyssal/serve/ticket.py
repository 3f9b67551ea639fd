"""Tickets: a way to a page for who has a key, where a browser cannot send the key along.

A link opened in a tab of its own carries no Authorization header. So the chat page asks for a
ticket with its key, and puts that into the link. A ticket opens one path, for a minute, on the
server that gave it.
"""

import hashlib
import hmac
import secrets
import time

LIFE_S = 60


class Tickets:
    """Gives tickets, and knows those that it gave."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def give(self, path: str) -> str:
        """A ticket for this path."""
        return self._written(path, int(time.time()) + LIFE_S)

    def opens(self, path: str, ticket: str) -> bool:
        """Whether a ticket is of this server, for this path, and not too old."""
        until = ticket.partition(".")[0]
        if not (until.isascii() and until.isdigit() and len(until) <= 12):
            return False
        known = self._written(path, int(until)).encode()
        return hmac.compare_digest(known, ticket.encode()) and time.time() <= int(until)

    def _written(self, path: str, until: int) -> str:
        mark = hmac.digest(self._secret, f"{until} {path}".encode(), hashlib.sha256)
        return f"{until}.{mark.hex()}"
