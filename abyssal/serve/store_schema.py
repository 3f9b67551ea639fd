"""The file of the history: where it is, how it is made, and how an older one becomes today's.

A file of a newer version, of another program, or one that cannot be written is refused: nothing in
it is touched.
"""

import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from abyssal.checkpoint.files import sync
from abyssal.errors import ConfigError
from abyssal.serve.words import words

BUSY_S = 5.0  # that another process may hold the file before a start gives up on it

_APPLICATION = 0x61627973  # "abys" in the file's header: nobody else's database is touched
_MAX_IDLE_LOG = 16 * 2**20  # bytes that the write-ahead log keeps once its words are in the file

_logger = logging.getLogger(__name__)

_REMEDY = "name another with --history FILE, or serve with --no-history"


def default_path(environment: Mapping[str, str]) -> Path:
    """Where the history is when nobody says: among the user's data, as the XDG rules have it."""
    base = Path(environment.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():  # a relative one is to be ignored, say the rules
        base = Path.home() / ".local" / "share"
    return base / "abyssal" / "history.sqlite3"


def connect(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    """One more connection to the file, without transactions of Python's own making."""
    connection = sqlite3.connect(
        path, timeout=timeout_s, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def open_file(path: Path) -> sqlite3.Connection:
    """The connection that writes; the file is made if there is none, or brought up to date.

    An answer's commit is on the disk: a write-ahead log, synced at each commit.

    Raises:
        ConfigError: it cannot be made, read or written, or is not a history of ours.
    """
    connection = None
    try:
        _make(path)
        connection = connect(path, timeout_s=BUSY_S)
        _check_kind(path, connection)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        connection.execute(f"PRAGMA journal_size_limit = {_MAX_IDLE_LOG}")
        if mode != "wal":
            raise ConfigError(
                f"history {path}: its file system cannot share a write-ahead log; {_REMEDY}"
            )
        migrate(connection)
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            _logger.warning("%s is open to others on this machine; chmod 600 keeps it yours", path)
    except (OSError, sqlite3.Error) as problem:
        if connection is not None:
            connection.close()
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise ConfigError(f"history {path}: cannot be used ({reason}); {_REMEDY}") from problem
    except ConfigError:
        if connection is not None:
            connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, target: int | None = None) -> None:
    """Bring the file to today's version (or to an older target), in one step or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for step in _MIGRATIONS[version:target]:
            step(connection)
            version += 1
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _make(path: Path) -> None:
    """A new file that only its owner can read, in a folder that only its owner can enter."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        with path.open("r+b"):  # says in the system's words why it cannot be written
            pass
        return
    sync(path.parent)


def _check_kind(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse databases of other programs and of later versions of this one."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (kind,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and kind != _APPLICATION:
        raise ConfigError(f"history {path}: it is a database of another program; {_REMEDY}")
    if not 0 <= version <= VERSION:
        raise ConfigError(
            f"history {path}: it has version {version} and this program knows up to {VERSION}; "
            f"update the program, or {_REMEDY}"
        )


def _add_chats(connection: sqlite3.Connection) -> None:
    """Version 1: who owns what, chats, and what was said in them."""
    for statement in (
        # moves: counts changes of place in the list of chats
        """CREATE TABLE owners (
            owner TEXT PRIMARY KEY, moves INTEGER NOT NULL, bytes INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE chats (
            number INTEGER PRIMARY KEY, owner TEXT NOT NULL, id TEXT NOT NULL,
            title TEXT NOT NULL, folder TEXT, pinned INTEGER NOT NULL, options TEXT NOT NULL,
            current TEXT, created INTEGER NOT NULL, updated INTEGER NOT NULL, deleted INTEGER,
            moved INTEGER NOT NULL, bytes INTEGER NOT NULL, UNIQUE (owner, id)
        ) STRICT""",
        "CREATE INDEX chats_in_order ON chats (owner, pinned, updated, moved)",
        """CREATE TABLE messages (
            number INTEGER PRIMARY KEY, chat INTEGER NOT NULL REFERENCES chats ON DELETE CASCADE,
            id TEXT NOT NULL, parent TEXT, role TEXT NOT NULL, content TEXT NOT NULL,
            reasoning TEXT, data TEXT NOT NULL, created INTEGER NOT NULL, bytes INTEGER NOT NULL,
            UNIQUE (chat, id)
        ) STRICT""",
    ):
        connection.execute(statement)


def _add_search(connection: sqlite3.Connection) -> None:
    """Version 2: the words of titles and messages, under the numbers of these."""
    # words.py has made words of everything by the time a tokenizer sees it; this one only parts
    # them at spaces, and takes whatever is not ASCII for a letter.
    for table, column, source in (
        ("title_words", "title", "chats"),
        ("message_words", "content", "messages"),
    ):
        connection.execute(f"CREATE VIRTUAL TABLE {table} USING fts5(text, tokenize = 'ascii')")
        rows = connection.execute(f"SELECT number, {column} FROM {source}")
        connection.executemany(
            f"INSERT INTO {table} (rowid, text) VALUES (?, ?)",
            ((number, " ".join(words(text))) for number, text in rows),
        )


_MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_add_chats, _add_search)
VERSION = len(_MIGRATIONS)
