"""What outlives a restart and is no file of its own: stored responses, in SQLite. Implements api.ports.ResponseStore.

SQLite runs in one thread at a time beside trio's. A write is in the file when its call returns, though a power cut may
take the last ones (`synchronous=NORMAL`): a lost response is asked for again.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from api.ports import StoredResponse

STORE_FILE = "store.sqlite"
_SCHEMA_VERSION = 1
_PURGE_EVERY_S = 3600.0
_MAX_CHAIN = 100_000  # of a damaged file that goes in a circle

_SCHEMA = """
CREATE TABLE node (part TEXT NOT NULL);
CREATE TABLE response (
    id TEXT PRIMARY KEY,
    previous TEXT,
    status TEXT NOT NULL,
    input BLOB NOT NULL,
    resource BLOB NOT NULL,
    used_at REAL NOT NULL
);
CREATE INDEX response_used_at ON response (used_at);
CREATE TABLE events (
    id TEXT PRIMARY KEY REFERENCES response (id) ON DELETE CASCADE,
    data BLOB NOT NULL
);
"""

# From a response back to the first of its conversation, which comes out first.
_CHAIN = """
WITH RECURSIVE chain (id, previous, depth) AS (
    SELECT id, previous, 0 FROM response WHERE id = :id
    UNION ALL
    SELECT earlier.id, earlier.previous, depth + 1
    FROM response AS earlier JOIN chain ON earlier.id = chain.previous WHERE depth < :deepest
)
"""
_COLUMNS = "response.id, response.previous, response.status, response.input, response.resource"

T = TypeVar("T")


class StoreError(Exception):
    """The store cannot be opened: one sentence for a person."""


class Store:
    """The open store; `open_store` makes one. Every method may be called from many tasks."""

    def __init__(self, connection: sqlite3.Connection, retention_s: float, now: Callable[[], float]) -> None:
        self._connection = connection
        self._retention_s = retention_s
        self._now = now
        self._one = trio.CapacityLimiter(1)
        self._purged_at = float("-inf")
        self._node: str = connection.execute("SELECT part FROM node").fetchone()[0]

    @property
    def node(self) -> str:
        """The part of an id that says where it was made: random, and as old as the data folder."""
        return self._node

    async def put(self, response: StoredResponse, events: bytes | None = None) -> None:
        """Keep `response` in place of what was kept under its id; and the events of its stream."""

        def write() -> None:
            values = (response.id, response.previous_id, response.status, response.input, response.resource)
            with self._connection as db:
                db.execute(
                    "INSERT INTO response (id, previous, status, input, resource, used_at) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET status = excluded.status, resource = excluded.resource,"
                    " used_at = excluded.used_at",
                    (*values, self._now()),
                )
                if events is not None:
                    db.execute("INSERT OR REPLACE INTO events (id, data) VALUES (?, ?)", (response.id, events))
            self._purge()

        await self._run(write)

    async def get(self, identity: str) -> StoredResponse | None:
        """The response of that id."""

        def read() -> StoredResponse | None:
            query = f"SELECT {_COLUMNS} FROM response WHERE id = ?"  # noqa: S608  # a constant
            row = self._connection.execute(query, (identity,)).fetchone()
            return None if row is None else _response(row)

        return await self._run(read)

    async def chain(self, identity: str) -> Sequence[StoredResponse]:
        """The response of that id and all before it, oldest first, in one query. Using them keeps them."""

        def read() -> list[StoredResponse]:
            bound = {"id": identity, "deepest": _MAX_CHAIN, "now": self._now()}
            query = f"{_CHAIN} SELECT {_COLUMNS} FROM chain JOIN response USING (id) ORDER BY depth DESC"  # noqa: S608
            found = [_response(row) for row in self._connection.execute(query, bound)]
            with self._connection as db:
                db.execute(f"{_CHAIN} UPDATE response SET used_at = :now WHERE id IN (SELECT id FROM chain)", bound)  # noqa: S608
            return found

        return await self._run(read)

    async def events(self, identity: str) -> bytes | None:
        """What was kept of a response's stream."""

        def read() -> bytes | None:
            row = self._connection.execute("SELECT data FROM events WHERE id = ?", (identity,)).fetchone()
            return None if row is None else bytes(row[0])

        return await self._run(read)

    async def delete(self, identity: str) -> bool:
        """Forget a response; False when there is none."""

        def write() -> bool:
            with self._connection as db:
                return db.execute("DELETE FROM response WHERE id = ?", (identity,)).rowcount > 0

        return await self._run(write)

    async def _run(self, job: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(job, limiter=self._one)

    def _purge(self) -> None:
        """Forget what nobody has used for longer than the retention."""
        now = self._now()
        if not self._retention_s or now < self._purged_at + _PURGE_EVERY_S:
            return
        self._purged_at = now
        with self._connection as db:
            db.execute("DELETE FROM response WHERE used_at < ?", (now - self._retention_s,))


@asynccontextmanager
async def open_store(path: Path, *, retention_s: float, now: Callable[[], float] = time.time) -> AsyncIterator[Store]:
    """The store at `path`, made if there is none. `retention_s` 0 keeps everything. Raises StoreError."""
    try:
        connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    except sqlite3.Error as error:
        raise StoreError(f"The store {path} cannot be opened: {error}.") from error
    try:
        try:
            _prepare(connection)
            store = Store(connection, retention_s, now)
        except sqlite3.Error as error:
            raise StoreError(
                f"The store {path} cannot be used: {error}. Move it away to start with an empty one."
            ) from error
        yield store
    finally:
        connection.close()


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > _SCHEMA_VERSION:
        raise sqlite3.DatabaseError("it was written by a newer version of mesh")
    if version == 0:
        with connection as db:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
            db.execute("INSERT INTO node (part) VALUES (?)", (secrets.token_hex(4),))


def _response(row: tuple[str, str | None, str, bytes, bytes]) -> StoredResponse:
    identity, previous, status, given, resource = row
    return StoredResponse(
        id=identity, previous_id=previous, status=status, input=bytes(given), resource=bytes(resource)
    )
