"""The file of the history is private, comes up to date, and is never taken for something else."""

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from abyssal.errors import ConfigError
from abyssal.serve import chats, store_schema
from abyssal.serve.store import Store
from abyssal.serve.store_schema import VERSION, connect, migrate, open_file

A, M = "a" * 32, "b" * 32


def test_a_new_file_is_its_owners_alone(tmp_path):
    path = tmp_path / "new" / "data" / "history.sqlite3"
    with Store(path) as store:
        store.write(lambda c: chats.put_chat(c, "", A, {})).result()
        assert path.parent.stat().st_mode & 0o777 == 0o700
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3  # the log and its index, too
    assert [file.name for file in path.parent.iterdir()] == ["history.sqlite3"]


def test_commits_are_synced_and_the_log_is_written_ahead(tmp_path):
    connection = open_file(tmp_path / "h.sqlite3")
    try:
        names = ("journal_mode", "synchronous", "user_version", "foreign_keys")
        pragmas = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    finally:
        connection.close()
    assert pragmas == ["wal", 2, VERSION, 1]


def test_a_file_that_others_can_read_is_told(tmp_path, caplog):
    path = tmp_path / "h.sqlite3"
    path.touch()
    path.chmod(0o644)
    open_file(path).close()
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize("version", range(VERSION))
def test_a_file_of_an_older_version_is_brought_up_to_date_with_all_it_has(tmp_path, version):
    path = tmp_path / "h.sqlite3"
    path.touch()
    old = connect(path, timeout_s=1)
    migrate(old, version)
    if version:
        old.execute("INSERT INTO owners VALUES ('', 1, 600)")
        values = (1, "", A, "Über das Meer", None, 0, "{}", M, 5, 6, None, 1, 600)
        old.execute(f"INSERT INTO chats VALUES ({', '.join('?' * 13)})", values)
        values = (1, 1, M, None, "user", "深海的鱼", None, "{}", 6, 300)
        old.execute(f"INSERT INTO messages VALUES ({', '.join('?' * 10)})", values)
    old.close()
    for _ in range(2):
        with Store(path) as store:
            for query in ("meer", "深海") if version else ():
                listing = chats.Listing(query=query)
                found = store.read(lambda c, wanted=listing: chats.list_chats(c, "", wanted))
                assert [chat["id"] for chat in found.result()["data"]] == [A]
            assert store.read(_version).result() == VERSION


def _version(connection):
    return connection.execute("PRAGMA user_version").fetchone()[0]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "h.sqlite3"

    def broken(connection):
        connection.execute("CREATE TABLE half (done)")
        connection.execute("no SQL")

    with monkeypatch.context() as patch:
        patch.setattr(store_schema, "_MIGRATIONS", (*store_schema._MIGRATIONS, broken))
        with pytest.raises(ConfigError, match="syntax error"):
            open_file(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    connection.close()
    open_file(path).close()


def refused(path: Path) -> str:
    """What is said about a file that cannot be used: one line, with the remedy."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ConfigError) as refusal:
        open_file(path)
    assert str(path) in str(refusal.value)
    assert "--no-history" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert (path.read_bytes() if path.is_file() else None) == before
    return str(refusal.value)


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "h.sqlite3"
    connection = open_file(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    assert f"has version {VERSION + 1} and this program knows up to {VERSION}" in refused(path)


def test_what_is_no_history_is_refused_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("dear diary\n" * 100)
    assert "not a database" in refused(text)
    other = tmp_path / "places.sqlite3"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE places (url)")
    connection.close()
    assert "another program" in refused(other)
    assert "directory" in refused(tmp_path).lower()
    assert "cannot be used" in refused(text / "h.sqlite3")


def test_a_file_that_somebody_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store_schema, "BUSY_S", 0.1)
    path = tmp_path / "h.sqlite3"
    open_file(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(ConfigError, match="locked"):
            open_file(path)
    finally:
        holder.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_may_not_be_written_is_refused(what):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "h.sqlite3")
        if what == "file":
            open_file(path).close()
            path.chmod(0o644)
        os.seteuid(65534)
        try:
            assert "Permission denied" in refused(path)
        finally:
            os.seteuid(0)
