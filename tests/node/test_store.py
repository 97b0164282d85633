"""The store of responses: chains, retention, restarts, and files that are no store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio

from api.ports import StoredResponse
from node.store import STORE_FILE, StoreError, open_store

DAY_S = 86400.0


def response(number: int, *, status: str = "completed", previous: int | None = None) -> StoredResponse:
    return StoredResponse(
        id=f"resp_{number}",
        previous_id=None if previous is None else f"resp_{previous}",
        status=status,
        input=f"[{number}]".encode(),
        resource=f'{{"id": {number}}}'.encode(),
    )


async def test_what_is_put_comes_back_after_a_restart(tmp_path: Path) -> None:
    async with open_store(tmp_path / STORE_FILE, retention_s=0) as store:
        node = store.node
        await store.put(response(1, status="in_progress"))
        await store.put(response(1), b"event: x\n\n")
        assert await store.get("resp_2") is None
        assert await store.events("resp_2") is None
    assert node.isalnum()
    async with open_store(tmp_path / STORE_FILE, retention_s=0) as store:
        assert store.node == node
        assert await store.get("resp_1") == response(1)
        assert await store.events("resp_1") == b"event: x\n\n"
        assert await store.delete("resp_1")
        assert not await store.delete("resp_1")
        assert await store.get("resp_1") is None
        assert await store.events("resp_1") is None, "they go with their response"


async def test_a_chain_of_fifty_is_one_query(tmp_path: Path) -> None:
    async with open_store(tmp_path / STORE_FILE, retention_s=0) as store:
        for number in range(50):
            await store.put(response(number, previous=number - 1 if number else None))
        asked: list[str] = []
        store._connection.set_trace_callback(asked.append)
        chain = await store.chain("resp_49")
    assert [item.id for item in chain] == [f"resp_{number}" for number in range(50)]
    assert chain[0].previous_id is None
    assert len([query for query in asked if "UPDATE" not in query and "SELECT" in query]) == 1


async def test_a_chain_with_a_gap_begins_after_it(tmp_path: Path) -> None:
    async with open_store(tmp_path / STORE_FILE, retention_s=0) as store:
        for number in range(3):
            await store.put(response(number, previous=number - 1 if number else None))
        await store.delete("resp_1")
        assert await store.chain("resp_2") == [response(2, previous=1)]
        assert await store.chain("resp_1") == []


async def test_a_conversation_that_is_used_is_kept_whole(tmp_path: Path) -> None:
    now = 0.0
    async with open_store(tmp_path / STORE_FILE, retention_s=30 * DAY_S, now=lambda: now) as store:
        await store.put(response(0))
        await store.put(response(1, previous=0))
        await store.put(response(9))  # nobody comes back to this one
        now = 20 * DAY_S
        assert len(await store.chain("resp_1")) == 2
        now = 40 * DAY_S
        await store.put(response(2, previous=1))
        assert await store.get("resp_9") is None
        assert [item.id for item in await store.chain("resp_2")] == ["resp_0", "resp_1", "resp_2"]
        now = 80 * DAY_S
        await store.put(response(3))
        assert await store.chain("resp_2") == []


async def test_many_tasks_share_it(tmp_path: Path) -> None:
    async with open_store(tmp_path / STORE_FILE, retention_s=0) as store:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(store.put, response(number))
        assert await store.get("resp_49") == response(49)


async def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / STORE_FILE
    path.write_bytes(b"This is no database, and long enough to be taken for one." * 50)
    with pytest.raises(StoreError, match=STORE_FILE):
        async with open_store(path, retention_s=0):
            pass
    with pytest.raises(StoreError, match="cannot be opened"):
        async with open_store(tmp_path / "no" / "folder", retention_s=0):
            pass


async def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / STORE_FILE
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer version"):
        async with open_store(path, retention_s=0):
            pass
