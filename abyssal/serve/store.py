"""The history's store: one SQLite file, one thread that writes, connections beside it that read.

Writes wait in a queue. The thread takes as many as wait, carries all of them out in one
transaction and answers them once that is on the disk: an answer means that nothing is lost,
whatever happens next, and syncing costs many clients little more than one.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

from abyssal.serve.closing import Closing
from abyssal.serve.faults import Fault, shutting_down
from abyssal.serve.store_schema import connect, open_file

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MAX_GROUP = 64  # writes in one transaction
NUM_READERS = 4
READ_S = 10.0  # the longest that reading may take: a search for a letter in very much text, say
# Another process may hold the file while it writes: its transactions are as short as ours.
_BUSY_S = 60.0
_OPERATIONS = 10_000  # of SQLite's machine, between two looks at the clock

_logger = logging.getLogger(__name__)


class Store(Closing):
    """A file of chats, open until it is closed.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, path: Path):
        self._writer = open_file(path)
        self._writer.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False  # guarded by _lock, so that nothing is queued behind the end
        self._connections = [_reader(path) for _ in range(NUM_READERS)]
        self._free: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for connection in self._connections:
            self._free.put(connection)
        self._pool = ThreadPoolExecutor(NUM_READERS, "history-reader")
        self._thread = threading.Thread(target=self._run, name="history-writer")
        self._thread.start()

    def write(self, work: Work[T]) -> "Future[T]":
        """What work returns, once what it wrote is on the disk.

        work may run twice, the first time in a transaction that is rolled back.

        Raises (the future):
            Fault: work raised it, or the file cannot be written; nothing was changed.
        """
        job = _Job(work)
        with self._lock:
            if self._is_closed:
                raise shutting_down()
            self._jobs.put(job)
        return job.future

    def read(self, work: Work[T]) -> "Future[T]":
        """What work returns, which sees the file as it was at one moment.

        Raises (the future):
            Fault: work raised it or takes more than READ_S, or the file cannot be read.
        """
        with self._lock:
            if self._is_closed:
                raise shutting_down()
            return self._pool.submit(self._read, work)

    def close(self) -> None:
        """Carry out what waits, and let go of the file. Does no harm twice."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._jobs.put(None)
        self._thread.join()
        self._pool.shutdown()
        for connection in (*self._connections, self._writer):
            connection.close()

    def _read(self, work: Work[T]) -> T:
        connection = self._free.get()
        deadline_s = time.monotonic() + READ_S
        connection.set_progress_handler(lambda: time.monotonic() > deadline_s, _OPERATIONS)
        try:
            connection.execute("BEGIN")
            return work(connection)
        except sqlite3.Error as problem:
            if problem.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                message = f"this takes more than {READ_S:g} s; ask for words that are less common"
                raise Fault(400, message, param="query", code="query_too_broad") from problem
            raise _unusable(problem) from problem
        finally:
            connection.set_progress_handler(None, 0)
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._free.put(connection)

    def _run(self) -> None:
        """Write until the end; what goes wrong ends the jobs concerned and never the thread."""
        is_last = False
        while not is_last:
            group = [self._jobs.get()]
            while len(group) < MAX_GROUP and not self._jobs.empty():
                group.append(self._jobs.get())
            is_last = None in group  # nothing is queued behind it
            jobs = [one for one in group if one and one.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            self._settle(jobs)
            for job in jobs:
                job.tell()

    def _settle(self, jobs: Sequence["_Job[Any]"]) -> None:
        try:
            self._commit(jobs)
        except sqlite3.Error as problem:
            # One of them fails in the file itself (a full disk, say): each on its own then.
            if len(jobs) > 1:
                for job in jobs:
                    self._settle([job])
            else:
                jobs[0].problem = _unusable(problem)

    def _commit(self, jobs: Sequence["_Job[Any]"]) -> None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for job in jobs:
                self._writer.execute("SAVEPOINT job")
                job.run(self._writer)
                if job.problem is not None:
                    self._writer.execute("ROLLBACK TO job")
                self._writer.execute("RELEASE job")
            self._writer.execute("COMMIT")
        finally:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")


class _Job(Generic[T]):
    """Something to write, and who waits for it."""

    def __init__(self, work: Work[T]):
        self.future: Future[T] = Future()
        self.problem: Exception | None = None
        self._work = work
        self._found: T | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        """Do the work; a mistake of the sender, or of ours, is kept for whoever waits."""
        self.problem = None
        try:
            self._found = self._work(connection)
        except sqlite3.Error:
            raise
        except Fault as fault:
            self.problem = fault
        except Exception as problem:
            _logger.exception("a write to the history failed")
            self.problem = problem

    def tell(self) -> None:
        """Answer whoever waits."""
        if self.problem is not None:
            self.future.set_exception(self.problem)
        else:
            self.future.set_result(self._found)  # type: ignore[arg-type]


def _reader(path: Path) -> sqlite3.Connection:
    connection = connect(path, timeout_s=_BUSY_S)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _unusable(problem: sqlite3.Error) -> Fault:
    """The file fails while it is served: the log has the reason, and nothing was changed."""
    _logger.error("history: %s", problem)
    message = "the history cannot be read or written now; the server's log has the reason"
    return Fault(503, message, type="server_error", code="history_unavailable")
